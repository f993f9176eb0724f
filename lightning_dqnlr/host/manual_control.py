"""`ManualControl`: a run whose `training_step` makes the steps itself, of any number of optimizers.

Each optimizer has a driver of its own, as if it were alone. A step is counted at the end of its
batch, or before the next step of the same optimizer.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor

from lightning_dqnlr.errors import ConfigurationError, silent_optimizer
from lightning_dqnlr.host.decisions import DecisionRecord
from lightning_dqnlr.host.manual_horizon import ManualHorizon
from lightning_dqnlr.host.run_terms import (
    RunTerms,
    close_driver,
    make_driver,
    refuse_or_warn,
    watch_steps,
)
from lightning_dqnlr.host.scaled_rates import ScaledRates
from lightning_dqnlr.host.schedulers import check_same_control, take_over
from lightning_dqnlr.host.step_loss import Metric, Skips, unscaled
from lightning_dqnlr.host.timed_driver import TimedDriver
from lightning_dqnlr.host.trainer_queries import gradient_scale


class ManualControl:
    """Follows the optimizers that a manual loop steps.

    The loss of a step is the metric of `monitor`. Without one it is the sum of what
    `manual_backward` got since the last step, and without that what `training_step` returns.

    Args:
        trainer: of the run, about to train.
        module: that is trained.
        terms: of the control.
        saved: what `state_dict` returned, for a resumed run; empty for a new one.

    Attributes:
        drivers: one for each optimizer.
        trace: one plain record per decision; with several optimizers it has their number as
            `optimizer`.
        comes_down: whether the run's end is settled, whatever the Trainer expects.

    Raises:
        ConfigurationError: if `saved` is of another run, or `monitor` of other optimizers.
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
        self._backward = _BackwardLoss()
        count = len(trainer.optimizers)
        if saved and len(saved["drivers"]) != count:
            raise ConfigurationError(
                f"state: the saved run had {len(saved['drivers'])} optimizers, this one {count}."
            )
        scaled = take_over(trainer, terms.on_scheduler)
        check_same_control(saved, scaled)
        self.comes_down: bool = saved.get("comes_down", False)
        self._horizon = ManualHorizon(trainer, terms.options.horizon, count, saved)
        self._controlled: list[_Controlled] = []
        for index, optimizer in enumerate(trainer.optimizers):
            options = replace(
                terms.options,
                horizon=self._horizon.expected(index),
                seed=terms.options.seed + index,
            )
            own = terms._replace(options=options)
            driver = make_driver(trainer, module, optimizer, own, scaled[index])
            if saved:
                driver.load_state_dict(saved["drivers"][index])
            monitor = terms.monitor_of(index, count)
            self._controlled.append(_Controlled(trainer, driver, monitor, scaled[index]))
        self.drivers = [controlled.driver for controlled in self._controlled]
        self.trace: list[DecisionRecord] = []
        self._traced = [0] * count  # records of each driver that are in the trace
        self._extend_trace()
        for index, controlled in enumerate(self._controlled):
            watch_steps(controlled.driver, controlled.scaled)
            if controlled.driver.stepped:  # saved between a step and the end of its batch
                controlled.take(saved["open_losses"][index])

    def begin_epoch(self) -> None:
        """Does nothing: the horizon is looked at after every batch."""

    def before_backward(self, loss: Tensor) -> None:
        """Notes a loss that a backward pass begins with."""
        self._backward.add(unscaled(self._trainer, loss))

    def before_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Looks at the gradients of a step that is about to be made."""
        for index, controlled in enumerate(self._controlled):
            if controlled.driver.optimizer is optimizer:
                if controlled.driver.stepped:  # the second one within this batch
                    controlled.finish_step(None)
                    self._horizon.steps[index] += 1
                controlled.before_step(self._backward.read())

    def end_batch(self, outputs: Any) -> list[float | None]:
        """Counts the steps that the batch has made.

        Args:
            outputs: what `training_step` returned.

        Returns:
            The learning rate of each optimizer's last step; None where none counts.
        """
        returned = outputs.get("loss") if isinstance(outputs, Mapping) else None
        used = [controlled.end_batch(returned) for controlled in self._controlled]
        self._horizon.end_batch([int(rate is not None) for rate in used])
        if not self.comes_down:
            for index, driver in enumerate(self.drivers):
                driver.controller.horizon = self._horizon.expected(index)
        self._extend_trace()
        return used

    def state_dict(self) -> dict[str, Any]:
        """Tensors and builtins: everything to go on exactly."""
        return {
            **self._horizon.state_dict(),
            "comes_down": self.comes_down,
            **({"scaled": True} if any(c.scaled for c in self._controlled) else {}),
            "open_losses": [
                c.loss(None) if c.driver.stepped and c.attempted else None for c in self._controlled
            ],
            "drivers": [driver.state_dict() for driver in self.drivers],
        }

    def close(self) -> None:
        """Takes the hooks off the optimizers; the trace gets what the run's end has decided."""
        self._extend_trace()
        for controlled in self._controlled:
            close_driver(controlled.driver, controlled.scaled)

    def _extend_trace(self) -> None:
        """Takes over the drivers' new records, those of one time together."""
        several = len(self.drivers) > 1
        new = [
            {"optimizer": index, **record} if several else record
            for index, driver in enumerate(self.drivers)
            for record in driver.trace[self._traced[index] :]
        ]
        self.trace += sorted(new, key=lambda record: record["step"])
        self._traced = [len(driver.trace) for driver in self.drivers]


