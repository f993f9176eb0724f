"""Has progress ended? `ValidationWatch` asks a validation metric, `LossWatch` the training loss."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from torch import Tensor

from lightning_dqnlr.host.step_loss import Metric, Mode
from lightning_dqnlr.host.trainer_queries import is_a

_LEAST_CHECKS = 5  # in a row without a new best
_SHARE = 0.25  # of all checks so far, that many in a row
_LEAST_STEPS = 200  # of a run that has stopped falling
_LEAST_FALL = 0.01  # of the compressed loss
_LOGGER = logging.getLogger("lightning_dqnlr")


class ValidationWatch:
    """Follows one metric of the validations, in constant memory.

    It has turned for good when a quarter of all checks, and at least five, in a row brought no new
    best. Their mean is to be worse than the best by two standard deviations of their noise. The
    training loss is to have gone on falling. The variance of the noise is half the mean
    square of the differences between successive checks.

    Args:
        name: of the metric, as it is logged.
        mode: "max" if it is to rise.

    Attributes:
        best: smallest value so far, the negative one if the metric is to rise.
        turned: whether it has turned for good.

    Example:
        >>> import torch
        >>> watch = ValidationWatch("val_loss", "min")
        >>> for loss, level in zip([3, 2, 2.5, 2.6, 2.5, 2.6, 2.7], range(9, 2, -1)):
        ...     watch.add({"val_loss": torch.tensor(loss)}, torch.tensor(float(level)))
        >>> watch.best, watch.turned
        (2.0, True)
    """

    def __init__(self, name: str, mode: Mode) -> None:
        self._name = name
        self._sign = -1.0 if mode == "max" else 1.0
        self._missed = False  # whether it has been said that the metric is not there
        self.best = math.inf
        self._checks = 0
        self._since = 0  # checks since the best one
        self._sum_since = 0.0
        self._last = math.nan
        self._squares_since = 0.0  # of the differences between them
        self._best_level = math.inf  # training loss, compressed, at the best check
        self.turned = False

    def add(self, metrics: Mapping[str, Tensor], level: Tensor) -> None:
        """Takes in a validation.

        Args:
            metrics: all that the Trainer knows, by name.
            level: the training loss of the last interval, compressed, shape ().
        """
        if self._name not in metrics:
            self._say_that_it_is_missing(metrics)
            return
        value = self._sign * float(metrics[self._name])
        if not math.isfinite(value):
            return
        self._checks += 1
        if value < self.best:
            self._begin_anew(value, float(level))
        else:
            self._count(value)
        self.turned = self._has_turned(float(level))

    def state_dict(self) -> dict[str, Any]:
        """Builtins."""
        return {k: v for k, v in vars(self).items() if k not in ("_name", "_sign", "_missed")}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restores what `state_dict` returned."""
        vars(self).update(state)

    def _begin_anew(self, best: float, level: float) -> None:
        self.best = best
        self._best_level = level
        self._since = 0
        self._sum_since = 0.0
        self._squares_since = 0.0

    def _count(self, value: float) -> None:
        if self._since:
            change = value - self._last
            self._squares_since += change * change  # `change**2` raises on overflow
        self._since += 1
        self._sum_since += value
        self._last = value

    def _has_turned(self, level: float) -> bool:
        if self._since < max(_LEAST_CHECKS, math.ceil(_SHARE * self._checks)):
            return False
        worse = self._sum_since / self._since - self.best
        noise = math.sqrt(self._squares_since / (self._since - 1) / 2)
        return worse > 2 * noise and level < self._best_level

    def _say_that_it_is_missing(self, metrics: Mapping[str, Tensor]) -> None:
        if not self._missed:
            names = sorted(metrics) or "none"
            words = "%r is to tell how validation goes, but is not logged; the metrics are %s."
            _LOGGER.warning(words, self._name, names)
        self._missed = True


class LossWatch:
    """Whether the training loss of a run without a known end has stopped falling.

    It has when no decision of the second half of all steps brought a loss that is lower than
    before by more than 1%.

    Example:
        >>> watch = LossWatch()
        >>> [watch.ended(level, step) for level, step in ((1.0, 300), (0.999, 599), (0.999, 600))]
        [False, False, True]
    """

    def __init__(self) -> None:
        self._best = math.inf  # the level
        self._best_step = 0

    def ended(self, level: float, step: int) -> bool:
        """Takes in a decision; whether progress has ended.

        Args:
            level: compressed loss of the interval before it.
            step: of the decision.
        """
        if level < self._best - _LEAST_FALL:
            self._best = level
            self._best_step = step
        return step >= max(_LEAST_STEPS, 2 * self._best_step)

    def state_dict(self) -> dict[str, Any]:
        """Builtins."""
        return dict(vars(self))

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restores what `state_dict` returned."""
        vars(self).update(state)


def watch_of(
    trainer: Trainer, on_early_stop: str, validate: str | None, mode: Mode
) -> ValidationWatch | None:
    """The watch of a run; None if nothing is to be watched, or EarlyStopping does it.

    Args:
        trainer: of the run.
        on_early_stop: "anneal" where the patience of EarlyStopping counts.
        validate: the metric that the user named; None for that of ModelCheckpoint.
        mode: of the metric that the user named.

    Example:
        watch = watch_of(trainer, "anneal", "val_loss", "min")
    """
    if validate is not None:
        return ValidationWatch(validate, mode)
    callbacks: list[Any] = trainer.callbacks  # type: ignore[attr-defined]
    if on_early_stop == "anneal" and any(is_a(c, EarlyStopping) for c in callbacks):
        return None
    named = [c for c in callbacks if is_a(c, ModelCheckpoint) and c.monitor is not None]
    return ValidationWatch(named[0].monitor, named[0].mode) if named else None


def judged_by(trainer: Trainer, validate: str | None, mode: Mode) -> Metric | None:
    """The validation metric that a run is judged by; None if there is none.

    It is the one that the user named, else that of EarlyStopping or ModelCheckpoint.

    Args:
        trainer: of the run.
        validate: the metric that the user named.
        mode: of that one.

    Example:
        judged_by(trainer, None, "min")
    """
    if validate is not None:
        return Metric(validate, mode)
    callbacks: list[Any] = trainer.callbacks  # type: ignore[attr-defined]
    watching = [c for kind in (EarlyStopping, ModelCheckpoint) for c in callbacks if is_a(c, kind)]
    named = [c for c in watching if c.monitor is not None]
    return Metric(named[0].monitor, named[0].mode) if named else None
