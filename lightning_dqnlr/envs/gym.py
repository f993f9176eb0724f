"""Learning-rate control as Gymnasium environments: for agents that are not ours.

An episode is one training run of a task drawn from a family. The observation is exactly what the
policy of a callback sees, the action is the index of an LR multiplier, the reward is paid per
interval between two decisions. The end of the run is a terminal, not a truncation: no reward comes
after the last step, so there is nothing to bootstrap from. Where the horizon is known, the
observation shows what is left of it (Pardo et al. 2018, arXiv:1712.00378). A failure is a terminal,
too.

Everything random comes from the seed: the task, the initial weights, the order of the batches and
what the task draws itself (dropout). The global random states are left as they were.

Importing this module registers `ENV_ID` for `gymnasium.make` and `gymnasium.make_vec`. (Gymnasium
itself looks for no plugins since version 1.0.)
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor

from lightning_dqnlr.checks import check_integer
from lightning_dqnlr.control.spec import ControllerSpec
from lightning_dqnlr.envs.environment import Engine, LREnvironment, StepResult, Terms
from lightning_dqnlr.envs.process import RandomStream
from lightning_dqnlr.envs.vector import ON_CPU
from lightning_dqnlr.errors import CallOrderError, ConfigurationError, needs_package
from lightning_dqnlr.rl.rewards import (
    TRIP_PENALTY,
    IntervalReward,
    LogProgress,
    interval_rewards,
)
from lightning_dqnlr.tasks.families.basic import NoisyQuadratics
from lightning_dqnlr.tasks.sampling import Split
from lightning_dqnlr.tasks.task import Task, TaskFamily

with needs_package("lightning_dqnlr.envs.gym", "gymnasium", "gym"):
    import gymnasium
    import numpy as np
    from gymnasium import spaces
    from gymnasium.vector import AutoresetMode, VectorEnv
    from gymnasium.vector.utils import batch_space
    from numpy.typing import NDArray

ENV_ID = "lightning_dqnlr/LRControl-v0"
_SEEDS = 2**31
_TASKS = NoisyQuadratics()
_CONTROLLER = ControllerSpec()
_REWARD = LogProgress()


class _Episodes:
    """One run of a task after the other, R side by side: what both environments have in common."""

    observation_space: Any
    action_space: Any
    np_random: Any

    def __init__(
        self,
        tasks: TaskFamily | Task = _TASKS,
        *,
        split: Split = "train",
        controller_spec: ControllerSpec = _CONTROLLER,
        reward: IntervalReward = _REWARD,
        circuit_breaker: bool = True,
        trip_penalty: float | None = None,
        engine: Engine = ON_CPU,
    ) -> None:
        self._tasks = tasks
        self._split: Split = split
        self._spec = controller_spec
        self._terms = Terms(circuit_breaker=circuit_breaker)
        self._engine = engine
        own = getattr(reward, "trip_penalty", TRIP_PENALTY)
        penalty = own if trip_penalty is None else trip_penalty
        self._pay = partial(interval_rewards, reward, trip_penalty=penalty)
        self._runs: LREnvironment | None = None
        self._taken = torch.zeros(0)  # (R,) what was done last
        limits = np.array(controller_spec.features.limits, dtype=np.float32)
        self.observation_space = spaces.Box(-limits, limits, dtype=np.float32)
        self.action_space = spaces.Discrete(len(controller_spec.actions))

    def _begin(self, options: Mapping[str, Any] | None, key: str, replicas: int) -> NDArray[Any]:
        """The first observations (R, F) of new runs, whose seeds are the option of this key."""
        chosen = options or {}
        unknown = sorted(set(chosen) - {"task_seed", key})
        if unknown:
            raise ConfigurationError(f'options may hold "task_seed" and "{key}"; got {unknown}.')
        task_seed, *drawn = self.np_random.integers(_SEEDS, size=1 + replicas).tolist()
        seeds = np.atleast_1d(chosen.get(key, drawn)).astype(np.int64).tolist()
        if len(seeds) != replicas:
            raise ConfigurationError(
                f'options["{key}"] must hold {replicas} seeds, one per replica; got {len(seeds)}.'
            )
        self._end()
        # The runs have random states of their own; this is for what draws a task or builds it.
        with RandomStream(seeds[0]).active():
            task = self._task(int(chosen.get("task_seed", task_seed)))
            runs = self._engine.open(task, self._spec, seeds, self._terms)
            observation = runs.reset()
        self._runs = runs
        self._taken = torch.full((replicas,), self._spec.actions.keep)
        return _array(observation)

    def _task(self, seed: int) -> Task:
        tasks = self._tasks
        task = tasks if isinstance(tasks, Task) else tasks.sample(seed, self._split)
        if task.horizon < 2:
            raise ConfigurationError(
                f"task {task.name} ends with its first step, before any action; "
                "its horizon must be at least 2."
            )
        return task

    def _end(self) -> None:
        """Gives up the runs under way, if any."""
        if self._runs is not None:
            self._runs.close()
        self._runs = None

    def _advance(self, action: Any) -> StepResult:
        # An index of -1 would otherwise be taken for the largest multiplier.
        if not self.action_space.contains(action):
            raise ConfigurationError(
                f"action={action!r} is not in the action space, {self.action_space}."
            )
        if self._runs is None or self._over:
            raise CallOrderError("no episode is under way; call reset() before the next step().")
        device = self._runs.alive.device
        result = self._runs.step(torch.as_tensor(action).reshape(-1).to(device, torch.int64))
        self._taken = result.action
        return result

    @property
    def _env(self) -> LREnvironment:
        assert self._runs is not None
        return self._runs

    @property
    def _over(self) -> bool:
        """Whether the horizon is reached, or no run is left."""
        return self._env.finished or not bool(self._env.alive.any())

    def _info(self) -> dict[str, NDArray[Any]]:
        """What the last interval was like; (R,) each."""
        control = self._env.controller
        replicas = len(control.lr)
        return {
            "task": np.full(replicas, self._env.task.name, dtype=object),
            "step": np.full(replicas, control.step, dtype=np.int64),
            "lr": _array(control.lr),
            "action": _array(self._taken),
            "loss": _array(control.history.loss),
            "tripped": _array(control.history.restored > 0),
        }

    def _summary(self) -> dict[str, NDArray[Any]]:
        """What whole runs were like; (R,) each. A run that failed has no final loss."""
        env = self._env
        history = env.controller.history
        final = torch.full_like(history.loss, torch.nan)
        if env.finished:
            final = torch.where(env.alive, env.evaluate(env.task.train_data), final)
        return {
            "initial_loss": _array(history.initial_loss),
            "final_loss": _array(final),
            "trips": _array(history.trips.long()),
        }


class LRControlEnv(_Episodes, gymnasium.Env["NDArray[np.float32]", np.int64]):
    """One training run per episode.

    Observation: float32 (F,), the controller's, within +-3. Action: index of an LR multiplier.
    Reward: by default the decrease of log loss over the interval. `info` holds "task" (its name),
    "step" (optimizer steps so far), "lr" (of the last one) and "action". That is what was done: a
    trial of the controller may have done otherwise than it was told. It also holds "loss" (mean of
    the interval) and "tripped" (the circuit breaker undid the interval). At the end of an episode
    "initial_loss", "final_loss" and "trips" join them. The final loss is the mean over the training
    set in eval mode, NaN if the run failed.

    `reset(options=...)` takes "task_seed" and "run_seed". The first fixes the family's task; the
    second fixes initial weights, batches and dropout. Without them both are drawn from the
    environment's own seed.

    Args:
        tasks: the family to draw each episode's task from, or one task for all episodes.
        split: of the family. Judge what was trained on "train" on another one.
        controller_spec: features, actions and decision times; shared with the policy.
        reward: of an interval.
        circuit_breaker: whether blown-up intervals are undone. If not, a loss that is not finite
            ends the episode with reward -1.
        trip_penalty: subtracted from the reward of an undone interval; None for the reward's own,
            and 0.02 where it has none.
        engine: trains: `VectorEngine()`, or `TrainerEngine()` for a real Trainer, which carries
            any LightningModule.
    """

    metadata: dict[str, Any] = {"render_modes": []}  # noqa: RUF012 (Gymnasium's own type)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[NDArray[np.float32], dict[str, Any]]:
        """Begins a run and makes its first step at the safe start.

        Raises:
            ConfigurationError: an unknown option, or a task of fewer than two steps.
        """
        super().reset(seed=seed)
        return self._begin(options, "run_seed", 1)[0], _first(self._info())

    def step(
        self, action: np.int64 | int
    ) -> tuple[NDArray[np.float32], float, bool, bool, dict[str, Any]]:
        """Trains to the next decision.

        Raises:
            ConfigurationError: not an action of the action space.
            CallOrderError: before the first reset, or after the end of an episode.
        """
        result = self._advance(action)
        info = self._info()
        over = self._over
        if over:
            info |= self._summary()
        reward = float(self._pay(result.interval)[0])
        return _array(result.observation)[0], reward, over, False, _first(info)

    def close(self) -> None:
        self._end()


class LRControlVectorEnv(
    _Episodes, VectorEnv["NDArray[np.float32]", "NDArray[np.int64]", "NDArray[Any]"]
):
    """`num_envs` runs of one task per episode, in one `vmap`ped training step.

    All replicas train the same task, so their episodes end at one time. The next `step` ignores its
    action and begins the next task: `AutoresetMode.NEXT_STEP`. A replica that fails earlier has
    nothing to restart with while the others train on. It stays "terminated" with reward 0 until
    then. This mode asks a learner to leave out the step after a termination, and so a learner
    leaves out all of that time. (A counter of episodes counts each of those steps as an episode of
    length zero.)

    `info` holds the arrays (num_envs,) of what `LRControlEnv` has, beside Gymnasium's masks.
    `reset(options=...)` takes "task_seed" and "run_seeds" (`num_envs` of them).

    Args:
        num_envs: the number of replicas.
        tasks: as in `LRControlEnv`.
        settings: the keyword arguments of `LRControlEnv`.

    Raises:
        ConfigurationError: num_envs < 1.
    """

    metadata: dict[str, Any] = {  # noqa: RUF012 (Gymnasium's own type)
        "render_modes": [],
        "autoreset_mode": AutoresetMode.NEXT_STEP,
    }

    def __init__(
        self, num_envs: int = 1, tasks: TaskFamily | Task = _TASKS, **settings: Any
    ) -> None:
        check_integer("num_envs", num_envs, 1)
        super().__init__(tasks, **settings)
        self.num_envs = num_envs
        self.single_observation_space = self.observation_space
        self.single_action_space = self.action_space
        self.observation_space = batch_space(self.observation_space, num_envs)
        self.action_space = batch_space(self.action_space, num_envs)
        self._done = np.zeros(num_envs, dtype=np.bool_)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[NDArray[np.float32], dict[str, Any]]:
        """Begins a run of every replica.

        Raises:
            ConfigurationError: as `LRControlEnv.reset`, or not one run seed per replica.
        """
        super().reset(seed=seed)
        observation = self._begin(options, "run_seeds", self.num_envs)
        self._done = np.zeros(self.num_envs, dtype=np.bool_)
        return observation, _masked(self._info(), ~self._done)

    def step(
        self, actions: NDArray[np.int64]
    ) -> tuple[
        NDArray[np.float32], NDArray[Any], NDArray[np.bool_], NDArray[np.bool_], dict[str, Any]
    ]:
        """Trains every replica to the next decision, or begins the next task.

        Raises:
            ConfigurationError: not `num_envs` actions of the action space.
            CallOrderError: before the first reset.
        """
        never = np.zeros(self.num_envs, dtype=np.bool_)
        if self._done.all():
            observation, info = self.reset()
            return observation, np.zeros(self.num_envs, np.float32), never, never.copy(), info
        result = self._advance(actions)
        reward = np.where(self._done, 0.0, _array(self._pay(result.interval)))
        info = _masked(self._info(), ~self._done)
        ended = ~self._done & (~_array(result.interval.alive) | self._over)
        if ended.any():
            info |= _masked(self._summary(), ended)
        self._done = self._done | ended
        return _array(result.observation), reward, self._done.copy(), never, info

    def close_extras(self) -> None:
        self._end()


def _array(tensor: Tensor) -> NDArray[Any]:
    # A copy: an array that shares its memory would hand out the runs' own state.
    array: NDArray[Any] = tensor.detach().cpu().numpy().copy()
    return array


def _first(info: Mapping[str, NDArray[Any]]) -> dict[str, Any]:
    """The only replica's values, as Python's own numbers and strings."""
    return {key: values[0] if key == "task" else values[0].item() for key, values in info.items()}


def _masked(info: Mapping[str, NDArray[Any]], valid: NDArray[np.bool_]) -> dict[str, Any]:
    """Gymnasium's form of the infos of several environments: values, and who has one."""
    arrays: dict[str, Any] = dict(info)
    return arrays | {f"_{key}": valid.copy() for key in info}


gymnasium.register(
    ENV_ID,
    entry_point="lightning_dqnlr.envs.gym:LRControlEnv",
    vector_entry_point="lightning_dqnlr.envs.gym:LRControlVectorEnv",
)
