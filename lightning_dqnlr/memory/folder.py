"""`Memory`: a folder with one file per run, to read, copy, merge and delete as one likes."""

from __future__ import annotations

import logging
import re
import uuid
from dataclasses import dataclass
from pathlib import Path

from lightning_dqnlr.errors import ConfigurationError
from lightning_dqnlr.files import parse_json, read_regular, strict_json, write_atomically
from lightning_dqnlr.memory.runs import RememberedRun

_LOGGER = logging.getLogger("lightning_dqnlr")
_LARGEST_FILE = 1 << 20  # bytes


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
        ConfigurationError: if `folder` is a file.

    Example:
        memory = Memory("lr-memory", name="tagger")
        Trainer(callbacks=[DQNLRCallback(memory=memory)])
    """

    folder: Path
    name: str | None = None

    def __init__(self, folder: str | Path, name: str | None = None) -> None:
        object.__setattr__(self, "folder", Path(folder))
        object.__setattr__(self, "name", name)
        if self.folder.exists() and not self.folder.is_dir():
            raise ConfigurationError(f"memory={str(folder)!r} is a file; name a folder.")

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
        """All runs, the oldest first. Files that are none, or of a later version, are named."""
        found = {}
        for path in sorted(self.folder.glob("*.json")):
            try:
                found[path] = RememberedRun.from_dict(parse_json(read_regular(path, _LARGEST_FILE)))
            except FileNotFoundError:  # deleted a moment ago
                continue
            except (ValueError, OSError) as error:
                _LOGGER.warning("%s cannot be read (%s); it is left out.", path, error)
        return dict(sorted(found.items(), key=lambda item: item[1].date))

    def forget(self, name: str) -> Path:
        """Deletes the run whose file has this name; returns the path.

        Raises:
            ConfigurationError: if there is no such run.
        """
        path = self.folder / Path(name).name
        if path.suffix != ".json" or not path.is_file():
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
