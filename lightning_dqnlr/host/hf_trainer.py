"""`DQNLRTrainerCallback`: the learned learning-rate control in a Hugging Face `Trainer`.

The Trainer makes its scheduler in `create_scheduler`, which it lets a subclass override. Here that
method of the one Trainer makes a `DQNLRScheduler` instead. The Trainer then steps, logs, saves and
loads it as its own. Callbacks see no loss, so the Trainer's `training_step` hands its result on.
"""

from __future__ import annotations

import logging
import sys
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lightning_dqnlr.control.breaker import BreakerMode
from lightning_dqnlr.control.spec import StartRate
from lightning_dqnlr.errors import CallOrderError, UnsupportedTrainingError, needs_package
from lightning_dqnlr.host.decisions import DecisionRecord
from lightning_dqnlr.host.earlier_rates import undo
from lightning_dqnlr.host.options import ControlOptions, Place
from lightning_dqnlr.host.run_facts import RunFacts
from lightning_dqnlr.host.scheduler import DQNLRScheduler, unwrapped
from lightning_dqnlr.host.shards import is_sharded
from lightning_dqnlr.host.shown_run import ShownRun
from lightning_dqnlr.policy.choice import Policy
from lightning_dqnlr.policy.policy import as_policy

with needs_package("DQNLRTrainerCallback", "transformers or accelerate", "hf"):
    import accelerate  # noqa: F401  (the Trainer needs it)
    from transformers import Trainer, TrainerCallback

_LOGGER = logging.getLogger("lightning_dqnlr")
_REMEDY = "Use DDP, or Lightning's ModelParallelStrategy with DQNLRCallback."


