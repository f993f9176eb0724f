"""`DQNLRCallback`: the learned learning-rate control in a Lightning Trainer.

The callback tells the driver of gradients, optimizer steps and losses at the right moments of
Lightning's loop. The gradients are read in `on_before_optimizer_step`, unscaled and not yet
clipped. Torch's own pre-hook would be too early, because Lightning runs the whole forward and
backward pass inside `optimizer.step`. Torch's post-hook counts the real steps, because
`global_step` also counts those that mixed precision skips. A learning rate set at a batch's end
acts on the next step.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from torch import Tensor

from lightning_dqnlr.control.controller import LRController
from lightning_dqnlr.control.spec import StartRate
from lightning_dqnlr.errors import (
    CallOrderError,
    ConfigurationError,
)
from lightning_dqnlr.host.decisions import DecisionRecord
from lightning_dqnlr.host.driver import OptimizerDriver, silent_optimizer
from lightning_dqnlr.host.options import ControlOptions
from lightning_dqnlr.host.trace import plot_trace, save_trace
from lightning_dqnlr.host.trainer_queries import (
    averages,
    check_training,
    gradient_scale,
    horizon_of,
)
from lightning_dqnlr.policy.choice import Policy
from lightning_dqnlr.policy.policy import as_policy

_SKIPS = 64  # steps in a row that a gradient scaler may make an optimizer skip at the start
_SILENT = 1  # some wrappers get torch's hooks only in `zero_grad`, within their first step


class DQNLRCallback(Callback):
    """Sets the learning rate of a Trainer's optimizer.

    Training starts at a safe learning rate, whatever `configure_optimizers` names, and a Q-network
    raises or lowers it from there. With several parameter groups the ratios between their learning
    rates are kept. Resuming from a checkpoint continues exactly.

    Args:
        policy: "default" for the bundled policy, the folder of a saved one, or an `LRPolicy`.
        start: "auto" for a safe start independent of the optimizer's learning rate, "optimizer" to
            start at that; None for what the policy was trained with ("auto" for the bundled one).
        horizon: optimizer steps of the whole run; None to take them from the Trainer (max_steps,
            or max_epochs times the loader's length). Without either the end of the run is unknown
            and the learning rate has no built-in decay.
        min_lr: lower bound of the learning rate (of the parameter group with the largest one).
        max_lr: upper bound.
        monitor: name of a metric that `training_step` logs at every step. The callback follows it
            instead of the loss that `training_step` returns; it must be a training loss.
        circuit_breaker: whether a blown-up interval is undone by going back to the last healthy
            weights, buffers and optimizer state. Two copies of them are then kept. None for what
            the policy was trained with.
        epsilon: probability of a random action, for exploration.
        seed: of these random actions.
        log: whether to log the learning rate used as "dqnlr/lr", and its decimal logarithm to the
            progress bar, every `log_every_n_steps` steps.

    Raises:
        ConfigurationError: for an argument out of range.
        PolicyFileError: if the policy cannot be read.
        UnsupportedTrainingError: when training starts, if there is not exactly one optimizer, or
            anything else sets the learning rate, or under FSDP and DeepSpeed. After the second
            step, if the optimizer tells of no step.

    Example:
        trainer = Trainer(callbacks=[DQNLRCallback()])
    """

    def __init__(
        self,
        policy: str | Path | Policy = "default",
        *,
        start: StartRate | None = None,
        horizon: int | None = None,
        min_lr: float | None = None,
        max_lr: float | None = None,
        monitor: str | None = None,
        circuit_breaker: bool | None = None,
        epsilon: float = 0.0,
        seed: int = 0,
        log: bool = True,
    ) -> None:
        super().__init__()
        self.options = ControlOptions(
            start=start,
            horizon=horizon,
            min_lr=min_lr,
            max_lr=max_lr,
            circuit_breaker=circuit_breaker,
            epsilon=epsilon,
            seed=seed,
        )
        self.policy = as_policy(policy)
        self.monitor = monitor
        self._logs = log  # Lightning puts its own `log` on callbacks
        self._driver: OptimizerDriver | None = None
        self._trace: list[DecisionRecord] = []
        self._resume: dict[str, Any] = {}  # state of the checkpoint that was restored last
        self._stale = False  # whether driver and checkpoint are those of an earlier call
        self._log_every = 0
        self._first_step = 0  # the Trainer's global_step when control began
        self._loss: Tensor | None = None  # sum over the batches of one optimizer step
        self._batches = 0
        self._attempted = False
        self._skips: int | None = 0  # in a row at the start; None after the first real step

    @property
    def controller(self) -> LRController:
        """The controller of the run.

        Raises:
            CallOrderError: before training begins.
        """
        if self._driver is None:
            raise CallOrderError("controller: there is none before the Trainer begins to train.")
        return self._driver.controller

    @property
    def trace(self) -> list[DecisionRecord]:
        """One plain record per decision.

        Keys: `step`, `loss` (mean of the interval that ended), `lr` (used in it), `next_lr`,
        `multiplier`, `action` (its index), `q_values`, `tripped` (the interval was undone),
        `reason` (in words). Learning rates are those of the group with the largest one.
        """
        return self._trace

    def plot(self, path: str | Path) -> Path:
        """Draws training loss and learning rate over the steps; returns the path.

        Args:
            path: the picture; its suffix chooses the format (png, svg, pdf).

        Raises:
            CallOrderError: before the first decision.
            ConfigurationError: without matplotlib, or if the file cannot be written.
        """
        return plot_trace(self.trace, path)

    def save_trace(self, path: str | Path) -> Path:
        """Writes the trace as CSV, one line per decision; returns the path.

        Raises:
            CallOrderError: before the first decision.
            ConfigurationError: if the file cannot be written.
        """
        return save_trace(self.trace, path)

    # Lightning calls this before it restores a checkpoint and before a finder saves its own.
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage == "fit" and self._stale:
            self._driver = None
            self._resume = {}

    # Lightning restores the optimizer after `on_fit_start`, so everything begins here.
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        check_training(trainer, pl_module)
        self._unhook()
        resume = self._resume
        self._first_step = resume.get("first_step", trainer.global_step)
        horizon = self.options.horizon or horizon_of(trainer, self._first_step)
        driver = OptimizerDriver(
            trainer.optimizers[0],
            self.policy,
            replace(self.options, horizon=horizon),
            module=pl_module,
            averages=averages(trainer),
            across_ranks=trainer.world_size > 1,
        )
        if resume:
            driver.load_state_dict(resume["driver"])
            driver.change_horizon(horizon)
        self._resume = {}
        self._skips = 0
        self._driver = driver
        self._trace = driver.trace
        self._log_every = self._steps_per_log(trainer)
        self._forget_batches()
        driver.watch_steps()

    def on_before_optimizer_step(
        self, trainer: Trainer, pl_module: LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        if self._driver is not None:
            self._attempted = True
            self._driver.before_step(lambda: gradient_scale(trainer, optimizer))

    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        if self._driver is None:
            return
        if self.monitor is None:
            self._add_loss(outputs, trainer.accumulate_grad_batches)
        if self._driver.stepped:
            self._skips = None
            self._finish_step(trainer, pl_module)
        elif self._attempted:  # mixed precision skipped the step
            self._count_skip(trainer)
            self._driver.forget_step()
            self._forget_batches()

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._unhook()

    # A checkpoint that `test` or an already finished `fit` restored is not for the next `fit`.
    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._stale = True

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        self._unhook()
        self._stale = True

    def state_dict(self) -> dict[str, Any]:
        if self._resume or self._driver is None:
            return self._resume
        return {"first_step": self._first_step, "driver": self._driver.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._resume = state_dict
        self._stale = False

    def __getstate__(self) -> dict[str, Any]:
        """Leaves out what belongs to the run: the driver, and Lightning's bound `log` functions."""
        kept = {k: v for k, v in self.__dict__.items() if k not in ("log", "log_dict")}
        return {**kept, "_driver": None, "_loss": None}

    def _add_loss(self, outputs: Any, accumulated: int) -> None:
        """Adds up the losses of an accumulation window; Lightning has divided each of them."""
        loss = outputs.get("loss") if isinstance(outputs, Mapping) else None
        if loss is None:
            return
        loss = loss.detach().reshape(())
        loss = loss if accumulated == 1 else loss.float() * accumulated
        self._loss = loss if self._loss is None else self._loss + loss
        self._batches += 1

    def _finish_step(self, trainer: Trainer, pl_module: LightningModule) -> None:
        assert self._driver is not None
        loss = self._mean_loss() if self.monitor is None else self._monitored(trainer)
        self._forget_batches()
        if loss is None:  # training_step returned None, so there is nothing to count
            self._driver.forget_step()
            return
        used = self._driver.lr
        self._driver.finish_step(loss)
        if self._log_every and trainer.global_step % self._log_every == 0:
            self._log(trainer, pl_module, used)

    def _mean_loss(self) -> Tensor | None:
        """The mean loss of the accumulation window; None without a loss in it."""
        if self._loss is None or self._batches == 1:
            return self._loss
        return self._loss / self._batches

    def _steps_per_log(self, trainer: Trainer) -> int:
        """0 where neither a logger nor a progress bar shows it."""
        heard = bool(trainer.loggers) or trainer.progress_bar_callback is not None
        return max(0, trainer.log_every_n_steps) if self._logs and heard else 0  # type: ignore[attr-defined]

    def _log(self, trainer: Trainer, pl_module: LightningModule, used: float) -> None:
        """Logs where it is seen, because each call costs as much as a small model's step."""
        if trainer.loggers:
            pl_module.log("dqnlr/lr", used, on_step=True, on_epoch=False)
        if trainer.progress_bar_callback is not None:
            power = math.log10(max(used, 1e-30))
            pl_module.log(
                "dqnlr/log10_lr", power, on_step=True, on_epoch=False, prog_bar=True, logger=False
            )

    def _monitored(self, trainer: Trainer) -> Tensor:
        metrics = trainer.callback_metrics
        if self.monitor not in metrics:
            raise ConfigurationError(
                f"monitor={self.monitor!r} is not logged by training_step; the metrics there are: "
                f"{sorted(metrics) or 'none'}. Log it at every step with "
                f"self.log({self.monitor!r}, loss), or leave monitor out to follow the loss itself."
            )
        return metrics[self.monitor].detach().reshape(())

    def _forget_batches(self) -> None:
        self._loss = None
        self._batches = 0
        self._attempted = False

    def _count_skip(self, trainer: Trainer) -> None:
        """Raises UnsupportedTrainingError for an optimizer that steps without telling."""
        if self._skips is None:
            return
        self._skips += 1
        scaled = getattr(trainer.precision_plugin, "scaler", None) is not None
        if self._skips > (_SKIPS if scaled else _SILENT):
            assert self._driver is not None
            raise silent_optimizer(self._driver.optimizer)

    def _unhook(self) -> None:
        if self._driver is not None:
            self._driver.close()
