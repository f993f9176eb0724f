"""Writing files so that a crash, a full disk or a kill leaves the previous version whole."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from lightning_dqnlr.errors import ConfigurationError


def write_atomically(path: str | Path, content: bytes) -> Path:
    """Writes a new file beside `path`, flushes it to disk, and renames it over `path`.

    Args:
        path: the file to write; missing parent folders are made.
        content: all of it.

    Returns:
        The path.

    Raises:
        ConfigurationError: if the folder cannot be written or the disk is full; the previous file
            is then untouched.
    """
    path = Path(path)
    temporary: str | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except OSError as error:
        if temporary is not None:
            Path(temporary).unlink(missing_ok=True)
        raise ConfigurationError(
            f"path={str(path)!r} cannot be written ({error.strerror}); choose another folder or "
            "free some space. What was there before is unchanged."
        ) from error
    return path
