"""Episodes whose randomness is all their own, for environments driven from outside."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor

from lightning_dqnlr.control.spec import ControllerSpec
from lightning_dqnlr.envs.vector import Reward, StepResult, VectorLREnv
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
        reward: of an interval.
        circuit_breaker: whether blown-up intervals are undone.
        trip_penalty: subtracted from the reward of an undone interval.
        device: where to train.
    """

    def __init__(
        self,
        tasks: TaskFamily | Task,
        split: Split,
        spec: ControllerSpec,
        reward: Reward,
        *,
        circuit_breaker: bool,
        trip_penalty: float,
        device: torch.device | str,
    ) -> None:
        self._tasks, self._split, self._spec, self._reward = tasks, split, spec, reward
        self._circuit_breaker, self._trip_penalty = circuit_breaker, trip_penalty
        self._device = torch.device(device)
        self._randomness = _Randomness(self._device)
        self._env: VectorLREnv | None = None

    def begin(self, task_seed: int, run_seeds: Sequence[int]) -> Tensor:
        """Starts one run per seed; returns the first observations, (R, F).

        Raises:
            ConfigurationError: a task of fewer than two steps, which leaves nothing to decide.
        """
        self._env = None
        self._randomness.seed(run_seeds[0])
        with self._randomness.borrowed():
            env = VectorLREnv(
                self._task(task_seed),
                self._spec,
                run_seeds,
                reward=self._reward,
                circuit_breaker=self._circuit_breaker,
                trip_penalty=self._trip_penalty,
                device=self._device,
            )
            observation = env.reset()
        self._env = env
        return observation

    def advance(self, action: Tensor) -> StepResult:
        """Applies the actions, (R,).

        Raises:
            CallOrderError: before the first `begin`, or after the end of the episode.
        """
        if self.over:
            raise CallOrderError("the episode is over; call reset() before the next step().")
        with self._randomness.borrowed():
            return self.env.step(action.to(self._device, torch.int64))

    @property
    def env(self) -> VectorLREnv:
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
            with self._randomness.borrowed():
                final = torch.where(self.env.alive, self.env.final_losses(), final)
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


class _Randomness:
    """Torch's global generators as these runs left them: vmap's dropout draws from no other."""

    def __init__(self, device: torch.device) -> None:
        self._accelerators = [device] if device.type == "cuda" else []
        self.seed(0)

    def seed(self, seed: int) -> None:
        """Begins anew."""
        devices = [torch.device("cpu"), *self._accelerators]
        self._states = [torch.Generator(d).manual_seed(seed).get_state() for d in devices]

    @contextmanager
    def borrowed(self) -> Iterator[None]:
        """Within it the global generators are these runs' own."""
        with torch.random.fork_rng(self._accelerators):
            torch.set_rng_state(self._states[0])
            for device, state in zip(self._accelerators, self._states[1:], strict=True):
                torch.cuda.set_rng_state(state, device)
            yield
            accelerated = [torch.cuda.get_rng_state(device) for device in self._accelerators]
            self._states = [torch.get_rng_state(), *accelerated]
