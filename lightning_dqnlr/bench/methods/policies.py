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
from lightning_dqnlr.envs.environment import Terms
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
        frequencies, _ = studied(self.policy, self.tasks)
        return in_harness(state_blind(frequencies, setting.seed), policy)


@dataclass(frozen=True)
class MeanCurveReplay(LearnedPolicy):
    """Control: the policy's own mean learning-rate curve, relative to the start.

    Attributes:
        tasks: on which the mean is taken.
    """

    name: str = "mean-curve"
    tasks: Tasks = study_tasks

    def behaviour(self, policy: LRPolicy, setting: Setting) -> Policy:
        _, curve = studied(self.policy, self.tasks)
        return in_harness(curve.act, policy)


@cache
def studied(policy: str, tasks: Tasks) -> tuple[Tensor, MeanCurve]:
    """Action frequencies and mean curve of a policy; once per process, a few seconds."""
    return study(LRPolicy.load(policy), tasks(), range(STUDIED_SEEDS), ON_CPU)
