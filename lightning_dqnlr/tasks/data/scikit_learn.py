"""The data sets that come with scikit-learn: handwritten digits, and four tables."""

from functools import lru_cache
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from lightning_dqnlr.errors import needs_package
from lightning_dqnlr.tasks.data.examples import Examples, multiple_of_eight, split_off, standardised
from lightning_dqnlr.tasks.sampling import Draws

DIGITS_HELD_OUT = 360
DIGITS_CLASSES = 10

TableName = Literal["breast_cancer", "wine", "iris", "diabetes"]
TABLE_NAMES: tuple[TableName, ...] = get_args(TableName)


def _load(tasks: str, name: str) -> tuple[Any, Any]:
    """Features (N, columns) and targets (N,) of a data set, as NumPy arrays."""
    with needs_package(f"each {tasks} task", "scikit-learn", "train"):
        import sklearn.datasets
    return getattr(sklearn.datasets, f"load_{name}")(return_X_y=True)


@lru_cache(maxsize=1)
def _shuffled_digits() -> tuple[Tensor, Tensor]:
    inputs, labels = _load("digits", "digits")
    # The file is ordered by writer, so the fixed split must be shuffled.
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    # 0..16 is the file's range of grey values.
    images = torch.tensor(inputs, dtype=torch.float32) / 16.0
    return images[order], torch.tensor(labels, dtype=torch.int64)[order]


def digits(scale: float = 1.0, shape: tuple[int, ...] = (64,)) -> Examples:
    """Returns scikit-learn's 8x8 digits: 1437 examples to train on, 360 for validation.

    Inputs are float32 (N, *shape), grey values in 0..1 times the scale. Labels are int64 (N,). The
    split is always the same, and the tensors are the caller's own.

    Raises:
        MissingPackageError: scikit-learn is not installed.
    """
    images, labels = _shuffled_digits()
    images = (images * scale).reshape(-1, *shape)
    return split_off(len(labels) - DIGITS_HELD_OUT, images, labels.clone())


@lru_cache(maxsize=len(TABLE_NAMES))
def _whole_table(name: TableName) -> tuple[Tensor, Tensor]:
    features, targets = _load("table", name)
    rows = torch.tensor(features, dtype=torch.float32)
    if name == "diabetes":
        return rows, standardised(torch.tensor(targets, dtype=torch.float32)).unsqueeze(1)
    return rows, torch.tensor(targets, dtype=torch.int64)


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
    features, targets = _whole_table(name)
    order = torch.randperm(len(features), generator=draws.generator)
    cut = multiple_of_eight(len(features) * 4 // 5)
    return split_off(cut, standardised(features)[order], targets[order])
