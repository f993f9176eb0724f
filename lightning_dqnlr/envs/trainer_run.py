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
from lightning_dqnlr.envs.environment import Losses
from lightning_dqnlr.envs.process import RandomStream
from lightning_dqnlr.envs.trainer_data import module_losses, quiet, task_loader, task_trainer
from lightning_dqnlr.errors import UnsupportedTrainingError
from lightning_dqnlr.host.callback import DQNLRCallback
from lightning_dqnlr.host.group_rates import GroupRates
from lightning_dqnlr.policy.choice import ScriptedPolicy
from lightning_dqnlr.tasks.task import Task


class _Abandoned(Exception):
    """Ends a Trainer that nobody waits for any more."""


class TrainerRun:
    """One Trainer in a thread of its own that halts at every decision.

    Args:
        task: what to train.
        spec: the controller's specification.
        seed: of weights, data order and dropout.
        conditions: of this run.
        circuit_breaker: whether blown-up intervals are undone.
        accelerator: of the Trainer.
    """

    def __init__(
        self,
        task: Task,
        spec: ControllerSpec,
        seed: int,
        conditions: Conditions,
        circuit_breaker: bool,
        accelerator: str,
    ) -> None:
        self._task, self._seed = task, seed
        self._stream = RandomStream(seed, accelerator)
        self._module = task.build(seed)
        start: StartRate = "optimizer" if conditions.lr is not None else "auto"
        policy = ScriptedPolicy(self._ask, spec, start, circuit_breaker)
        self._callback = conditions.callback = DQNLRCallback(
            policy, horizon=task.horizon, log=False
        )
        with quiet():
            self._trainer = task_trainer(task, [conditions, self._callback], accelerator)
        self._thread = Thread(target=self._fit, daemon=True, name=f"trainer of seed {seed}")
        self._started = False
        # To the Trainer: an action, or None to give up. From it: an observation, None at its end,
        # or what went wrong.
        self._actions: SimpleQueue[int | None] = SimpleQueue()
        self._events: SimpleQueue[Tensor | BaseException | None] = SimpleQueue()

    @property
    def controller(self) -> LRController:
        """Of the callback."""
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

    def finish(self) -> Losses:
        """Ends the Trainer, and evaluates."""
        if self._thread.is_alive():
            self._resume(self.controller.spec.actions.keep)
        with self._stream.active():
            return module_losses(self._module, self._task)

    def abandon(self) -> None:
        """Ends the Trainer wherever it is."""
        if self._thread.is_alive():
            self._actions.put(None)
            self._thread.join()

    def _resume(self, action: int | None) -> Tensor | None:
        with quiet(), self._stream.active():
            if self._started:
                self._actions.put(action)
            else:
                self._started = True
                self._thread.start()
            event = self._events.get()
        if isinstance(event, BaseException):
            self._thread.join()
            raise event
        if event is None:
            self._thread.join()
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
    """Sets up what an environment may know of a run and its callback may not."""

    def __init__(self, task: Task, lr: float | None, multiplier: float | None) -> None:
        self._task, self.lr, self._multiplier = task, lr, multiplier
        self.callback: DQNLRCallback | None = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Before the callback looks at the optimizer: the learning rate a user would have set."""
        if self.lr is not None:
            GroupRates(trainer.optimizers[0]).set(self.lr)

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """After the callback has made its controller, and before the first step."""
        if trainer.global_step == 0 and self.callback is not None:
            if not self._task.known_horizon:
                self.callback.controller.horizon = None
            if self._multiplier is not None:
                self.callback.controller.start_multiplier = torch.tensor(self._multiplier)


class Schedule(Callback):
    """Sets the learning rate of every step."""

    def __init__(self, lr: Callable[[int], float]) -> None:
        self._lr = lr
        self._rates: GroupRates | None = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Remembers the ratios between the groups."""
        self._rates = GroupRates(trainer.optimizers[0])

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Before the step."""
        assert self._rates is not None
        self._rates.set(self._lr(trainer.global_step))
