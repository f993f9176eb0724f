"""`Archive`: records of finished runs in few small files, to be shipped with the repository."""

from __future__ import annotations

import hashlib
import json
import lzma
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from lightning_dqnlr.bench.runs.record import Key, Record, slug
from lightning_dqnlr.errors import ConfigurationError, RecordError
from lightning_dqnlr.files import write_atomically, write_together

CODES = "codes.json"
DIGITS = 6  # of losses, curves and seconds; a key's learning rate keeps all of its own
_SUFFIX = ".jsonl.xz"
Codes = dict[str, dict[str, str]]  # "task/method" to portable hash to code


class Archive:
    """The records of a folder, one file `<task>.jsonl.xz` per task, one record per line.

    Each file is read once, when a record of its task is first asked for. Another file tells by
    portable hashes which code the records are of, for machines that compute other last bits.

    Args:
        folder: one that does not exist is empty.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self._read: dict[str, Mapping[Key, Record]] = {}
        self._known: Codes | None = None

    def get(self, key: Key) -> Record | None:
        """The record of this key; None if there is none.

        Raises:
            ConfigurationError: the task's file is damaged.
        """
        return self.of(key[0]).get(key)

    def of(self, task: str) -> Mapping[Key, Record]:
        """All records in the file of a task, by key.

        Raises:
            ConfigurationError: the file is damaged.
        """
        name = slug(task)
        if name not in self._read:
            self._read[name] = _load(self.folder / f"{name}{_SUFFIX}")
        return self._read[name]

    def code_of(self, task: str, method: str, portable: str) -> str | None:
        """The code of the records of a task and method, if they have this portable hash.

        Raises:
            ConfigurationError: the file of codes is damaged.
        """
        return self._codes().get(f"{task}/{method}", {}).get(portable)

    def _codes(self) -> Codes:
        if self._known is None:
            self._known = _load_codes(self.folder / CODES)
        return self._known

    def pack(
        self,
        records: Iterable[Record],
        keys: Iterable[Key],
        portable: Mapping[Key, str] | None = None,
    ) -> int:
        """Adds records, and drops those of the same task and method that are superseded.

        The same records give the same bytes. Files are replaced only when all are written.

        Args:
            records: to be added; they replace those of the same key.
            keys: of today's runs. What the archive has of a task and method among them, but with
                code or a policy of none of them, is dropped.
            portable: hashes that go with the codes of keys.

        Returns:
            How many records the files of these tasks hold now.

        Raises:
            ConfigurationError: a file that is there is damaged, or the folder cannot be written.
        """
        today: dict[tuple[str, str], set[tuple[str, str | None]]] = defaultdict(set)
        for task, method, _, _, code, policy in keys:
            today[task, method].add((code, policy))
        files: dict[str, dict[Key, Record]] = {}
        for task in sorted({task for task, _ in today}):
            files.setdefault(slug(task), dict(self.of(task)))
        for record in records:
            files[slug(record.task)][record.key] = record
        kept = {name: _current(found, today) for name, found in files.items()}
        written = {
            self.folder / f"{name}{_SUFFIX}": _dump(found) for name, found in kept.items() if found
        }
        codes = dict(self._codes())
        for (task, method, *_, code, _), sketch in (portable or {}).items():
            codes[f"{task}/{method}"] = {sketch: code}
        if codes:
            written[self.folder / CODES] = (
                json.dumps(codes, indent=0, sort_keys=True) + "\n"
            ).encode()
        write_together(written)
        self._read.clear()
        self._known = None
        return sum(map(len, kept.values()))


def _current(
    found: Mapping[Key, Record], today: Mapping[tuple[str, str], set[tuple[str, str | None]]]
) -> list[Record]:
    """The records but those that other code or another policy has superseded."""
    return [
        record
        for (task, method, _, _, code, policy), record in found.items()
        if (task, method) not in today or (code, policy) in today[task, method]
    ]


def _dump(records: Iterable[Record]) -> bytes:
    lines = sorted((json.dumps(record.key), _line(record)) for record in records)
    return lzma.compress("".join(line for _, line in lines).encode(), preset=9)


def _line(record: Record) -> str:
    values = {k: v if k == "lr" else _rounded(v) for k, v in json.loads(record.to_json()).items()}
    return json.dumps(values, separators=(",", ":"), allow_nan=False) + "\n"


def _rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_rounded(item) for item in value]
    return float(f"{value:.{DIGITS}g}") if isinstance(value, float) else value


def _load_codes(path: Path) -> Codes:
    try:
        codes = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except (OSError, ValueError) as error:
        raise ConfigurationError(
            f"archive: {path} cannot be read ({error}); fetch it again (git checkout)."
        ) from error
    return dict(codes)


def _load(path: Path) -> dict[Key, Record]:
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