class _BackwardLoss:
    """The losses that backward passes began with, between one optimizer step and the next."""

    def __init__(self) -> None:
        self._sum: Tensor | None = None
        self._read = False  # by a step; two steps may follow one backward pass

    def add(self, loss: Tensor) -> None:
        loss = loss.reshape(())
        self._sum = loss if self._sum is None or self._read else self._sum + loss
        self._read = False

    def read(self) -> Tensor | None:
        self._read = True
        return self._sum


class _Controlled:
    """One optimizer of a manual loop: its driver, and the step under way."""

    def __init__(
        self,
        trainer: Trainer,
        driver: TimedDriver,
        monitor: Metric | None,
        scaled: ScaledRates | None,
    ) -> None:
        self._trainer = trainer
        self.driver = driver
        self._monitor = monitor
        self.scaled = scaled
        self.attempted = False
        self._backward: Tensor | None = None
        self._skips = Skips()
        self._passed = False  # whether it has been said that a step went past the hooks

    def before_step(self, backward: Tensor | None) -> None:
        self.attempted = True
        self._backward = backward
        self.driver.before_step(lambda: gradient_scale(self._trainer, self.driver.optimizer))

    def end_batch(self, returned: Tensor | None) -> float | None:
        """Counts a step that was made; returns its learning rate."""
        used = None
        if self.driver.stepped and self._seen():
            self._skips.end()
            used = self.finish_step(returned)
        elif self.attempted and self._skips.one_too_many(self._trainer):
            raise silent_optimizer(self.driver.optimizer)
        self.driver.forget_step()
        self.attempted = False
        return used

    def finish_step(self, returned: Tensor | None) -> float:
        used = self.driver.lr
        self.take(self.loss(returned))
        return used

    def take(self, loss: Tensor | None) -> None:
        """Counts a step.

        Raises:
            ConfigurationError: if nothing told its loss.
        """
        if loss is None:
            raise ConfigurationError(
                f"DQNLRCallback finds no loss of {type(self.driver.optimizer).__name__}'s step: "
                "call self.manual_backward(loss) instead of loss.backward(), return the loss from "
                "training_step, or log it and name it with monitor."
            )
        self.driver.finish_step(loss)

    def loss(self, returned: Tensor | None) -> Tensor | None:
        if self._monitor is not None:
            return self._monitor.read(self._trainer)
        if self._backward is not None:
            return self._backward
        return None if returned is None else returned.detach().reshape(())

    def _seen(self) -> bool:
        """Whether the step was made on Lightning's wrapper, which shows the gradients before."""
        if not self.attempted and not self._passed:
            name = type(self.driver.optimizer).__name__
            words = (
                f"training_step steps the {name} inside Lightning's wrapper, so that DQNLRCallback "
                "cannot see the gradients. Call step() of what self.optimizers() returns."
            )
            self._passed = refuse_or_warn(self.driver, words)
        return self.attempted
