"""Task families made of other families."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import InitVar, dataclass, replace
from typing import Any

from lightning_dqnlr.checks import NOT_NEGATIVE, POSITIVE, Share, check_number, check_settings
from lightning_dqnlr.errors import ConfigurationError
from lightning_dqnlr.tasks.sampling import Draws, Split, check_range, derive_seed
from lightning_dqnlr.tasks.task import Task, TaskFamily
from lightning_dqnlr.tasks.user import ModuleBuilder


@dataclass(frozen=True)
class Mixture:
    """Draws a family by weight, then that family's task of the same seed and split.

    Example:
        >>> mixture = Mixture([DigitsMLPs(), TableMLPs()], weights=[2.0, 1.0])
        >>> short, long = {"max_horizon": 200}, {"min_horizon": 200}
        >>> mixture = Mixture(mixture.families, [6, 3, 2, 1], variants=[short, long])

    Attributes:
        families: the families to draw from; a configuration may give each a name, in a mapping.
        weights: their relative frequencies; None for equal ones.
        variants: fields to replace in every family. With several variants, the mixture holds all
            families in the first one, then all in the second, and so on.

    Raises:
        ConfigurationError: no families, another mixture among them, a field that a family lacks,
            or weights that do not fit.
    """

    families: Sequence[TaskFamily]
    weights: Sequence[float] | None = None
    variants: InitVar[Sequence[Mapping[str, Any]]] = ({},)

    def __post_init__(self, variants: Sequence[Mapping[str, Any]]) -> None:
        named: Any = self.families
        given = list(named.values() if isinstance(named, Mapping) else named)
        families = [_variant(family, fields) for fields in variants for family in given]
        object.__setattr__(self, "families", families)
        if not families:
            raise ConfigurationError("families must hold at least one task family.")
        if any(isinstance(family, Mixture) for family in families):
            raise ConfigurationError(
                "families must not hold another Mixture: both would choose by the same number. "
                "List its families here, with their weights multiplied."
            )
        if self.weights is None:
            return
        if len(self.weights) != len(families):
            raise ConfigurationError(
                f"weights must have one entry for each of the {len(families)} families, "
                f"got {len(self.weights)}."
            )
        for weight in self.weights:
            check_number("weights", weight, NOT_NEGATIVE)
        check_number("sum(weights)", sum(self.weights), POSITIVE)

    def sample(self, seed: int, split: Split = "train") -> Task:
        """Returns the task of this seed, named after the family it was drawn from."""
        draws = Draws(derive_seed("mixture", split, seed))
        return draws.choice(self.families, self.weights).sample(seed, split)


def _variant(family: Any, fields: Mapping[str, Any]) -> Any:
    try:
        return replace(family, **fields) if fields else family
    except TypeError as error:
        raise ConfigurationError(
            f"variants: {type(family).__name__} lacks one of the fields {sorted(fields)}."
        ) from error


@dataclass(frozen=True)
class SplitTasks:
    """One distribution to train on, another to select and to report on (longer runs, say).

    >>> tasks = SplitTasks(DigitsMLPs(max_horizon=300), DigitsMLPs())

    Attributes:
        train: of the split "train".
        held_out: of the splits "validation" and "test".
    """

    train: TaskFamily
    held_out: TaskFamily

    def sample(self, seed: int, split: Split = "train") -> Task:
        return (self.train if split == "train" else self.held_out).sample(seed, split)


@dataclass(frozen=True)
class OwnTasks:
    """Some tasks, each met again and again with fresh weights, data order and length.

    >>> digits = Task.from_lightning(DigitClassifier, loader, horizon=400)
    >>> tasks = OwnTasks([digits], horizons=(80, 400))

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
    known_horizon_probability: Share | None = None

    def __post_init__(self) -> None:
        names = [task.name for task in self.tasks]
        if not names or len(set(names)) < len(names):
            raise ConfigurationError(
                f"tasks must be at least one, each with a name of its own; got {names}. "
                "Give name= to Task.from_lightning."
            )
        if self.horizons is not None:
            check_range("horizons", self.horizons, "[1, inf)")
        check_settings(self, "")

    def sample(self, seed: int, split: Split = "train") -> Task:
        """Returns the run of this seed; the tasks take turns."""
        draws = Draws(derive_seed("own", split, seed))
        task = self.tasks[seed % len(self.tasks)]
        name = f"{task.name}/{split}/{seed}"
        changes: dict[str, Any] = {"name": name, "seed": seed}
        if isinstance(task.build, ModuleBuilder):
            changes["build"] = replace(task.build, task=name)
        if self.horizons is not None:
            changes["horizon"] = draws.log_integer(*map(int, self.horizons))
        if self.known_horizon_probability is not None:
            changes["known_horizon"] = draws.chance(self.known_horizon_probability)
        return replace(task, **changes)
