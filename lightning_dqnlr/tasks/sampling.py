"""Random draws that depend on nothing but a family's name, a split and a seed."""

import hashlib
import math
from collections.abc import Sequence
from typing import Literal, TypeVar, get_args

import torch
from torch import Tensor

from lightning_dqnlr.checks import POSITIVE, check_choice, check_number
from lightning_dqnlr.errors import ConfigurationError

Split = Literal["train", "validation", "test"]

T = TypeVar("T")


def derive_seed(family: str, split: Split, seed: int) -> int:
    """Returns a 32-bit generator seed that no other split can ever produce.

    torch's CPU generator keeps only the low 32 bits of its seed. With hashing alone two splits
    would meet by chance: the birthday bound is near 2**16 tasks. The two lowest bits therefore name
    the split; the other thirty are a hash of all three arguments.

    Raises:
        ConfigurationError: `split` is not one of the three.
    """
    check_choice("split", split, get_args(Split))
    digest = hashlib.sha256(f"{family}/{split}/{seed}".encode()).digest()
    return int.from_bytes(digest[:4], "big") & ~0b11 | get_args(Split).index(split)


class Draws:
    """Draws from one explicit generator; every scalar draw advances it by exactly one number."""

    def __init__(self, seed: int) -> None:
        self.generator = torch.Generator().manual_seed(seed)

    def uniform(self, low: float, high: float) -> float:
        """Draws uniformly from [low, high)."""
        fraction = torch.rand((), generator=self.generator, dtype=torch.float64).item()
        return low + (high - low) * fraction

    def log_uniform(self, low: float, high: float) -> float:
        """Draws a positive number whose logarithm is uniform on [log low, log high)."""
        return math.exp(self.uniform(math.log(low), math.log(high)))

    def integer(self, low: int, high: int) -> int:
        """Draws uniformly from the integers low, ..., high."""
        return int(self.uniform(low, high + 1))

    def log_integer(self, low: int, high: int) -> int:
        """Draws an integer in low, ..., high, log-uniformly."""
        return min(max(round(self.log_uniform(low, high)), low), high)

    def chance(self, probability: float) -> bool:
        """Returns True with the given probability."""
        return self.uniform(0.0, 1.0) < probability

    def choice(self, options: Sequence[T], weights: Sequence[float] | None = None) -> T:
        """Draws one option, with probability proportional to its weight (equal by default)."""
        remaining = self.uniform(0.0, sum(weights) if weights else len(options))
        for option, weight in zip(options, weights or [1.0] * len(options), strict=True):
            remaining -= weight
            if remaining < 0.0:
                return option
        return options[-1]

    def normal(self, *shape: int) -> Tensor:
        """Draws a standard normal tensor of the given shape."""
        return torch.randn(shape, generator=self.generator)

    def rotation(self, size: int) -> Tensor:
        """Draws an orthogonal matrix, shape (size, size)."""
        orthogonal, _ = torch.linalg.qr(self.normal(size, size))
        return torch.as_tensor(orthogonal)


def check_range(name: str, bounds: Sequence[float], interval: str = POSITIVE) -> None:
    """Raises `ConfigurationError` for what is not two ascending numbers of an interval."""
    for bound in bounds:
        check_number(name, bound, interval)
    if len(bounds) != 2 or bounds[0] > bounds[1]:
        raise ConfigurationError(f"{name} must be two bounds, low <= high; got {list(bounds)}.")
