"""Files that survive a crash, a full disk or a kill, and files that somebody else wrote.

What is written replaces its previous version whole or not at all. What is read may be anything that
a path can lead to, with any content.
"""

from __future__ import annotations

import errno
import hashlib
import json
import math
import os
import stat
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

from torch.utils import _pytree as pytree

from lightning_dqnlr.errors import ConfigurationError

# Marks a file that a killed process had not finished; no code of this package reads it.
_PARTIAL = ".partial"
_DEEPEST = 32
_SEAL = b"\nsha256 of what precedes: "
_DIGEST = hashlib.sha256().digest_size * 2  # characters


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


def check_writable(name: str, folder: Path) -> None:
    """Refuses a folder that cannot be written, ahead of the work that is to end there.

    A folder that is not there yet is not made; the nearest one above it is tried.

    Args:
        name: of the argument.
        folder: that files will be written to.

    Raises:
        ConfigurationError: otherwise.

    Example:
        check_writable("--into", Path("outputs/policy"))
    """
    nearest = folder.absolute()
    while not nearest.exists() and nearest != nearest.parent:
        nearest = nearest.parent
    try:
        with tempfile.TemporaryFile(dir=nearest):
            pass
    except OSError as error:
        raise ConfigurationError(
            f"{name}={str(folder)!r} cannot be written ({error.strerror}); choose another folder."
        ) from error


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


def sealed(content: bytes | memoryview) -> bytes:
    """The content with its SHA-256 behind it, where readers of zip archives look past it.

    Example:
        >>> unsealed(sealed(b"content"))
        b'content'
    """
    return b"".join([content, _SEAL, hashlib.sha256(content).hexdigest().encode()])


def unsealed(content: bytes) -> bytes:
    """What `sealed` was given. Content without a seal, as earlier versions wrote it, is returned.

    Raises:
        ValueError: it is not what was sealed.
    """
    start = len(content) - _DIGEST - len(_SEAL)
    if start < 0 or content[start:-_DIGEST] != _SEAL:
        return content
    if hashlib.sha256(content[:start]).hexdigest().encode() != content[-_DIGEST:]:
        raise ValueError("it is not what was written: the checksum differs")
    return content[:start]


def read_regular(path: str | Path, most: int) -> bytes:
    """The content of a file that may be somebody else's.

    Only a regular file, or a link to one, is opened. A FIFO would wait for a writer, a device might
    never end, and a sparse file is as large as it says.

    Args:
        path: the file.
        most: bytes that it may have.

    Raises:
        OSError: it cannot be read, is no regular file, or is larger; `strerror` says which.
    """
    _size_of_regular(path, os.stat(path), most)
    with open(path, "rb", opener=_without_waiting) as file:
        size = _size_of_regular(path, os.fstat(file.fileno()), most)
        content = file.read(size + 1) or b""  # None of what has nothing to say yet, as /proc/kmsg
    if len(content) != size:
        raise OSError(errno.EIO, "it changes while it is read", str(path))
    return content


def _without_waiting(path: str, flags: int) -> int:
    """What was a regular file a moment ago may be a FIFO now. Windows has neither."""
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))


def _size_of_regular(path: str | Path, status: os.stat_result, most: int) -> int:
    if not stat.S_ISREG(status.st_mode):
        raise OSError(errno.EINVAL, "it is no regular file", str(path))
    if status.st_size > most:
        raise OSError(errno.EINVAL, f"its {status.st_size} bytes are more than {most}", str(path))
    return status.st_size


def finite_or_none(value: Any) -> Any:
    """None in the place of a number that is not finite."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


def strict_json(value: Any, indent: int) -> str:
    r"""JSON text that `parse_json` reads; a number that is not finite becomes null.

    Example:
        >>> strict_json([1.5, math.nan], indent=0)
        '[\n1.5,\nnull\n]\n'
    """
    return json.dumps(pytree.tree_map(finite_or_none, value), indent=indent, allow_nan=False) + "\n"


def parse_json(text: str | bytes) -> Any:
    """Reads JSON that may be somebody else's: finite numbers, at most 32 levels deep.

    Raises:
        ValueError: it is damaged, nested too deep, or holds a number beyond 64 bits, NaN or inf.

    Example:
        >>> parse_json("[1, 2.5]")
        [1, 2.5]
    """
    try:
        value = json.loads(
            text, parse_constant=_no_number, parse_float=_finite, parse_int=_of_64_bits
        )
        _check_depth(value, _DEEPEST)
    except RecursionError as error:
        raise ValueError(f"it is nested more than {_DEEPEST} levels deep") from error
    return value


def _no_number(text: str) -> NoReturn:
    raise ValueError(f"{text[:40]} is no finite number of 64 bits")


def _finite(text: str) -> float:
    value = float(text)
    return value if math.isfinite(value) else _no_number(text)


def _of_64_bits(text: str) -> int:
    # Python would take the square of the time for a number of a million digits.
    value = int(text) if len(text) <= 20 else 2**64
    return value if abs(value) < 2**63 else _no_number(text)


def _check_depth(value: Any, levels: int) -> None:
    if not isinstance(value, dict | list):
        return
    if levels == 0:
        raise RecursionError
    for item in value.values() if isinstance(value, dict) else value:
        _check_depth(item, levels - 1)
