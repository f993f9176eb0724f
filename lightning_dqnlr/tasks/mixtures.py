"""Task families made of other families."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from lightning_dqnlr.errors import ConfigurationError
from lightning_dqnlr.tasks.sampling import Draws, Split, derive_seed
from lightning_dqnlr.tasks.task import Task, TaskFamily


@dataclass(frozen=True)
class Mixture:
    """Draws a family by weight, then that family's task of the same seed and split.

    Attributes:
        families: the families to draw from.
        weights: their relative frequencies; None for equal ones.

    Raises:
        ConfigurationError: no families, another mixture among them, or weights that do not fit.
    """

    families: Sequence[TaskFamily]
    weights: Sequence[float] | None = None

    def __post_init__(self) -> None:
        if not self.families:
            raise ConfigurationError("families must hold at least one task family.")
        if any(isinstance(family, Mixture) for family in self.families):
            raise ConfigurationError(
                "families must not hold another Mixture, which would choose by the very number "
                "that this one chooses by; list its families here, with their weights multiplied."
            )
        if self.weights is None:
            return
        if len(self.weights) != len(self.families):
            raise ConfigurationError(
                f"weights must have one entry for each of the {len(self.families)} families, "
                f"got {len(self.weights)}."
            )
        finite = all(0.0 <= weight < math.inf for weight in self.weights)
        if not finite or sum(self.weights) <= 0.0:
            raise ConfigurationError(
                f"weights must be finite, not negative and not all 0, got {list(self.weights)}."
            )

    def sample(self, seed: int, split: Split = "train") -> Task:
        """Returns the task of this seed, named after the family it was drawn from."""
        draws = Draws(derive_seed("mixture", split, seed))
        return draws.choice(self.families, self.weights).sample(seed, split)


@dataclass(frozen=True)
class SplitTasks:
    """One distribution to train on, another to select and to report on (longer runs, say).

    Attributes:
        train: of the split "train".
        held_out: of the splits "validation" and "test".
    """

    train: TaskFamily
    held_out: TaskFamily

    def sample(self, seed: int, split: Split = "train") -> Task:
        """Returns the task of this seed from the split's own distribution."""
        return (self.train if split == "train" else self.held_out).sample(seed, split)
