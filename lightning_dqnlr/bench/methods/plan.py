"""`Method`: one way to set the learning rate, and `Plan`: what it changes about a plain run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from lightning.pytorch import Callback
from torch.optim import Optimizer

from lightning_dqnlr.tasks.task import Task


@dataclass(frozen=True)
class Setting:
    """One run to be planned.

    Attributes:
        task: what to train.
        seed: of weights, data order and dropout.
        lr: of the user, or the peak of a schedule; None for that of the module's own optimizer.
        device: kind of device to train on.
    """

    task: Task
    seed: int
    lr: float | None = None
    device: str = "cpu"


def largest_lr(optimizer: Optimizer) -> float:
    """The largest learning rate among the parameter groups."""
    return max(float(group["lr"]) for group in optimizer.param_groups)


@dataclass(frozen=True)
class Plan:
    """What a method adds to a plain run.

    Attributes:
        lr: given to the group with the largest one, the others in proportion; None for the
            module's own.
        optimizer: makes the optimizer to train with from the task's own, whose learning rates are
            set by then; None to keep that.
        scheduler: torch's scheduler, stepped by the Trainer after every optimizer step.
        callbacks: of the Trainer.
        tries: runs that this one costs, with those that choose its learning rate.
        recovers: whether weights that are not finite may become so again.
        lr_of: the learning rate of the step just made, for optimizers that find their own.
        keeps: what the method holds in memory besides its callbacks' states: a tree of tensors.
    """

    lr: float | None = None
    optimizer: Callable[[Optimizer], Optimizer] | None = None
    scheduler: Callable[[Optimizer], Any] | None = None
    callbacks: tuple[Callback, ...] = ()
    tries: int = 1
    recovers: bool = False
    lr_of: Callable[[Optimizer], float] = largest_lr
    keeps: Callable[[], Any] = dict


class Method(Protocol):
    """One way to set the learning rate."""

    @property
    def name(self) -> str:
        """As reports show it."""

    @property
    def tuned(self) -> bool:
        """Whether it needs a peak that somebody has to search for."""

    def plan(self, setting: Setting) -> Plan:
        """What it changes about a run.

        Raises:
            MissingPackageError: if the method's own package is not installed.
            PolicyFileError: if the policy cannot be read.
        """


@runtime_checkable
class Averaging(Protocol):
    """An optimizer that evaluates other weights than it trains (Schedule-Free)."""

    def eval(self) -> None:
        """Puts the averaged weights in place."""

    def train(self) -> None:
        """Puts the weights to be trained back."""
