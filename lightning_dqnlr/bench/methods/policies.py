"""Learned policies through `DQNLRCallback`, and the three controls that they have to beat.

A learned scheduler can look good because of its harness rather than because of what it learned. The
harness is the safe start, the built-in decay and the circuit breaker. Each control keeps it and
takes away one thing: `untrained` the learning, `state_blind` the observation, `MeanCurve` the
adaptation to the run at hand.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor

from lightning_dqnlr.bench.methods.plan import Plan, Setting
from lightning_dqnlr.control.features import CLIP
from lightning_dqnlr.control.spec import ControllerSpec
from lightning_dqnlr.envs.environment import Engine, Terms
from lightning_dqnlr.envs.trainer_run import Conditions
from lightning_dqnlr.envs.vector import ON_CPU
from lightning_dqnlr.errors import ConfigurationError
from lightning_dqnlr.host.callback import DQNLRCallback
from lightning_dqnlr.policy.choice import Act, Policy, ScriptedPolicy
from lightning_dqnlr.policy.network import build_network
from lightning_dqnlr.policy.policy import LRPolicy
from lightning_dqnlr.scoring.evaluate import run_policy
from lightning_dqnlr.tasks.families.basic import NoisyQuadratics, TeacherMLPs
from lightning_dqnlr.tasks.task import Task

STUDIED_TASKS = 8
STUDIED_SEEDS = 4
_POINTS = 64


def untrained(policy: LRPolicy, seed: int = 0) -> Act:
    """The same network with fresh weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = build_network(policy.network.config)
    return LRPolicy(network.requires_grad_(False), policy.spec).act


def state_blind(frequencies: Tensor, seed: int = 0) -> Act:
    """Random actions with the policy's own action frequencies, (actions,), whatever it sees."""
    generator = torch.Generator().manual_seed(seed)

    def act(observation: Tensor) -> Tensor:
        count = math.prod(observation.shape[:-1])
        drawn = torch.multinomial(frequencies, count, replacement=True, generator=generator)
        return drawn.view(observation.shape[:-1]).to(observation.device)

    return act


class MeanCurve:
    """Replays the mean course of the log LR, relative to the start, over the run's progress.

    Args:
        spec: the policy's; its features must hold `scale_to_start`, `progress` and `log_step`.

    Raises:
        ConfigurationError: if they do not.
    """

    def __init__(self, spec: ControllerSpec) -> None:
        needed = ("scale_to_start", "progress", "log_step", "horizon_known")
        if not set(needed) <= set(spec.features.names):
            raise ConfigurationError(f"spec.features must contain {needed} for this control.")
        self._column = {name: spec.features.names.index(name) for name in needed}
        self._actions = spec.actions
        self._sum = torch.zeros(2, _POINTS)
        self._count = torch.zeros(2, _POINTS)

    def record(self, observation: Tensor) -> None:
        """Adds what the policy did at one decision, observations (R, F)."""
        cells = self._cells(observation)
        value = observation[..., self._column["scale_to_start"]].cpu()
        self._sum.index_put_(cells, value, accumulate=True)
        self._count.index_put_(cells, torch.ones_like(value), accumulate=True)

    def act(self, observation: Tensor) -> Tensor:
        """The action that comes nearest to the mean curve."""
        cells = self._cells(observation)
        count = self._count[cells]
        current = observation[..., self._column["scale_to_start"]].cpu()
        mean = self._sum[cells] / count.clamp_min(1)
        change = 5 * torch.where(count > 0, mean - current, torch.zeros_like(current))
        return self._actions.nearest(change).to(observation.device)

    def _cells(self, observation: Tensor) -> tuple[Tensor, Tensor]:
        """Indices of the table's rows and points.

        Row: horizon known or not. Point: by the logarithm of the steps, or by progress.
        """
        column = {name: observation[..., i].cpu() for name, i in self._column.items()}
        row = (column["horizon_known"] > 0.5).long()
        # Early on intervals grow with the steps; later they are a fixed share of the run.
        by_step = (column["log_step"] + 1) / (CLIP + 1) * _POINTS
        by_progress = (column["progress"] + 1) / 2 * (_POINTS - 16) + 16
        late = (row > 0) & (column["progress"] > -0.95)
        point = torch.where(late, by_progress, by_step).long().clamp(0, _POINTS - 1)
        return row, point


