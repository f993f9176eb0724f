"""Writing files so that a crash, a full disk or a kill leaves the previous version whole."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping
from pathlib import Path

from lightning_dqnlr.errors import ConfigurationError

# Marks a file that a killed process had not finished; no code of this package reads it.
_PARTIAL = ".partial"


def write_atomically(path: str | Path, content: bytes | memoryview) -> Path:
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
    write_together({Path(path): content})
    return Path(path)


def write_together(files: Mapping[Path, bytes | memoryview]) -> None:
    """Writes files that belong together: all are on disk before the first takes its place.

    A full disk leaves every previous file whole. A kill does, too, unless it comes between two
    renames. The files then do not fit together, so a reader must be able to tell.

    Args:
        files: the contents by path; missing parent folders are made.

    Raises:
        ConfigurationError: as `write_atomically`.
    """
    finished: dict[str, Path] = {}
    path = Path()
    try:
        for path, content in files.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            _write_beside(path, content, finished)
        for temporary, path in finished.items():
            os.replace(temporary, path)
    except OSError as error:
        raise cannot_write(path, error) from error
    finally:
        for temporary in finished:
            Path(temporary).unlink(missing_ok=True)


def cannot_write(path: Path, error: OSError) -> ConfigurationError:
    """Returns the error that names the path and the remedy."""
    return ConfigurationError(
        f"path={str(path)!r} cannot be written ({error.strerror}); choose another folder or free "
        "some space. What was there before is unchanged."
    )


def _write_beside(path: Path, content: bytes | memoryview, written: dict[str, Path]) -> None:
    """Adds the temporary file's name to `written` before there is anything in it."""
    handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", suffix=_PARTIAL, dir=path.parent)
    written[temporary] = path
    with os.fdopen(handle, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    os.chmod(temporary, 0o644)


def remove_leftovers(folder: Path) -> None:
    """Deletes the unfinished files of killed processes in a folder and right below it.

    No other process may be writing to the folder.

    Raises:
        ConfigurationError: if one cannot be deleted.
    """
    for pattern in (f".*{_PARTIAL}", f"*/.*{_PARTIAL}"):
        for path in folder.glob(pattern):
            try:
                path.unlink(missing_ok=True)
            except OSError as error:
                raise ConfigurationError(
                    f"{path} cannot be deleted ({error.strerror}); choose another folder."
                ) from error
