"""Real text that is on every machine: the Python standard library's own sources.

The text differs between Python versions, so these tasks are the same on machines with the same
version only. Which files are used depends on their names and contents, never on the order in which
a file system lists them.
"""

import hashlib
import sysconfig
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from lightning_dqnlr.errors import ConfigurationError
from lightning_dqnlr.tasks.data.examples import Examples, Parts, four_fifths
from lightning_dqnlr.tasks.sampling import Draws, Split

CHARACTERS = "\n" + "".join(map(chr, range(32, 127)))
VOCABULARY = 1 + len(CHARACTERS)  # 0 stands for every other character
SMALLEST_FILE = 20_000  # bytes
# Fifths of the files, by a hash of the name. The other files then stay in their split when another
# version of Python adds or drops one.
FIFTHS: dict[Split, tuple[int, ...]] = {"train": (0, 1, 2), "validation": (3,), "test": (4,)}

_CODE_OF_BYTE = bytes(CHARACTERS.find(chr(byte)) + 1 for byte in range(256))


def source_files(split: Split, folder: Path | None = None) -> tuple[Path, ...]:
    """The `*.py` files of a split, sorted; by default of the running Python's standard library.

    Raises:
        ConfigurationError: there are none (a Python that was installed as bytecode only).
    """
    folder = folder or Path(sysconfig.get_paths()["stdlib"])
    large = [
        path
        for path in sorted(folder.glob("*.py"))
        # Configuration that was written when this Python was built differs by machine.
        if not path.name.startswith("_sysconfig") and path.stat().st_size >= SMALLEST_FILE
    ]
    chosen = tuple(path for path in large if _fifth(path.name) in FIFTHS[split])
    if not chosen:
        raise ConfigurationError(
            f"the text tasks read the Python standard library's sources, but {folder} holds no "
            f"*.py file of at least {SMALLEST_FILE} bytes for the split {split!r}. Install Python "
            "with its sources, or leave the text families out of the task distribution."
        )
    return chosen


@cache
def encode(path: Path) -> Tensor:
    """The file's text as codes int64 (characters,), each in 0..VOCABULARY - 1."""
    text = path.read_text(encoding="utf-8", errors="replace")
    codes = text.encode("latin-1", errors="replace").translate(_CODE_OF_BYTE)
    return torch.tensor(list(codes), dtype=torch.int64)


def draw_files(split: Split, count: int, draws: Draws) -> list[Path]:
    """Draws up to `count` different files of a split."""
    files = source_files(split)
    order = torch.randperm(len(files), generator=draws.generator)[:count].tolist()
    return [files[index] for index in order]


def next_characters(split: Split, length: int, examples: int, draws: Draws) -> Examples:
    """Windows of one to three files, and the same windows one character on; see `next_in`.

    Training windows are from the first four fifths of each file, the others from the rest.
    """
    files = draw_files(split, draws.integer(1, 3), draws)
    texts = zip(*(four_fifths(encode(path)) for path in files), strict=True)
    return next_in(Parts(*map(torch.cat, texts)), length, examples, draws)


def next_in(parts: Parts, length: int, examples: int, draws: Draws) -> Examples:
    """Windows of texts, and the same windows one place on: both int64 (N, T), with T the length.

    The parts are codes (characters,) to train on, and codes to validate with. There are so many
    training examples, and a quarter as many to validate with.
    """
    pairs = []
    for codes, count in zip(parts, (examples, examples // 4), strict=True):
        rows = windows(codes, length + 1, count, draws)
        pairs.append((rows[:, :-1], rows[:, 1:]))
    return Examples(*pairs)


def file_of_window(
    split: Split, classes: int, length: int, buckets: int, examples: int, draws: Draws
) -> Examples:
    """Windows of some files, as hashed pairs of characters; the label names the file.

    Inputs, int64 (N, T), are in 0..buckets - 1, and labels are int64 (N,). There are as many files
    as classes, if the split has so many.
    """
    files = draw_files(split, classes, draws)
    texts = zip(*(four_fifths(encode(path)) for path in files), strict=True)
    pairs = []
    for part, count in zip(texts, (examples, examples // 4), strict=True):
        labels = torch.randint(len(files), (count,), generator=draws.generator)
        rows = torch.stack([windows(text, length + 1, count, draws) for text in part])
        codes = rows[labels, torch.arange(count)]
        pairs.append(((codes[:, :-1] * VOCABULARY + codes[:, 1:]) % buckets, labels))
    return Examples(*pairs)


def windows(codes: Tensor, length: int, count: int, draws: Draws) -> Tensor:
    """Cuts windows (count, length) at random places of a text (characters,)."""
    starts = torch.randint(len(codes) - length + 1, (count,), generator=draws.generator)
    return codes[starts.unsqueeze(1) + torch.arange(length)]


def _fifth(name: str) -> int:
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:4], "big") % 5