class DQNLRTrainerCallback(ShownRun, TrainerCallback):
    """Sets the learning rate of a Hugging Face `Trainer`'s optimizer.

    Its `learning_rate`, `lr_scheduler_type` and warm-up no longer matter: training starts at a safe
    rate, and a Q-network raises or lowers it from there. A scheduler that the Trainer is given is
    not stepped. With several parameter groups the ratios between their learning rates are kept.
    Resuming from a checkpoint continues exactly. Gradients are read before `max_grad_norm` clips
    them.

    Args:
        policy: "default" for the bundled policy, the folder of a saved one, `hf://org/name` for one
            on the Hub, or an `LRPolicy`.
        start: "auto" for a safe start independent of `learning_rate`. "optimizer" starts at that
            rate. None is for what the policy was trained with ("auto" for the bundled one).
        horizon: optimizer steps of the whole run; None for the Trainer's number of them.
        min_lr: lower bound of the learning rate (of the parameter group with the largest one).
        max_lr: upper bound.
        circuit_breaker: whether a blown-up interval is undone by going back to the last healthy
            weights, buffers and optimizer state. Two copies of them are then kept. "finite" undoes
            only what is not finite. None for what the policy was trained with.
        epsilon: probability of a random action, for exploration.
        seed: of these random actions.
        snapshot: "device" to keep the breaker's two copies where the weights are, "cpu" to keep
            them in the host's memory.
        save_snapshot: whether checkpoints hold the two copies.

    Raises:
        ConfigurationError: for an argument out of range.
        MissingPackageError: without transformers or accelerate (extra `hf`).
        PolicyFileError: if the policy cannot be read.
        UnsupportedTrainingError: under DeepSpeed, FSDP and tensor parallelism, and if the callback
            joins a Trainer that has already been made.

    Example:
        trainer = Trainer(model, arguments, train_dataset=data, callbacks=[DQNLRTrainerCallback()])
    """

    def __init__(
        self,
        policy: str | Path | Policy = "default",
        *,
        start: StartRate | None = None,
        horizon: int | None = None,
        min_lr: float | None = None,
        max_lr: float | None = None,
        circuit_breaker: BreakerMode | None = None,
        epsilon: float = 0.0,
        seed: int = 0,
        snapshot: Place = "device",
        save_snapshot: bool = False,
    ) -> None:
        self.options = ControlOptions(
            start=start,
            horizon=horizon,
            min_lr=min_lr,
            max_lr=max_lr,
            circuit_breaker=circuit_breaker,
            epsilon=epsilon,
            seed=seed,
            snapshot=snapshot,
            save_snapshot=save_snapshot,
        )
        self.policy = as_policy(policy)
        self._scheduler: DQNLRScheduler | None = None  # of the run
        self._window: Tensor | None = None  # losses of the accumulation window, added up

    @property
    def scheduler(self) -> DQNLRScheduler:
        """The scheduler of the run.

        Raises:
            CallOrderError: before training begins.
        """
        if self._scheduler is None:
            raise CallOrderError("scheduler: there is none before the Trainer begins to train.")
        return self._scheduler

    @property
    def trace(self) -> list[DecisionRecord]:
        """One plain record per decision, as `DQNLRCallback.trace`; empty before training."""
        return [] if self._scheduler is None else self._scheduler.trace

    @property
    def facts(self) -> RunFacts:
        """What is known of the run beside its decisions."""
        return self.scheduler.facts

    def on_init_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Has the Trainer that is being made create our scheduler and hand on its losses."""
        trainer = _trainer_above()
        _check_strategy(trainer)
        trainer.create_scheduler = partial(self._create_scheduler, trainer)
        trainer.training_step = partial(self._training_step, trainer, trainer.training_step)

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Refuses a Trainer that has made its own scheduler."""
        if self._scheduler is None or kwargs.get("lr_scheduler") is not self._scheduler:
            raise UnsupportedTrainingError(
                "DQNLRTrainerCallback joined a Trainer that was made before, so its scheduler is "
                "another. Pass it to the constructor: "
                "Trainer(..., callbacks=[DQNLRTrainerCallback()])."
            )

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Drops what a skipped step has left, and mends the model before anything looks at it."""
        self._window = None
        self.scheduler.forget()
        ends = control.should_training_stop or control.should_epoch_stop
        if ends or control.should_save or control.should_evaluate:
            self.scheduler.secure()

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Mends the model before validation or a checkpoint."""
        self.scheduler.secure()

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Takes the hooks off the optimizer."""
        self.scheduler.close()

    def _create_scheduler(
        self,
        trainer: Trainer,
        num_training_steps: int,
        optimizer: torch.optim.Optimizer | None = None,
    ) -> DQNLRScheduler:
        """Stands in for `Trainer.create_scheduler`."""
        inner = unwrapped(optimizer or trainer.optimizer)
        if any(is_sharded(p) for group in inner.param_groups for p in group["params"]):
            raise UnsupportedTrainingError(
                f"the Trainer shards its weights, which DQNLRTrainerCallback cannot do. {_REMEDY}"
            )
        if trainer.lr_scheduler is not None:  # given by the user, or of an earlier run
            undo(inner, [trainer.lr_scheduler])
        if self._scheduler is not None:
            self._scheduler.close()
        options = dict(vars(self.options), horizon=self.options.horizon or num_training_steps)
        self._scheduler = DQNLRScheduler(inner, self.policy, module=trainer.model, **options)
        _say_what_is_replaced(trainer)
        trainer.lr_scheduler = self._scheduler
        return self._scheduler

    def _training_step(self, trainer: Trainer, original: Any, *args: Any, **kwargs: Any) -> Tensor:
        """Stands in for `Trainer.training_step`; its losses add up to that of an optimizer step."""
        loss: Tensor = original(*args, **kwargs)
        self._window = loss if self._window is None else self._window + loss
        if trainer.accelerator.sync_gradients:
            scaler = trainer.accelerator.scaler
            scaled = scaler is not None and scaler.is_enabled()
            self.scheduler.observe(self._window)
            self.scheduler.look(scaler.get_scale() if scaled else None)
        return loss


def _trainer_above() -> Trainer:
    """The Trainer whose constructor is under way; its callbacks are not told which it is."""
    frame = sys._getframe()
    while frame.f_back is not None:
        frame = frame.f_back
        caller = frame.f_locals.get("self")
        if isinstance(caller, Trainer):
            return caller
    raise UnsupportedTrainingError(
        "DQNLRTrainerCallback works in a transformers.Trainer; in another loop use DQNLRScheduler."
    )


def _check_strategy(trainer: Trainer) -> None:
    """Raises UnsupportedTrainingError where others make the optimizer or cut the weights."""
    for name, found in (
        ("DeepSpeed", trainer.is_deepspeed_enabled),
        ("FSDP", trainer.is_fsdp_enabled),
    ):
        if found:
            raise UnsupportedTrainingError(
                f"the Trainer runs {name}, under which DQNLRTrainerCallback cannot set the "
                f"learning rate. {_REMEDY}"
            )


def _say_what_is_replaced(trainer: Trainer) -> None:
    given = trainer.lr_scheduler
    kind = getattr(trainer.args.lr_scheduler_type, "value", trainer.args.lr_scheduler_type)
    own = given is None or isinstance(given, DQNLRScheduler)
    name = f"lr_scheduler_type={str(kind)!r}" if own else type(given).__name__
    _LOGGER.warning("DQNLRTrainerCallback sets the learning rate in place of %s.", name)
