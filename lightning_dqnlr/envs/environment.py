"""What a learning-rate environment is, whoever runs the inner loop.

One episode is one training run of R replicas in lockstep: `reset` makes the first step at the
start LR, each `step` applies one action per replica and trains to the next decision. A replica
whose loss is no longer finite, and that no circuit breaker brings back, is terminal; the others
are not touched by it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, Protocol

from torch import Tensor

from lightning_dqnlr.control.history import History
from lightning_dqnlr.control.spec import ControllerSpec
from lightning_dqnlr.rl.rewards import TrainingInterval
from lightning_dqnlr.tasks.task import Task


class StepResult(NamedTuple):
    """One transition of every replica.

    Attributes:
        observation: (R, F).
        interval: what it is paid for, (R,) in every field.
    """

    observation: Tensor
    interval: TrainingInterval


class Losses(NamedTuple):
    """Mean losses over whole data sets, in eval mode; both (R,)."""

    train: Tensor
    validation: Tensor


@dataclass(frozen=True)
class LRStart:
    """How the replicas' learning rates begin.

    Args:
        multiplier: (R,) times the controller's safe start; None for 1.
        lr: (R,) an explicit start instead of the safe one ("the user's learning rate").
    """

    multiplier: Tensor | None = None
    lr: Tensor | None = None


@dataclass(frozen=True)
class Terms:
    """What an environment allows.

    Args:
        start: where the learning rates begin.
        circuit_breaker: whether blown-up intervals are undone.
    """

    start: LRStart = LRStart()
    circuit_breaker: bool = True


class Control(Protocol):
    """What may be asked of the control of R replicas; `LRController` has it all."""

    @property
    def spec(self) -> ControllerSpec:
        """Features, actions and decision times."""

    @property
    def step(self) -> int:
        """Optimizer steps made."""

    @property
    def decisions(self) -> int:
        """Intervals observed."""

    @property
    def lr(self) -> Tensor:
        """(R,) the learning rates of the coming steps."""

    @property
    def history(self) -> History:
        """(R,) in every field."""

    @property
    def update_ratio(self) -> Tensor:
        """(R,) ||dtheta|| / ||theta|| in the last interval."""


class LREnvironment(Protocol):
    """R training runs of one task under learning-rate control."""

    task: Task
    alive: Tensor

    @property
    def controller(self) -> Control:
        """The control as it is now."""

    @property
    def finished(self) -> bool:
        """Whether the horizon is reached."""

    def reset(self) -> Tensor:
        """Takes the first step at the start LR; returns the first observation, (R, F)."""

    def step(self, action: Tensor) -> StepResult:
        """Applies actions, int64 (R,), and trains to the next decision."""

    def losses(self) -> Losses:
        """Of the weights as they are; once finished."""

    def close(self) -> None:
        """Gives up what still runs."""


class Engine(Protocol):
    """Runs inner loops: replicas side by side under vmap, or one Trainer after the other."""

    def open(
        self,
        task: Task,
        spec: ControllerSpec,
        seeds: Sequence[int],
        terms: Terms,
    ) -> LREnvironment:
        """An environment of one replica per seed.

        Args:
            task: what to train.
            spec: the controller's specification, shared with the policy.
            seeds: one per replica; fixes initial weights, data order and dropout.
            terms: start and circuit breaker.
        """

    def follow(
        self,
        task: Task,
        seeds: Sequence[int],
        lr: Callable[[int], Tensor],
        steps: int | None = None,
    ) -> Losses:
        """Trains at given learning rates and returns the final losses.

        Args:
            task: what to train.
            seeds: one per replica.
            lr: (R,) learning rates of a step, counted from 0.
            steps: how many; None for the task's horizon.
        """


StartKind = Literal["safe", "user"]
USER_LR_EXPONENTS = (-6.0, 1.0)
