"""`Store`: one small JSON file per run, so that what was done once need not be done again."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

from lightning_dqnlr.bench.archive import Archive
from lightning_dqnlr.bench.record import Key, Record, slug
from lightning_dqnlr.errors import RecordError
from lightning_dqnlr.files import write_atomically


class Store:
    """The records of a folder, `<task>/<method>-<hash of the key>.json` each.

    Files are written beside their place and renamed into it, so a kill leaves whole files only,
    and several processes may write to one store. A file that was damaged later, or written by
    another version, counts as missing: its run is made again and replaces it.

    Args:
        folder: need not exist yet.
        archive: asked for what the folder does not have; never written to.
    """

    def __init__(self, folder: str | Path, archive: Archive | None = None) -> None:
        self.folder, self.archive = Path(folder), archive

    def path(self, key: Key) -> Path:
        """Where the record of this key lies, or will lie."""
        task, method, *_ = key
        digest = hashlib.sha256(json.dumps(key).encode()).hexdigest()[:16]
        return self.folder / slug(task) / f"{slug(method)}-{digest}.json"

    def has(self, key: Key) -> bool:
        """Whether the run of this key is there, and whole; errors as `get`."""
        return self.get(key) is not None

    def get(self, key: Key) -> Record | None:
        """The record of this key, else the archive's; None if it is missing or damaged.

        Raises:
            ConfigurationError: the archive's file is damaged.
        """
        record = _read(self.path(key))
        if record is not None and record.key == key:
            return record
        return None if self.archive is None else self.archive.get(key)

    def put(self, record: Record) -> Path:
        """Writes a record over whatever was there under its key; returns the file.

        Raises:
            ConfigurationError: the folder cannot be written or the disk is full.
        """
        return write_atomically(self.path(record.key), record.to_json().encode())

    def records(self) -> Iterator[Record]:
        """The folder's whole records, of every code and policy, in order of the files' names."""
        for path in sorted(self.folder.glob("*/*.json")):
            record = _read(path)
            if record is not None:
                yield record


def _read(path: Path) -> Record | None:
    try:
        return Record.from_json(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError, UnicodeDecodeError, RecordError):
        return None
