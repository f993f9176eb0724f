"""`RunHorizon`: how many steps with a loss a Trainer's whole run has."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from lightning.pytorch import Trainer

from lightning_dqnlr.host.trainer_queries import horizon_from_here, horizon_of

_SHARE_STEPS = 16  # steps with a loss that the share of steps without one begins with
_LOGGER = logging.getLogger("lightning_dqnlr")


class RunHorizon:
    """Follows the Trainer's estimate, without the share of steps that have no loss.

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
        self._lossless: int = saved.get("lossless", 0)  # steps whose training_step returned None
        self._estimate = given or horizon_of(trainer, self._first_step)
        estimate, steps = saved.get("horizons", (-1, -1))
        self.resumes = estimate == self._estimate
        self._steps: int | None = steps if self.resumes else self._estimate  # for data that grew

    @property
    def expected(self) -> int | None:
        """The steps with a loss in the whole run, by the share of those without one so far."""
        if self._steps is None or not self._lossless:
            return self._steps
        done = self._trainer.global_step - self._first_step
        left = self._steps - done
        missing = self._lossless * (1 + left / (done + _SHARE_STEPS))
        return max(done - self._lossless + 1, self._steps - round(missing))

    def moves(self) -> bool:
        """Whether the number of batches, or max_epochs, has changed since the last epoch began."""
        if self._given is not None:
            return False
        estimate = horizon_of(self._trainer, self._first_step)
        steps = estimate and horizon_from_here(self._trainer, self._first_step)
        # A resumed run's earlier epochs may have had another length. Then the product of epochs
        # and batches, which is the Trainer's estimate, is wrong or has not changed at all.
        moved = steps != self._steps and not self._trainer.fit_loop.restarted_mid_epoch
        if estimate == self._estimate and not moved:
            return False
        self._estimate = estimate
        self._steps = steps
        return True

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
            "horizons": [self._estimate, self._steps],
            "lossless": self._lossless,
        }
