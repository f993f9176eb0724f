"""Learned policies through `DQNLRCallback`, and the controls that share their harness."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache

from torch import Tensor

from lightning_dqnlr.bench.methods.controls import (
    MeanCurve,
    in_harness,
    state_blind,
    study,
    untrained,
)
from lightning_dqnlr.bench.methods.plan import Plan, Setting
from lightning_dqnlr.envs.trainer_run import Conditions
from lightning_dqnlr.envs.vector import ON_CPU
from lightning_dqnlr.host.callback import DQNLRCallback
from lightning_dqnlr.policy.choice import Policy
from lightning_dqnlr.policy.policy import LRPolicy
from lightning_dqnlr.tasks.families.basic import NoisyQuadratics, TeacherMLPs
from lightning_dqnlr.tasks.task import Task

STUDIED_TASKS, STUDIED_SEEDS = 8, 4

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
        name: as reports show it.
        policy: "default" for the bundled one, or a folder.
        tuned: it finds its rate itself.
    """

    name: str = "dqnlr"
    policy: str = "default"
    tuned: bool = False

    def load(self) -> LRPolicy:
        """The policy."""
        return LRPolicy.load(self.policy)

    def plan(self, setting: Setting) -> Plan:
        """Adds the callback."""
        return _controlled(self.load(), setting)


@dataclass(frozen=True)
class Untrained:
    """Control: the policy's network with fresh weights, others for every seed.

    Attributes:
        name: as reports show it.
        policy: whose network and harness.
        tuned: like the policy.
    """

    name: str = "untrained"
    policy: str = "default"
    tuned: bool = False

    def load(self) -> LRPolicy:
        """The policy whose weights are thrown away."""
        return LRPolicy.load(self.policy)

    def plan(self, setting: Setting) -> Plan:
        """Adds the callback with the fresh network."""
        policy = self.load()
        return _controlled(in_harness(untrained(policy, setting.seed), policy), setting)


@dataclass(frozen=True)
class StateBlind:
    """Control: random actions with the policy's own frequencies, whatever it sees.

    Attributes:
        name: as reports show it.
        policy: whose action frequencies and harness.
        tuned: like the policy.
        tasks: on which they are counted.
    """

    name: str = "state-blind"
    policy: str = "default"
    tuned: bool = False
    tasks: Tasks = study_tasks

    def load(self) -> LRPolicy:
        """The policy that is studied."""
        return LRPolicy.load(self.policy)

    def plan(self, setting: Setting) -> Plan:
        """Adds the callback with the random behaviour."""
        frequencies, _ = studied(self.policy, self.tasks)
        act = state_blind(frequencies, setting.seed)
        return _controlled(in_harness(act, self.load()), setting)


@dataclass(frozen=True)
class MeanCurveReplay:
    """Control: the policy's own mean learning-rate curve, relative to the start.

    Attributes:
        name: as reports show it.
        policy: whose curve and harness.
        tuned: like the policy.
        tasks: on which the mean is taken.
    """

    name: str = "mean-curve"
    policy: str = "default"
    tuned: bool = False
    tasks: Tasks = study_tasks

    def load(self) -> LRPolicy:
        """The policy that is studied."""
        return LRPolicy.load(self.policy)

    def plan(self, setting: Setting) -> Plan:
        """Adds the callback with the replay."""
        _, curve = studied(self.policy, self.tasks)
        return _controlled(in_harness(curve.act, self.load()), setting)


@cache
def studied(policy: str, tasks: Tasks) -> tuple[Tensor, MeanCurve]:
    """Action frequencies and mean curve of a policy; once per process, a few seconds."""
    return study(LRPolicy.load(policy), tasks(), range(STUDIED_SEEDS), ON_CPU)


def _controlled(policy: Policy, setting: Setting) -> Plan:
    callback = DQNLRCallback(policy, log=False, save_snapshot=True)  # all that it keeps is measured
    conditions = Conditions(setting.task, None, None)
    conditions.callback = callback
    return Plan(
        lr=setting.lr,
        callbacks=(conditions, callback),
        recovers=policy.circuit_breaker,
        keeps=policy.network.state_dict if isinstance(policy, LRPolicy) else dict,
    )
