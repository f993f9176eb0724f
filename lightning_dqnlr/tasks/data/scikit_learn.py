"""The data sets that come with scikit-learn: handwritten digits, and four tables."""

from functools import lru_cache
from typing import Any, Literal, get_args

import torch

from lightning_dqnlr.errors import needs_package
from lightning_dqnlr.tasks.data.examples import (
    Examples,
    Labelled,
    multiple_of_eight,
    split_off,
    standardised,
)
from lightning_dqnlr.tasks.sampling import Draws

DIGITS_HELD_OUT = 360
DIGITS_CLASSES = 10

TableName = Literal["breast_cancer", "wine", "iris", "diabetes"]
TABLE_NAMES: tuple[TableName, ...] = get_args(TableName)


def _load(tasks: str, name: str) -> Any:
    """A data set: `data` (N, columns) and `target` (N,), as NumPy arrays."""
    with needs_package(f"each {tasks} task", "scikit-learn", "train"):
        import sklearn.datasets
    return getattr(sklearn.datasets, f"load_{name}")()


@lru_cache(maxsize=1)
def _shuffled_digits() -> Labelled:
    file = _load("digits", "digits")
    # The file is ordered by writer, so the fixed split must be shuffled.
    order = torch.randperm(len(file.target), generator=torch.Generator().manual_seed(0))
    # 0..16 is the file's range of grey values.
    images = torch.tensor(file.data, dtype=torch.float32) / 16.0
    return Labelled(images[order], torch.tensor(file.target, dtype=torch.int64)[order])


def digits(scale: float = 1.0, shape: tuple[int, ...] = (64,)) -> Examples:
    """Returns scikit-learn's 8x8 digits: 1437 examples to train on, 360 for validation.

    Inputs are float32 (N, *shape), grey values in 0..1 times the scale. Labels are int64 (N,). The
    split is always the same, and the tensors are the caller's own.

    Raises:
        MissingPackageError: scikit-learn is not installed.
    """
    found = _shuffled_digits()
    images = (found.inputs * scale).reshape(-1, *shape)
    return split_off(len(images) - DIGITS_HELD_OUT, images, found.targets.clone())


@lru_cache(maxsize=len(TABLE_NAMES))
def _whole_table(name: TableName) -> Labelled:
    file = _load("table", name)
    rows = torch.tensor(file.data, dtype=torch.float32)
    if name == "diabetes":
        values = standardised(torch.tensor(file.target, dtype=torch.float32))
        return Labelled(rows, values.unsqueeze(1))
    return Labelled(rows, torch.tensor(file.target, dtype=torch.int64))


def table(name: TableName, draws: Draws) -> Examples:
    """Returns one of scikit-learn's tables, its columns standardised, a fifth of its rows held out.

    Args:
        name: "breast_cancer" (569 rows, 30 columns, 2 classes), "wine" (178, 13, 3) or "iris"
            (150, 4, 3). "diabetes" (442, 10) is a regression on one target.
        draws: decides which rows are held out.

    Returns:
        Inputs (N, columns) float32; labels (N,) int64, or standardised targets (N, 1) float32.

    Raises:
        MissingPackageError: scikit-learn is not installed.
    """
    whole = _whole_table(name)
    order = torch.randperm(len(whole.inputs), generator=draws.generator)
    cut = multiple_of_eight(len(order) * 4 // 5)
    return split_off(cut, standardised(whole.inputs)[order], whole.targets[order])
