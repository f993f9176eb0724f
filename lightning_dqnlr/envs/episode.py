"""Episodes whose randomness is all their own, for environments driven from outside."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from lightning_dqnlr.control.spec import ControllerSpec
from lightning_dqnlr.envs.environment import Engine, LREnvironment, StepResult, Terms
from lightning_dqnlr.envs.randomness import RandomStream
from lightning_dqnlr.errors import CallOrderError, ConfigurationError
from lightning_dqnlr.tasks.sampling import Split
from lightning_dqnlr.tasks.task import Task, TaskFamily


class Summary(NamedTuple):
    """What whole runs were like; (R,) each."""

    initial_loss: Tensor
    final_loss: Tensor  # over the whole training set; NaN where the run failed
    trips: Tensor


class Episodes:
    """Runs of one task after the other, R side by side.

    Everything random follows from the seeds given to `begin`, dropout included; the global random
    states are left as they were.

    Args:
        tasks: the family that `begin` draws from, or one task for all episodes.
        split: of the family.
        spec: of the controller.
        terms: rewards and circuit breaker.
        engine: trains.
    """

    def __init__(
        self,
        tasks: TaskFamily | Task,
        split: Split,
        spec: ControllerSpec,
        terms: Terms,
        engine: Engine,
    ) -> None:
        self._tasks, self._split, self._spec = tasks, split, spec
        self._terms, self._engine = terms, engine
        self._env: LREnvironment | None = None

    def begin(self, task_seed: int, run_seeds: Sequence[int]) -> Tensor:
        """Starts one run per seed; returns the first observations, (R, F).

        Raises:
            ConfigurationError: a task of fewer than two steps, which leaves nothing to decide.
        """
        self.close()
        # The runs have random states of their own; this is for what draws a task or builds it.
        with RandomStream(run_seeds[0]).active():
            env = self._engine.open(
                self._task(task_seed),
                self._spec,
                run_seeds,
                self._terms,
            )
            observation = env.reset()
        self._env = env
        return observation

    def close(self) -> None:
        """Gives up the runs under way, if any."""
        if self._env is not None:
            self._env.close()
        self._env = None

    def advance(self, action: Tensor) -> StepResult:
        """Applies the actions, (R,).

        Raises:
            CallOrderError: before the first `begin`, or after the end of the episode.
        """
        if self.over:
            raise CallOrderError("the episode is over; call reset() before the next step().")
        return self.env.step(action.to(self.env.alive.device, torch.int64))

    @property
    def env(self) -> LREnvironment:
        """The runs under way."""
        if self._env is None:
            raise CallOrderError("no episode was begun; call reset() before step().")
        return self._env

    @property
    def over(self) -> bool:
        """Whether the horizon is reached, or no run is left."""
        return self.env.finished or not bool(self.env.alive.any())

    def summary(self) -> Summary:
        """What the runs were like, at the end of each."""
        history = self.env.controller.history
        final = torch.full_like(history.loss, torch.nan)
        if self.env.finished:
            final = torch.where(self.env.alive, self.env.losses().train, final)
        return Summary(history.initial_loss, final, history.trips)

    def _task(self, seed: int) -> Task:
        task = (
            self._tasks if isinstance(self._tasks, Task) else self._tasks.sample(seed, self._split)
        )
        if task.horizon < 2:
            raise ConfigurationError(
                f"task {task.name} ends with its first step, before any action; "
                "its horizon must be at least 2."
            )
        return task
