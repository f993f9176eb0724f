"""`Archive`: records of finished runs in few small files, to be shipped with the repository."""

from __future__ import annotations

import hashlib
import json
import lzma
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from torch.utils import _pytree as pytree

from lightning_dqnlr.bench.runs.record import Record, RunKey, slug
from lightning_dqnlr.bench.runs.versions import stand_in
from lightning_dqnlr.errors import ConfigurationError, RecordError
from lightning_dqnlr.files import write_atomically, write_together

DIGITS = 6  # of losses, curves and seconds; a key's learning rate keeps all of its own
_SUFFIX = ".jsonl.xz"


class Archive:
    """The records of a folder, one file `<task>.jsonl.xz` per task, one record per line.

    Each file is read once, when a record of its task is first asked for. A folder that does not
    exist is empty.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self._read: dict[str, Mapping[RunKey, Record]] = {}

    def get(self, key: RunKey) -> Record | None:
        """The record of this key, or the one that stands in for it; None if there is neither.

        Raises: as `of`.
        """
        found = self.of(key.task)
        return found.get(key) or found.get(_stand_in(key))

    def of(self, task: str) -> Mapping[RunKey, Record]:
        """All records in the file of a task, by key.

        Raises:
            ConfigurationError: the file is damaged.
        """
        name = slug(task)
        if name not in self._read:
            self._read[name] = _load(self.folder / f"{name}{_SUFFIX}")
        return self._read[name]

    def pack(self, records: Iterable[Record], keys: Iterable[RunKey]) -> int:
        """Adds records, and drops those of the same task and method that are superseded.

        The same records give the same bytes. Files are replaced only when all are written.

        What the archive has of a task and method among today's keys, but with a version or a policy
        of none of them, is dropped. The result is how many records the files of these tasks hold.

        Raises:
            ConfigurationError: a file that is there is damaged, or the folder cannot be written.
        """
        today: dict[tuple[str, str], set[tuple[str, str | None]]] = defaultdict(set)
        for key in keys:
            for each in (key, _stand_in(key)):
                today[key.task, key.method].add((each.version, each.policy))
        files: dict[str, dict[RunKey, Record]] = {}
        for task in sorted({task for task, _ in today}):
            files.setdefault(slug(task), dict(self.of(task)))
        for record in records:
            files[slug(record.task)][record.key] = record
        kept = {name: _current(found, today) for name, found in files.items()}
        full = {f"{name}{_SUFFIX}": _dump(found) for name, found in kept.items() if found}
        write_together({self.folder / name: content for name, content in full.items()})
        self._read.clear()
        return sum(map(len, kept.values()))


def _current(
    found: Mapping[RunKey, Record], today: Mapping[tuple[str, str], set[tuple[str, str | None]]]
) -> list[Record]:
    """The records but those that another version or policy has superseded."""
    replaced = {_stand_in(key) for key in found if key != _stand_in(key)}
    return [
        record
        for key, record in found.items()
        if key not in replaced
        and (
            (key.task, key.method) not in today
            or (key.version, key.policy) in today[key.task, key.method]
        )
    ]


def _stand_in(key: RunKey) -> RunKey:
    return key._replace(version=stand_in(key.version))


def _dump(records: Iterable[Record]) -> bytes:
    lines = sorted((json.dumps(record.key), _line(record)) for record in records)
    return lzma.compress("".join(line for _, line in lines).encode(), preset=9)


def _line(record: Record) -> str:
    values = {**pytree.tree_map(_rounded, json.loads(record.to_json())), "lr": record.lr}
    return json.dumps(values, separators=(",", ":"), allow_nan=False) + "\n"


def _rounded(value: Any) -> Any:
    return float(f"{value:.{DIGITS}g}") if isinstance(value, float) else value


def _load(path: Path) -> dict[RunKey, Record]:
    try:
        with lzma.open(path, "rt", encoding="utf-8") as lines:
            records = [Record.from_json(line) for line in lines]
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except (lzma.LZMAError, EOFError, OSError, UnicodeDecodeError, RecordError) as error:
        raise ConfigurationError(
            f"archive: {path} cannot be read ({error}); fetch it again (git checkout), or delete "
            "it and let its runs be made again."
        ) from error
    return {record.key: record for record in records}


class Store:
    """The records of a folder, `<task>/<method>-<hash of the key>.json` each.

    Files are written beside their place and renamed into it, so a kill leaves whole files only,
    and several processes may write to one store. A file that was damaged later, or written by
    another version, counts as missing: its run is made again and replaces it. The archive is asked
    for what the folder does not have, and is never written to.
    """

    def __init__(self, folder: str | Path, archive: Archive | None = None) -> None:
        self.folder = Path(folder)
        self.archive = archive

    def path(self, key: RunKey) -> Path:
        """Where the record of this key lies, or will lie."""
        digest = hashlib.sha256(json.dumps(key).encode()).hexdigest()[:16]
        return self.folder / slug(key.task) / f"{slug(key.method)}-{digest}.json"

    def get(self, key: RunKey) -> Record | None:
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
        """The folder's whole records, of every version and policy, in order of the files' names."""
        for path in sorted(self.folder.glob("*/*.json")):
            record = _read(path)
            if record is not None:
                yield record


def _read(path: Path) -> Record | None:
    try:
        return Record.from_json(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError, UnicodeDecodeError, RecordError):
        return None
