"""Learning-rate control of real Trainers, for modules that replicas cannot carry.

Each replica is a `Trainer.fit` with a `DQNLRCallback`, in a thread of its own that halts at every
decision: a Trainer owns its loop, an environment wants to be asked. One thread runs at a time. Each
draws from a random state of its own, and so a run is the same as if it were alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from lightning_dqnlr.control.controller import LRController
from lightning_dqnlr.control.spec import ControllerSpec
from lightning_dqnlr.envs.environment import Engine, Losses, LREnvironment, RateSchedule, Terms
from lightning_dqnlr.envs.process import RandomStream, interruptible
from lightning_dqnlr.envs.trainer_data import module_losses, quiet, task_loader, task_trainer
from lightning_dqnlr.envs.trainer_run import Schedule, TrainerRun
from lightning_dqnlr.tasks.task import Task


class TrainerLREnv(LREnvironment):
    """A Trainer per replica."""

    def _prepare(self, spec: ControllerSpec, seeds: Sequence[int], terms: Terms) -> None:
        self._runs = [
            TrainerRun(self.task, spec, seed, terms.of(replica), self.device.type)
            for replica, seed in enumerate(seeds)
        ]

    def reset(self) -> Tensor:
        return self._observe([run.advance() for run in self._runs])

    def evaluate(self, data: Any) -> Tensor:
        return self._stack([run.evaluate(data) for run in self._runs])

    def close(self) -> None:
        for run in self._runs:
            run.abandon()

    def _advance(self, action: Tensor) -> Tensor:
        chosen = zip(self._runs, action.tolist(), strict=True)
        return self._observe([run.advance(one) for run, one in chosen])

    def _observe(self, rows: list[Tensor]) -> Tensor:
        """The observations (R, F); reads the runs' controllers as one."""
        states = [run.controller.state_dict() for run in self._runs]
        first = self._runs[0].controller
        self.controller = LRController(first.spec, horizon=first.horizon, device=self.device)
        self.controller.load_state_dict(pytree.tree_map(self._together, *states))
        return self._stack(rows)

    def _together(self, first: Any, *others: Any) -> Any:
        """What the runs have in lockstep (steps, say) as it is; tensors stacked."""
        return self._stack([first, *others]) if isinstance(first, Tensor) else first

    def _stack(self, rows: list[Tensor]) -> Tensor:
        return torch.stack(rows).to(self.device)


@dataclass(frozen=True)
class TrainerEngine(Engine):
    """One real Trainer per replica. Slower than replicas, and carries any module.

    Example:
        >>> env = TrainerEngine().open(task, ControllerSpec(), (0, 1), Terms())  # doctest: +SKIP
        >>> env.step(torch.tensor([3, 6])).interval.loss  # doctest: +SKIP
    """

    _environment = TrainerLREnv

    def follow(
        self, task: Task, seeds: Sequence[int], lr: RateSchedule, steps: int | None = None
    ) -> Losses:
        rows = []
        for index, seed in enumerate(seeds):
            module = task.build(seed)
            stream = RandomStream(seed, self.device)
            schedule = Schedule(lambda step, index=index: lr(step)[index].item())  # type: ignore[misc]
            with interruptible(), quiet(), stream.active():
                if steps is None or steps > 0:
                    kind = torch.device(self.device).type
                    trainer = task_trainer(module, task, [schedule], kind, steps)
                    trainer.fit(module, task_loader(task, seed))
                rows.append(module_losses(module, task))
        columns = zip(*rows, strict=True)
        return Losses(*(torch.stack(column).to(self.device) for column in columns))
