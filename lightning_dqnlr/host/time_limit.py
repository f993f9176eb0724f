"""`TimeLimit`: a run that a Timer ends is as far as the share of its time that is spent."""

from __future__ import annotations

import math
from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import Timer

from lightning_dqnlr.host.trainer_queries import is_a

_FIRST_LOOK = 4  # steps; the first one of a run may take long
_GROWTH = 1.05  # of the steps from one look to the next, so that looks are few


class TimeLimit:
    """Estimates a run's length from `Trainer(max_time=...)` or a `Timer` with a duration.

        steps of the run = steps so far / share of the time that is spent

    Args:
        trainer: of the run.

    Example:
        limit = TimeLimit(trainer)
        if limit.looks(steps):
            horizon = steps + limit.left(steps)
    """

    def __init__(self, trainer: Trainer) -> None:
        self._trainer = trainer
        callbacks: list[Any] = trainer.callbacks  # type: ignore[attr-defined]
        timers = [c for c in callbacks if is_a(c, Timer) and c.time_remaining() is not None]
        self._timer = timers[0] if timers else None
        self._next_look = _FIRST_LOOK
        self._total = math.inf  # steps of the run

    @property
    def limited(self) -> bool:
        """Whether there is a limit."""
        return self._timer is not None

    def looks(self, steps: int) -> bool:
        """Looks at the clock, now and then; whether it did.

        Args:
            steps: of the run so far; the same on all processes.
        """
        if self._timer is None or steps < self._next_look:
            return False
        self._next_look = math.ceil(_GROWTH * steps)
        spent = self._timer.time_elapsed()
        whole = spent + max(self._timer.time_remaining(), 0.0)
        # Clocks differ between processes; the rate must not.
        share = self._trainer.strategy.broadcast(spent / whole if whole else 1.0)
        self._total = steps / max(share, 1e-9)
        return True

    def left(self, steps: int) -> float:
        """Steps to the run's end by the last look, at least 1; infinite without a limit."""
        return max(1.0, self._total - steps)
