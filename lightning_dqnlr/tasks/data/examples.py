"""Examples to train on and to validate with, and what can be done to either.

Training sets that are cut to size hold a multiple of eight examples. An epoch's last batch is then
never a single example, on which BatchNorm fails.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from lightning_dqnlr.tasks.sampling import Draws


class Labelled(NamedTuple):
    """Inputs and their targets; first dimension = examples."""

    inputs: Tensor
    targets: Tensor


class Examples(NamedTuple):
    """Tuples (inputs, targets) for training and validation; first dimension = examples."""

    train: tuple[Tensor, ...]
    validation: tuple[Tensor, ...]

    @property
    def inputs(self) -> Parts:
        """The inputs of both parts."""
        return Parts(self.train[0], self.validation[0])

    @property
    def targets(self) -> Parts:
        """The targets of both parts."""
        return Parts(self.train[1], self.validation[1])

    def with_targets(self, targets: Tensor) -> Examples:
        """The same inputs, with other targets to train on."""
        return self._replace(train=(self.inputs.train, targets))

    def scaled(self, factor: float) -> Examples:
        """Multiplies the inputs, not the targets."""
        return Examples(*((inputs * factor, *targets) for inputs, *targets in self))


def split_off(cut: int, *tensors: Tensor) -> Examples:
    """Holds out the examples from `cut` on of tensors (N, ...)."""
    return Examples(tuple(t[:cut] for t in tensors), tuple(t[cut:] for t in tensors))


def split_off_a_fifth(*tensors: Tensor) -> Examples:
    """Holds out the last fifth of the examples of tensors (N, ...)."""
    return split_off(len(tensors[0]) * 4 // 5, *tensors)


class Parts(NamedTuple):
    """Data in two: to train on, and for validation; tensors (rows, ...), or pytrees of them."""

    train: Any
    validation: Any


def four_fifths(rows: Tensor) -> Parts:
    """The first four fifths of the rows, and the rest."""
    return Parts(*(part for (part,) in split_off_a_fifth(rows)))


def multiple_of_eight(count: int) -> int:
    """Returns the largest multiple of eight up to `count`."""
    return count - count % 8


def standardised(columns: Tensor) -> Tensor:
    """Returns the columns (N, ...) with mean 0 and standard deviation 1 over the examples."""
    return (columns - columns.mean(0)) / columns.std(0)


def imbalance(labels: Tensor, ratio: float, classes: int, draws: Draws) -> Tensor:
    """Returns indices of examples whose class sizes fall geometrically, as in "long-tailed" data.

    The k-th of C classes, in random order, keeps a share ratio^(-k / (C - 1)) of its examples
    (Cui et al. 2019, arXiv:1901.05555, section 5.1).

    Labels are (N,) int64. Classes that began equally frequent end with this ratio of the most
    frequent to the rarest. The indices are in random order, and their number divides by eight.
    """
    rank = torch.randperm(classes, generator=draws.generator)
    share = ratio ** -(rank / max(1, classes - 1))
    kept = (torch.rand(len(labels), generator=draws.generator) < share[labels]).nonzero()[:, 0]
    kept = kept[torch.randperm(len(kept), generator=draws.generator)]
    return kept[: multiple_of_eight(len(kept))]


def corrupt_labels(labels: Tensor, fraction: float, classes: int, draws: Draws) -> Tensor:
    """Returns labels of which a random `fraction` was drawn anew, uniformly over the classes."""
    chosen = torch.rand(len(labels), generator=draws.generator) < fraction
    random_labels = torch.randint(classes, labels.shape, generator=draws.generator)
    return torch.where(chosen, random_labels, labels)
