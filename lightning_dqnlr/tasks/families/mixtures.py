"""Task families made of other families."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from lightning_dqnlr.errors import ConfigurationError
from lightning_dqnlr.tasks.sampling import Draws, Split, derive_seed
from lightning_dqnlr.tasks.task import Task, TaskFamily
from lightning_dqnlr.tasks.user import ModuleBuilder


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


@dataclass(frozen=True)
class OwnTasks:
    """Some tasks, each met again and again with fresh weights, data order and length.

    The splits share models and data, since those are what the policy is for; they share no initial
    weights and no order of the batches.

    Attributes:
        tasks: made by `Task.from_lightning`, say.
        horizons: lengths are drawn log-uniformly between these two, so that the policy does not
            learn one length by heart; None to keep each task's own.
        known_horizon_probability: share of runs whose length the controller may know; None to
            keep each task's own.

    Raises:
        ConfigurationError: no tasks, or a field out of range.
    """

    tasks: Sequence[Task]
    horizons: Sequence[int] | None = None
    known_horizon_probability: float | None = None

    def __post_init__(self) -> None:
        names = [task.name for task in self.tasks]
        if not names or len(set(names)) < len(names):
            raise ConfigurationError(
                f"tasks must be at least one, each with a name of its own; got {names}. "
                "Give name= to Task.from_lightning."
            )
        bounds = self.horizons
        if bounds is not None and not (len(bounds) == 2 and 1 <= bounds[0] <= bounds[1] < math.inf):
            raise ConfigurationError(f"horizons must be two lengths, low <= high; got {bounds}.")
        share = self.known_horizon_probability
        if share is not None and not 0.0 <= share <= 1.0:
            raise ConfigurationError(f"known_horizon_probability must lie in [0, 1], got {share}.")

    def sample(self, seed: int, split: Split = "train") -> Task:
        """Returns the run of this seed; the tasks take turns."""
        draws = Draws(derive_seed("own", split, seed))
        task = self.tasks[seed % len(self.tasks)]
        name = f"{task.name}/{split}/{seed}"
        build = task.build
        if isinstance(build, ModuleBuilder):
            build = replace(build, task=name)
        horizon, known = task.horizon, task.known_horizon
        if self.horizons is not None:
            horizon = draws.log_integer(int(self.horizons[0]), int(self.horizons[1]))
        if self.known_horizon_probability is not None:
            known = draws.chance(self.known_horizon_probability)
        return replace(
            task, name=name, seed=seed, build=build, horizon=horizon, known_horizon=known
        )
