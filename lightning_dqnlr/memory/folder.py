"""`Memory`: a folder with one file per run, to read, copy, merge and delete as one likes."""

from __future__ import annotations

import logging
import os
import re
import uuid
from dataclasses import dataclass
from pathlib import Path

from lightning_dqnlr.errors import ConfigurationError, RecordError
from lightning_dqnlr.files import (
    check_writable,
    parse_json,
    read_regular,
    strict_json,
    write_atomically,
)
from lightning_dqnlr.memory.runs import RememberedRun

_LOGGER = logging.getLogger("lightning_dqnlr")
_LARGEST_FILE = 1 << 20  # bytes
_DAMAGED = ".damaged"
_OWN_NAME = re.compile(r".+-\d{14}-[0-9a-f]{8}\.json")  # as `add` names files


@dataclass(frozen=True)
class Memory:
    """The runs that a folder remembers.

    Every run is a file of its own, written whole or not at all. So any number of processes may add
    runs at once. Two folders are merged by copying files, and a run is forgotten by deleting one.

    Args:
        folder: made with the first run.
        name: what the user calls the model; None to go by its class and shapes. Runs with
            different names never share anything.

    Raises:
        ConfigurationError: if `folder` is a file or no path, or `name` no text.

    Example:
        memory = Memory("lr-memory", name="tagger")
        Trainer(callbacks=[DQNLRCallback(memory=memory)])
    """

    folder: Path
    name: str | None = None

    def __init__(self, folder: str | Path, name: str | None = None) -> None:
        if not isinstance(folder, str | os.PathLike) or not os.fspath(folder):
            raise ConfigurationError(f"memory={folder!r} is no folder; name one, as 'lr-memory'.")
        if not isinstance(name, str | None):
            raise ConfigurationError(f"memory: name={name!r} must be text, or None.")
        object.__setattr__(self, "folder", Path(folder))
        object.__setattr__(self, "name", name)
        if self.folder.exists() and not self.folder.is_dir():
            raise ConfigurationError(f"memory={str(folder)!r} is a file; name a folder.")

    def check_writable(self) -> None:
        """Sees that runs can be written.

        Raises:
            ConfigurationError: otherwise.
        """
        check_writable("memory", self.folder)

    def add(self, run: RememberedRun) -> Path:
        """Writes a run; returns its file.

        Raises:
            ConfigurationError: if the folder cannot be written.
        """
        called = re.sub(r"[^\w.-]+", "_", run.model.name)[:40]
        date = re.sub(r"[^\d]", "", run.date)[:14]
        path = self.folder / f"{called}-{date}-{uuid.uuid4().hex[:8]}.json"
        return write_atomically(path, strict_json(run.to_dict(), indent=2).encode())

    def runs(self) -> dict[Path, RememberedRun]:
        """All runs, the oldest first.

        What cannot be read is named in a warning. A damaged run is set aside under another name.
        Runs of a later version, and files that this package has not named, stay where they are.
        """
        found = {}
        for path in sorted(self.folder.glob("*.json")):
            try:
                found[path] = RememberedRun.from_dict(parse_json(read_regular(path, _LARGEST_FILE)))
            except FileNotFoundError:  # deleted a moment ago
                continue
            except (OSError, RecordError) as error:  # it may be sound for somebody else
                _say_left_out(path, error, "stays where it is")
            except ValueError as error:
                _say_left_out(path, error, _set_aside(path))
        return dict(sorted(found.items(), key=lambda item: item[1].date))

    def forget(self, name: str) -> Path:
        """Deletes the run whose file has this name; returns the path.

        Raises:
            ConfigurationError: if there is no such run.
        """
        path = self.folder / Path(name).name
        if path not in self.runs():
            raise ConfigurationError(f"{name!r} is no run in {self.folder}; list them first.")
        path.unlink()
        return path


def as_memory(memory: str | Path | Memory | None) -> Memory | None:
    """The memory that a user's argument stands for.

    Example:
        >>> as_memory("lr-memory").folder.name
        'lr-memory'
    """
    return memory if memory is None or isinstance(memory, Memory) else Memory(memory)


def _say_left_out(path: Path, error: Exception, where: str) -> None:
    _LOGGER.warning("%s cannot be read (%s); it is left out and %s.", path, error, where)


def _set_aside(path: Path) -> str:
    """Renames a damaged run; says where it is now. A user's own file is not touched."""
    aside = path.with_name(path.name + _DAMAGED)
    try:
        if _OWN_NAME.fullmatch(path.name):
            path.rename(aside)
            return f"is kept as {aside.name}"
    except OSError:
        pass
    return "stays where it is"