class Habits(NamedTuple):
    """What a policy does on average."""

    frequencies: Tensor  # of its actions, (actions,)
    curve: MeanCurve


def study(policy: LRPolicy, tasks: Sequence[Task], seeds: Sequence[int], engine: Engine) -> Habits:
    """What a policy does on some tasks."""
    counts = torch.zeros(len(policy.spec.actions))
    curve = MeanCurve(policy.spec)

    def act(observation: Tensor) -> Tensor:
        curve.record(observation)
        action = policy.act(observation)
        counts.add_(torch.bincount(action.cpu(), minlength=len(counts)))
        return action

    watched = ScriptedPolicy(act, policy.spec, circuit_breaker=policy.circuit_breaker)
    for task in tasks:
        run_policy(task, watched, seeds, engine)
    return Habits(counts / counts.sum(), curve)


def in_harness(act: Act, policy: Policy) -> ScriptedPolicy:
    """A behaviour in the place of a policy, with its specification, start and circuit breaker."""
    return ScriptedPolicy(act, policy.spec, policy.start, policy.circuit_breaker)


Tasks = Callable[[], Sequence[Task]]


def study_tasks() -> Sequence[Task]:
    """Where a policy's habits are looked up: synthetic validation tasks of 100 to 500 steps.

    They are no benchmark's tasks, need no data, and are the same for every control.
    """
    quadratics = NoisyQuadratics(min_horizon=100, max_horizon=500)
    teachers = TeacherMLPs(min_horizon=100, max_horizon=500)
    half = range(STUDIED_TASKS // 2)
    return [family.sample(i, "validation") for i in half for family in (quadratics, teachers)]


@dataclass(frozen=True)
class LearnedPolicy:
    """A policy as its user has it: `DQNLRCallback(policy=...)`, everything else at its default.

    The user's learning rate matters only to a policy that was trained to start from it.

    Attributes:
        policy: "default" for the bundled one, or a folder.
    """

    name: str = "dqnlr"
    policy: str = "default"
    tuned: bool = False

    def load(self) -> LRPolicy:
        """The policy; `PolicyFileError` if it cannot be read."""
        return LRPolicy.load(self.policy)

    def plan(self, setting: Setting) -> Plan:
        policy = self.behaviour(self.load(), setting)
        # All that the callback keeps is measured.
        callback = DQNLRCallback(policy, log=False, save_snapshot=True)
        conditions = Conditions(setting.task, callback, Terms())
        return Plan(
            lr=setting.lr,
            callbacks=(conditions, callback),
            recovers=policy.circuit_breaker,
            keeps=policy.network.state_dict if isinstance(policy, LRPolicy) else dict,
        )

    def behaviour(self, policy: LRPolicy, setting: Setting) -> Policy:
        """What acts in the policy's harness: the policy itself, or what a control puts there."""
        return policy


@dataclass(frozen=True)
class Untrained(LearnedPolicy):
    """Control: the policy's network with fresh weights, others for every seed."""

    name: str = "untrained"

    def behaviour(self, policy: LRPolicy, setting: Setting) -> Policy:
        return in_harness(untrained(policy, setting.seed), policy)


@dataclass(frozen=True)
class StateBlind(LearnedPolicy):
    """Control: random actions with the policy's own frequencies, whatever it sees.

    Attributes:
        tasks: on which they are counted.
    """

    name: str = "state-blind"
    tasks: Tasks = study_tasks

    def behaviour(self, policy: LRPolicy, setting: Setting) -> Policy:
        habits = studied(self.policy, self.tasks)
        return in_harness(state_blind(habits.frequencies, setting.seed), policy)


@dataclass(frozen=True)
class MeanCurveReplay(LearnedPolicy):
    """Control: the policy's own mean learning-rate curve, relative to the start.

    Attributes:
        tasks: on which the mean is taken.
    """

    name: str = "mean-curve"
    tasks: Tasks = study_tasks

    def behaviour(self, policy: LRPolicy, setting: Setting) -> Policy:
        return in_harness(studied(self.policy, self.tasks).curve.act, policy)


@cache
def studied(policy: str, tasks: Tasks) -> Habits:
    """What a policy does on average; found once per process, in a few seconds."""
    return study(LRPolicy.load(policy), tasks(), range(STUDIED_SEEDS), ON_CPU)
