"""`RunHorizon`: how many steps with a loss a Trainer's whole run has."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from typing import Any

from lightning.pytorch import Trainer

from lightning_dqnlr.host.time_limit import TimeLimit
from lightning_dqnlr.host.trainer_queries import horizon_from_here, horizon_of

_SHARE_STEPS = 16  # steps with a loss that the share of steps without one begins with
_LOGGER = logging.getLogger("lightning_dqnlr")


class RunHorizon:
    """Follows the Trainer's estimate, without the share of steps that have no loss.

    A loader without a length has that of its epochs so far, from the second one on. A time limit
    ends the run where the steps so far, over the share of the time that is spent, say so.

    Args:
        trainer: of the run.
        given: the horizon that the user named; None to ask the Trainer.
        saved: what `state_dict` returned, for a resumed run.

    Attributes:
        resumes: whether a resumed run's horizon is the one that was saved.
    """

    def __init__(self, trainer: Trainer, given: int | None, saved: Mapping[str, Any]) -> None:
        self._trainer = trainer
        self._given = given
        self._first_step: int = saved.get("first_step", trainer.global_step)
        self._first_epoch: int = saved.get("first_epoch", trainer.current_epoch)
        self._time = TimeLimit(trainer)
        self._lossless: int = saved.get("lossless", 0)  # steps whose training_step returned None
        self._estimate = given or horizon_of(trainer, self._first_step)
        self.resumes = saved.get("estimate", -1) == self._estimate
        # What was saved counts for data that grew.
        self._steps: int | None = saved["horizon"] if self.resumes else self._estimate

    @property
    def expected(self) -> int | None:
        """The steps with a loss in the whole run, by the share of those without one so far."""
        done = self._trainer.global_step - self._first_step
        steps = self._given or self._steps
        in_time = self._time.left(done)
        if self._given is None and math.isfinite(in_time):
            timed = done + round(in_time)
            steps = timed if steps is None else min(steps, timed)
        if steps is None or not self._lossless:
            return steps
        left = steps - done
        missing = self._lossless * (1 + left / (done + _SHARE_STEPS))
        return max(done - self._lossless + 1, steps - round(missing))

    def moves(self) -> bool:
        """Whether the number of batches, or max_epochs, has changed since the last epoch began."""
        if self._given is not None:
            return False
        estimate = horizon_of(self._trainer, self._first_step)
        steps = self._measured()
        if estimate is not None:
            steps = horizon_from_here(self._trainer, self._first_step)
        # A resumed run's earlier epochs may have had another length. Then the product of epochs
        # and batches, which is the Trainer's estimate, is wrong or has not changed at all.
        moved = steps != self._steps and not self._trainer.fit_loop.restarted_mid_epoch
        if estimate == self._estimate and not moved:
            return False
        self._estimate = estimate
        self._steps = steps
        return True

    def _measured(self) -> int | None:
        """The steps of the run if its epochs go on as long as they were; None in the first one."""
        trainer = self._trainer
        epochs = trainer.current_epoch - self._first_epoch
        if trainer.max_epochs in (None, -1) or epochs < 1:
            return None
        per_epoch = (trainer.global_step - self._first_step) / epochs
        return round(per_epoch * ((trainer.max_epochs or 0) - self._first_epoch))

    def follows_time(self) -> bool:
        """Whether a look at the clock, which is due now and then, tells more of the length."""
        done = self._trainer.global_step - self._first_step
        return self._given is None and self._time.looks(done)

    def shrinks(self) -> bool:
        """Counts a step without a loss; whether it comes off the horizon."""
        self._lossless += 1
        if self._given is not None or self._trainer.world_size > 1:
            return False
        if self._lossless == 1:
            _LOGGER.warning(
                "training_step returned None; such a step does not count, and the horizon shrinks "
                "by the share of them."
            )
        return True

    def state_dict(self) -> dict[str, Any]:
        """Builtins."""
        return {
            "first_step": self._first_step,
            "first_epoch": self._first_epoch,
            "estimate": self._estimate,
            "horizon": self._steps,
            "lossless": self._lossless,
        }
