"""`StepLoss`: the training loss of one optimizer step, gathered from its batches."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

import torch
from lightning.pytorch import Trainer
from torch import Tensor

from lightning_dqnlr.errors import ConfigurationError

Mode = Literal["min", "max"]
_SKIPS = 64  # steps in a row that a gradient scaler may make an optimizer skip at the start
# Some wrappers get torch's hooks only in `zero_grad`, within their first step.
_SILENT = 1


class Metric(NamedTuple):
    """A metric that stands in for the training loss, and whether it is to fall or to rise."""

    name: str
    mode: Mode

    def read(self, trainer: Trainer) -> Tensor:
        """Its value of the batch under way, shape (); the negative one if it is to rise.

        Raises:
            ConfigurationError: if `training_step` does not log it.
        """
        metrics = trainer.callback_metrics
        if self.name not in metrics:
            raise ConfigurationError(
                f"monitor={self.name!r} is not logged by training_step; the metrics there are: "
                f"{sorted(metrics) or 'none'}. Log it at every step with "
                f"self.log({self.name!r}, loss), or leave monitor out to follow the loss itself."
            )
        value = metrics[self.name].detach().reshape(())
        return -value if self.mode == "max" else value


class StepLoss:
    """Averages the losses of an accumulation window, or reads a metric instead.

    Args:
        monitor: the metric, which `training_step` logs; None for the loss itself.

    Attributes:
        attempted: whether the optimizer has been asked for the step.
    """

    def __init__(self, monitor: Metric | None) -> None:
        self.attempted = False
        self._monitor = monitor
        self._sum: Tensor | None = None  # over the batches that have ended
        self._batches = 0
        self._open: Tensor | None = None  # loss of the batch under way

    @property
    def missing(self) -> bool:
        """Whether no batch so far has had a loss."""
        return self._sum is None and self._monitor is None

    def open_batch(self, trainer: Trainer, loss: Tensor) -> None:
        """Notes the loss that the backward pass begins with."""
        self._open = unscaled(trainer, loss)

    def end_batch(self, trainer: Trainer, outputs: Any) -> None:
        """Adds what `training_step` returned."""
        self._open = None
        loss = outputs.get("loss") if isinstance(outputs, Mapping) else None
        if loss is not None and self._monitor is None:
            self._sum = self._summed(loss, trainer.accumulate_grad_batches)
            self._batches += 1

    def read(self, trainer: Trainer) -> Tensor | None:
        """The step's loss, shape (); None if none of its batches had one."""
        if self._monitor is not None:
            return self._monitor.read(trainer)
        if self._open is None:
            return _mean(self._sum, self._batches)
        return _mean(self._summed(self._open, trainer.accumulate_grad_batches), self._batches + 1)

    def forget(self) -> None:
        """Begins the next step."""
        self._sum = None
        self._batches = 0
        self.attempted = False

    def _summed(self, loss: Tensor, accumulated: int) -> Tensor:
        """Takes a batch's loss, which Lightning has divided, into the sum."""
        loss = loss.detach().reshape(())
        loss = loss if accumulated == 1 else loss.float() * accumulated
        return loss if self._sum is None else self._sum + loss


def _mean(total: Tensor | None, batches: int) -> Tensor | None:
    return total if total is None or batches == 1 else total / batches


def unscaled(trainer: Trainer, loss: Tensor) -> Tensor:
    """The loss that a backward pass begins with, without what a gradient scaler did to it."""
    scaler = getattr(trainer.precision_plugin, "scaler", None)
    loss = loss.detach()
    return loss if scaler is None else loss / scaler.scale(torch.ones_like(loss))


class Skips:
    """Steps in a row, at the start of a run, that were not made: a gradient scaler skips some."""

    def __init__(self) -> None:
        self._count: int | None = 0  # None after the first real step

    def end(self) -> None:
        """Notes that the optimizer has told of a real step."""
        self._count = None

    def one_too_many(self, trainer: Trainer) -> bool:
        """Counts a step that was not made; whether the optimizer does not tell of its steps."""
        if self._count is None:
            return False
        self._count += 1
        scaled = getattr(trainer.precision_plugin, "scaler", None) is not None
        return self._count > (_SKIPS if scaled else _SILENT)
