"""`ManualHorizon`: how many steps each optimizer of a manual loop makes in the whole run."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from lightning.pytorch import Trainer

from lightning_dqnlr.host.time_limit import TimeLimit
from lightning_dqnlr.host.trainer_queries import horizon_of

_BATCHES = 16  # with one step of each optimizer, which the shares of steps begin with


class ManualHorizon:
    """Follows how often each optimizer is stepped, because only the module knows it.

        horizon = steps so far + batches that are left * steps per batch

    `Trainer(max_steps=...)` counts the steps of all optimizers together.

    Args:
        trainer: of the run.
        given: the horizon of each optimizer that the user named; None to ask the Trainer.
        optimizers: how many there are.
        saved: what `state_dict` returned, for a resumed run.

    Attributes:
        steps: of each optimizer so far.
    """

    def __init__(
        self, trainer: Trainer, given: int | None, optimizers: int, saved: Mapping[str, Any]
    ) -> None:
        self._trainer = trainer
        self._given = given
        self._batches: int = saved.get("batches", 0)
        self.steps: list[int] = list(saved.get("steps", [0] * optimizers))
        self._time = TimeLimit(trainer)
        self._known = given is None and horizon_of(trainer, 0) is not None

    def expected(self, index: int) -> int | None:
        """The steps of one optimizer in the whole run; None if its end is unknown."""
        if self._given is not None:
            return self._given
        left = self._batches_left() if self._known else math.inf
        left = min(left, self._time.left(self._batches))
        if math.isinf(left):
            return None
        return max(1, self.steps[index] + round(left * self._per_batch(self.steps[index])))

    def end_batch(self, made: list[int]) -> None:
        """Counts a batch, with the steps that each optimizer has made in it."""
        self._batches += 1
        self._time.looks(self._batches)
        self.steps = [before + more for before, more in zip(self.steps, made, strict=True)]

    def state_dict(self) -> dict[str, Any]:
        """Builtins."""
        return {"batches": self._batches, "steps": list(self.steps)}

    def _per_batch(self, steps: int) -> float:
        return (steps + _BATCHES) / (self._batches + _BATCHES)

    def _batches_left(self) -> float:
        trainer = self._trainer
        left = math.inf
        if trainer.max_epochs not in (None, -1):
            epochs = (trainer.max_epochs or 0) - trainer.current_epoch
            done = trainer.fit_loop.epoch_loop.batch_progress.current.ready
            left = trainer.num_training_batches * epochs - done
        if trainer.max_steps != -1:
            together = sum(self._per_batch(steps) for steps in self.steps)
            left = min(left, (trainer.max_steps - trainer.global_step) / together)
        return max(left, 0.0)
