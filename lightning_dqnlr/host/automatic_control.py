"""`AutomaticControl`: a run in which Lightning makes the steps, of its one optimizer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor

from lightning_dqnlr.errors import silent_optimizer
from lightning_dqnlr.host.run_horizon import RunHorizon
from lightning_dqnlr.host.run_terms import (
    RunTerms,
    close_driver,
    make_driver,
    refuse_or_warn,
    watch_steps,
)
from lightning_dqnlr.host.schedulers import check_same_control, take_over
from lightning_dqnlr.host.step_loss import Skips, StepLoss
from lightning_dqnlr.host.trainer_queries import gradient_scale


class AutomaticControl:
    """Follows one optimizer, whose step ends with its batch.

    Args:
        trainer: of the run, about to train.
        module: that is trained.
        terms: of the control.
        saved: what `state_dict` returned, for a resumed run; empty for a new one.

    Attributes:
        drivers: the one of the optimizer.
        trace: one plain record per decision.
        comes_down: whether the run's end is settled, whatever the Trainer expects.

    Raises:
        ConfigurationError: if `saved` is of another run.
        UnsupportedTrainingError: for an optimizer that cannot be controlled.
    """

    def __init__(
        self,
        trainer: Trainer,
        module: LightningModule,
        terms: RunTerms,
        saved: Mapping[str, Any],
    ) -> None:
        self._trainer = trainer
        self._module = module
        scaled = take_over(trainer, terms.on_scheduler)
        check_same_control(saved, scaled)
        self._scaled = scaled[0]
        self.comes_down: bool = saved.get("comes_down", False)
        self._horizon = RunHorizon(trainer, terms.options.horizon, saved)
        self._loss = StepLoss(terms.monitor_of(0, 1))
        self._skips = Skips()
        self._passed = False  # whether it has been said that a step went past the hooks
        terms = terms._replace(options=replace(terms.options, horizon=self._horizon.expected))
        optimizer = trainer.optimizers[0]
        self._driver = make_driver(trainer, module, optimizer, terms, self._scaled)
        self.drivers = [self._driver]
        self.trace = self._driver.trace
        if saved:
            self._driver.load_state_dict(saved["driver"])
            if not (self._horizon.resumes or self.comes_down):
                self._driver.change_horizon(self._horizon.expected)
        watch_steps(self._driver, self._scaled)
        if self._driver.stepped:  # saved between a step and the end of its batch
            self._take(saved.get("open_loss"))

    def begin_epoch(self) -> None:
        """Follows a number of batches, or epochs, that has changed."""
        if self._horizon.moves() and not self.comes_down:
            self._driver.change_horizon(self._horizon.expected)

    def before_backward(self, loss: Tensor) -> None:
        """Notes a loss that a backward pass begins with."""
        self._loss.open_batch(self._trainer, loss)

    def before_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Looks at the gradients of a step that is about to be made."""
        self._loss.attempted = True
        self._driver.before_step(lambda: gradient_scale(self._trainer, optimizer))

    def end_batch(self, outputs: Any) -> list[float | None]:
        """Counts the step that the batch may have ended.

        Args:
            outputs: what `training_step` returned.

        Returns:
            The learning rate of each optimizer's step; None where none counts.
        """
        self._loss.end_batch(self._trainer, outputs)
        if self._horizon.follows_time() and not self.comes_down:
            self._driver.controller.horizon = self._horizon.expected
        if self._driver.stepped:
            self._skips.end()
            self._check_passed()
            return [self._finish_step()]
        if self._loss.attempted:  # mixed precision skipped the step
            if self._loss.missing:
                self._count_lossless()
            elif self._skips.one_too_many(self._trainer):
                raise silent_optimizer(self._driver.optimizer)
            self._driver.forget_step()
            self._loss.forget()
        return [None]

    def state_dict(self) -> dict[str, Any]:
        """Tensors and builtins: everything to go on exactly."""
        return {
            **self._horizon.state_dict(),
            "comes_down": self.comes_down,
            **({"scaled": True} if self._scaled else {}),
            "open_loss": self._loss.read(self._trainer) if self._driver.stepped else None,
            "driver": self._driver.state_dict(),
        }

    def close(self) -> None:
        """Takes the hooks off the optimizer."""
        close_driver(self._driver, self._scaled)

    def _finish_step(self) -> float | None:
        loss = self._loss.read(self._trainer)
        self._loss.forget()
        if loss is None:
            self._count_lossless()
        used = self._driver.lr
        self._take(loss)
        return None if loss is None else used

    def _take(self, loss: Tensor | None) -> None:
        """Counts a step; one whose training_step returned None has nothing to count."""
        if loss is None:
            self._driver.forget_step()
        else:
            self._driver.finish_step(loss)

    def _count_lossless(self) -> None:
        """Takes the steps without a loss off the horizon, which counts those with one."""
        if self._horizon.shrinks() and not self.comes_down:
            self._driver.controller.horizon = self._horizon.expected

    def _check_passed(self) -> None:
        """Raises UnsupportedTrainingError for a first step that Lightning did not make."""
        if self._loss.attempted or self._passed:
            return
        words = (
            f"{type(self._module).__name__}.optimizer_step steps the optimizer inside Lightning's "
            "wrapper, so that DQNLRCallback cannot see the gradients. Call "
            "optimizer.step(closure=optimizer_closure) on the wrapper, or super().optimizer_step."
        )
        self._passed = refuse_or_warn(self._driver, words)
