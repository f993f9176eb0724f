"""One real Trainer that can be asked for its next decision, and one that follows a schedule."""

from __future__ import annotations

from collections.abc import Callable
from queue import SimpleQueue
from threading import Thread
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from lightning_dqnlr.control.controller import LRController
from lightning_dqnlr.control.spec import ControllerSpec, StartRate
from lightning_dqnlr.envs.environment import Terms
from lightning_dqnlr.envs.process import RandomStream
from lightning_dqnlr.envs.trainer_data import mean_loss, quiet, task_loader, task_trainer
from lightning_dqnlr.errors import UnsupportedTrainingError
from lightning_dqnlr.host.callback import DQNLRCallback
from lightning_dqnlr.host.group_rates import GroupRates
from lightning_dqnlr.host.schedulers import retire
from lightning_dqnlr.policy.choice import ScriptedPolicy
from lightning_dqnlr.tasks.task import Task


class _Abandoned(Exception):
    """Ends a Trainer that nobody waits for any more."""


class TrainerRun:
    """One Trainer in a thread of its own that halts at every decision; `terms` are its own."""

    def __init__(
        self, task: Task, spec: ControllerSpec, seed: int, terms: Terms, accelerator: str
    ) -> None:
        self._task = task
        self._seed = seed
        self._stream = RandomStream(seed, accelerator)
        self._module = task.build(seed)
        start: StartRate = "auto" if terms.lr is None else "optimizer"
        policy = ScriptedPolicy(self._ask, spec, start, terms.circuit_breaker)
        self._callback = DQNLRCallback(policy, horizon=task.horizon, log=False)
        conditions = Conditions(task, self._callback, terms)
        with quiet():
            self._trainer = task_trainer(
                self._module, task, [conditions, self._callback], accelerator
            )
        self._thread = Thread(target=self._fit, daemon=True, name=f"trainer of seed {seed}")
        # To the Trainer: an action, or None to give up. From it: an observation, None at its end,
        # or what went wrong.
        self._actions: SimpleQueue[int | None] = SimpleQueue()
        self._events: SimpleQueue[Tensor | BaseException | None] = SimpleQueue()

    @property
    def controller(self) -> LRController:
        return self._callback.controller

    def advance(self, action: int | None = None) -> Tensor:
        """Lets the Trainer go on to its next decision; returns the observation, (F,)."""
        observation = self._resume(action)
        if observation is None:
            raise UnsupportedTrainingError(
                f"{type(self._module).__name__} ended its Trainer after {self.controller.step} of "
                f"{self._task.horizon} steps; take out what stops it (configure_callbacks?)."
            )
        return observation

    def evaluate(self, data: Any) -> Tensor:
        """Ends the Trainer; the mean loss over a data set, shape ()."""
        if self._thread.is_alive():
            self._resume(self.controller.spec.actions.keep)
        with self._stream.active():
            return mean_loss(self._module, data)

    def abandon(self) -> None:
        """Ends the Trainer wherever it is."""
        if self._thread.is_alive():
            self._actions.put(None)
            self._thread.join()

    def _resume(self, action: int | None) -> Tensor | None:
        with quiet(), self._stream.active():
            if self._thread.ident is None:
                self._thread.start()
            else:
                self._actions.put(action)
            event = self._events.get()
        if not isinstance(event, Tensor):
            self._thread.join()
        if isinstance(event, BaseException):
            raise event
        return event

    def _ask(self, observation: Tensor) -> Tensor:
        """In the Trainer's thread: hands the observation over and waits for an action."""
        controller = self.controller
        # The last interval ends with the run, whether or not the controller knows when that is.
        controller.interval = min(controller.interval, max(1, self._task.horizon - controller.step))
        self._events.put(observation)
        action = self._actions.get()
        if action is None:
            raise _Abandoned
        return torch.tensor(action)

    def _fit(self) -> None:
        try:
            self._trainer.fit(self._module, task_loader(self._task, self._seed))
            self._events.put(None)
        except BaseException as error:  # handed to the thread that waits, whatever it is
            self._events.put(error)


class Conditions(Callback):
    """Sets up what an environment may know of a run and its callback may not.

    Args:
        task: which may hide its horizon.
        callback: that controls the run; it comes after this one.
        terms: of the run.
    """

    def __init__(self, task: Task, callback: DQNLRCallback, terms: Terms) -> None:
        self._task = task
        self._callback = callback
        self._terms = terms

    # Before the callback looks at the optimizer: the learning rate a user would have set.
    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if len(trainer.optimizers) > 1:
            raise UnsupportedTrainingError(
                f"{type(pl_module).__name__} has {len(trainer.optimizers)} optimizers; a policy "
                "can be trained on modules with one."
            )
        retire(trainer)
        if self._terms.lr is not None:
            GroupRates(trainer.optimizers[0]).set(self._terms.lr.item())

    # After the callback has made its controller, and before the first step.
    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        if trainer.global_step == 0:
            if not self._task.known_horizon:
                self._callback.controller.horizon = None
            if self._terms.multiplier is not None:
                self._callback.controller.start_multiplier = self._terms.multiplier


class RateSetter(Callback):
    """Sets learning rates during a run, by `rates`: those of the optimizer when it starts.

    Schedulers that the module has are retired.
    """

    rates: GroupRates

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        retire(trainer)
        self.rates = GroupRates(trainer.optimizers[0])


class Schedule(RateSetter):
    """Sets the learning rate of every step; the ratios between the groups stay."""

    def __init__(self, lr: Callable[[int], float]) -> None:
        self._lr = lr

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        self.rates.set(self._lr(trainer.global_step))
