"""What a learning-rate environment is, whoever runs the inner loop.

One episode is one training run of R replicas in lockstep. `reset` makes the first step at the
start LR. Each `step` applies one action per replica and trains to the next decision. A replica is
terminal once its loss is not finite and no circuit breaker brings it back. The others go on.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from torch import Tensor

from lightning_dqnlr.control.controller import LRController
from lightning_dqnlr.control.spec import ControllerSpec
from lightning_dqnlr.rl.rewards import TrainingInterval
from lightning_dqnlr.tasks.task import Task

StartKind = Literal["safe", "user"]
USER_LR_EXPONENTS = (-6.0, 1.0)
RateSchedule = Callable[[int], Tensor]  # a step, counted from 0 -> learning rates (R,)


class StepResult(NamedTuple):
    """One transition of every replica.

    Attributes:
        observation: (R, F).
        interval: what it is paid for, (R,) in every field.
        action: (R,) int64, what was done: the action given, but where a trial was under way.
    """

    observation: Tensor
    interval: TrainingInterval
    action: Tensor


class Losses(NamedTuple):
    """Mean losses over whole data sets, in eval mode; both (R,)."""

    train: Tensor
    validation: Tensor

    @classmethod
    def over(cls, task: Task, evaluate: Callable[[Any], Tensor]) -> Losses:
        """Evaluates a task's two data sets, the training set first."""
        return cls(evaluate(task.train_data), evaluate(task.validation_data))


@dataclass(frozen=True)
class Terms:
    """How the replicas' learning rates begin, and whether mishaps are undone.

    Args:
        lr: (R,) explicit first learning rates ("the user's"); None for the safe ones.
        multiplier: (R,) times the controller's safe start; None for 1.
        circuit_breaker: whether blown-up intervals are undone.

    Example:
        >>> Terms(lr=torch.tensor([0.1, 0.2])).of(1).lr
        tensor(0.2000)
    """

    lr: Tensor | None = None
    multiplier: Tensor | None = None
    circuit_breaker: bool = True

    def of(self, replica: int) -> Terms:
        """The terms of one replica; lr and multiplier are 0-dim."""
        lr = None if self.lr is None else self.lr[replica]
        multiplier = None if self.multiplier is None else self.multiplier[replica]
        return Terms(lr, multiplier, self.circuit_breaker)


class LREnvironment(ABC):
    """R training runs of one task under learning-rate control.

    Args:
        task: what to train.
        spec: the controller's specification, shared with the policy.
        seeds: one per replica; fixes initial weights, data order and dropout.
        terms: start and circuit breaker.
        device: where to train, and where observations and losses are returned.

    Attributes:
        controller: the control as it is now, of R replicas.
        alive: (R,) bool, whose loss is still finite.

    Raises:
        UnsupportedTrainingError: what cannot be trained this way; names the remedy.
    """

    controller: LRController

    def __init__(
        self,
        task: Task,
        spec: ControllerSpec,
        seeds: Sequence[int],
        terms: Terms,
        device: torch.device | str = "cpu",
    ) -> None:
        self.task = task
        self.device = torch.device(device)
        self.alive = torch.ones(len(seeds), dtype=torch.bool, device=device)
        self._prepare(spec, seeds, terms)

    @abstractmethod
    def _prepare(self, spec: ControllerSpec, seeds: Sequence[int], terms: Terms) -> None:
        """Builds what trains."""

    @property
    def finished(self) -> bool:
        """Whether the horizon is reached."""
        return self.controller.step >= self.task.horizon

    @abstractmethod
    def reset(self) -> Tensor:
        """Takes the first step at the start LR; returns the first observation, (R, F)."""

    def step(self, action: Tensor) -> StepResult:
        """Applies actions, int64 (R,), and trains to the next decision."""
        previous = self.controller.history.loss
        observation = self._advance(action)
        taken = self.controller.taken(action.to(previous.device))
        history = self.controller.history
        self.alive = self.alive & history.loss.isfinite()
        tripped = history.restored > 0
        losses = (previous, history.loss, history.initial_loss)
        return StepResult(observation, TrainingInterval(*losses, tripped, self.alive), taken)

    @abstractmethod
    def _advance(self, action: Tensor) -> Tensor:
        """The observation of the next decision."""

    @abstractmethod
    def evaluate(self, data: Any) -> Tensor:
        """(R,) mean losses over a data set, in eval mode; no step may follow."""

    def losses(self) -> Losses:
        """Of the weights as they are, on the task's training and validation data."""
        return Losses.over(self.task, self.evaluate)

    def close(self) -> None:  # noqa: B027 (nothing runs between two steps of replicas)
        """Gives up what still runs."""


@dataclass(frozen=True)
class Engine(ABC):
    """Runs inner loops: replicas side by side under vmap, or one Trainer after the other.

    Args:
        device: where to train.
    """

    device: str = "cpu"
    _environment: ClassVar[type[LREnvironment]]

    def open(
        self, task: Task, spec: ControllerSpec, seeds: Sequence[int], terms: Terms
    ) -> LREnvironment:
        """An environment of one replica per seed; the arguments are those of `LREnvironment`."""
        return self._environment(task, spec, seeds, terms, self.device)

    @abstractmethod
    def follow(
        self, task: Task, seeds: Sequence[int], lr: RateSchedule, steps: int | None = None
    ) -> Losses:
        """Trains at given learning rates and returns the final losses.

        Args:
            task: what to train.
            seeds: one per replica.
            lr: the learning rates.
            steps: how many; None for the task's horizon.
        """
