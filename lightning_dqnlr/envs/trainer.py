"""Learning-rate control of real Trainers, for modules that replicas cannot carry.

Each replica is a `Trainer.fit` with a `DQNLRCallback`, in a thread of its own that halts at every
decision: a Trainer owns its loop, an environment wants to be asked. One thread runs at a time, and
each draws from a random state of its own, so that a run is the same as if it were alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from lightning_dqnlr.control.history import History
from lightning_dqnlr.control.spec import ControllerSpec
from lightning_dqnlr.envs.environment import Losses, StepResult, Terms
from lightning_dqnlr.envs.process import RandomStream, interruptible
from lightning_dqnlr.envs.trainer_data import module_losses, quiet, task_loader, task_trainer
from lightning_dqnlr.envs.trainer_run import Conditions, Schedule, TrainerRun
from lightning_dqnlr.rl.rewards import TrainingInterval
from lightning_dqnlr.tasks.task import Task


class TrainerLREnv:
    """R training runs of one task under learning-rate control; see `LREnvironment`.

    Args:
        task: what to train.
        spec: the controller's specification, shared with the policy.
        seeds: one per replica.
        terms: start and circuit breaker.
        device: where to train, and where observations and losses are returned.
    """

    def __init__(
        self,
        task: Task,
        spec: ControllerSpec,
        seeds: Sequence[int],
        terms: Terms,
        device: torch.device | str = "cpu",
    ) -> None:
        self.task = task
        conditions = [
            Conditions(task, _entry(terms.start.lr, i), _entry(terms.start.multiplier, i))
            for i in range(len(seeds))
        ]
        self._runs = [
            TrainerRun(task, spec, seed, each, terms.circuit_breaker, torch.device(device).type)
            for seed, each in zip(seeds, conditions, strict=True)
        ]
        self._device = torch.device(device)
        self.controller = Together(spec, self._runs, self._device)
        self.alive = torch.ones(len(seeds), dtype=torch.bool, device=device)

    @property
    def finished(self) -> bool:
        """Whether the horizon is reached."""
        return self.controller.step >= self.task.horizon

    def reset(self) -> Tensor:
        """Takes the first step at the start LR; returns the first observation, (R, F)."""
        return torch.stack([run.advance() for run in self._runs]).to(self._device)

    def step(self, action: Tensor) -> StepResult:
        """Applies actions, int64 (R,), and trains to the next decision."""
        previous = self.controller.history.loss
        actions = action.tolist()
        rows = [run.advance(chosen) for run, chosen in zip(self._runs, actions, strict=True)]
        history = self.controller.history
        self.alive = self.alive & history.loss.isfinite()
        interval = TrainingInterval(
            previous, history.loss, history.initial_loss, history.restored > 0, self.alive
        )
        return StepResult(torch.stack(rows).to(self._device), interval)

    def losses(self) -> Losses:
        """Of the weights as they are, over the whole data sets; ends the Trainers."""
        return _stacked([run.finish() for run in self._runs], self._device)

    def close(self) -> None:
        """Ends the Trainers, wherever they are."""
        for run in self._runs:
            run.abandon()


@dataclass(frozen=True)
class TrainerEngine:
    """One real Trainer per replica; an `Engine`. Slower than replicas, and carries any module.

    Args:
        device: where to train.

    Example:
        >>> env = TrainerEngine().open(task, ControllerSpec(), (0, 1), Terms())  # doctest: +SKIP
        >>> env.step(torch.tensor([3, 6])).interval.loss  # doctest: +SKIP
    """

    device: str = "cpu"

    def open(
        self,
        task: Task,
        spec: ControllerSpec,
        seeds: Sequence[int],
        terms: Terms,
    ) -> TrainerLREnv:
        """An environment of one replica per seed; see `Engine.open`."""
        return TrainerLREnv(task, spec, seeds, terms, self.device)

    def follow(
        self,
        task: Task,
        seeds: Sequence[int],
        lr: Callable[[int], Tensor],
        steps: int | None = None,
    ) -> Losses:
        """Trains at given learning rates; see `Engine.follow`."""
        rows = []
        for index, seed in enumerate(seeds):
            module = task.build(seed)
            stream = RandomStream(seed, self.device)
            schedule = Schedule(lambda step, index=index: lr(step)[index].item())  # type: ignore[misc]
            with interruptible(), quiet(), stream.active():
                if steps is None or steps > 0:
                    trainer = task_trainer(task, [schedule], torch.device(self.device).type, steps)
                    trainer.fit(module, task_loader(task, seed))
                rows.append(module_losses(module, task))
        return _stacked(rows, torch.device(self.device))


class Together:
    """The controllers of several runs, read as one; a `Control`."""

    def __init__(
        self, spec: ControllerSpec, runs: Sequence[TrainerRun], device: torch.device
    ) -> None:
        self.spec = spec
        self._runs = runs
        self._device = device

    @property
    def step(self) -> int:
        """Optimizer steps made by each run."""
        return max(run.controller.step for run in self._runs)

    @property
    def decisions(self) -> int:
        """Intervals observed."""
        return self._runs[0].controller.decisions

    @property
    def lr(self) -> Tensor:
        """(R,) the learning rates of the coming steps."""
        return self._stack([run.controller.lr for run in self._runs])

    @property
    def history(self) -> History:
        """(R,) in every field."""
        rows = [run.controller.history for run in self._runs]
        names = [field.name for field in fields(History)]
        return History(**{n: self._stack([getattr(row, n) for row in rows]) for n in names})

    @property
    def update_ratio(self) -> Tensor:
        """(R,) ||dtheta|| / ||theta|| in the last interval."""
        return self._stack([run.controller.update_ratio for run in self._runs])

    def _stack(self, rows: Sequence[Tensor]) -> Tensor:
        return torch.stack(list(rows)).to(self._device)


def _stacked(rows: Sequence[Losses], device: torch.device) -> Losses:
    return Losses(*(torch.stack(column).to(device) for column in zip(*rows, strict=True)))


def _entry(values: Tensor | None, index: int) -> float | None:
    return None if values is None else values[index].item()
