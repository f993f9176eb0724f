"""The three controls that a learned policy has to beat.

A learned scheduler can look good because of its harness (the safe start, the built-in decay, the
circuit breaker) rather than because of what it learned. Each control keeps the harness and takes
away one thing: `untrained` the learning, `state_blind` the observation, `mean_curve` the
adaptation to the run at hand.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from lightning_dqnlr.control.features import CLIP
from lightning_dqnlr.control.spec import ControllerSpec
from lightning_dqnlr.envs.environment import Engine
from lightning_dqnlr.errors import ConfigurationError
from lightning_dqnlr.policy.choice import Act, Policy, ScriptedPolicy
from lightning_dqnlr.policy.network import build_network
from lightning_dqnlr.policy.policy import LRPolicy
from lightning_dqnlr.scoring.evaluate import run_policy
from lightning_dqnlr.tasks.task import Task

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
        self._sum, self._count = torch.zeros(2, _POINTS), torch.zeros(2, _POINTS)

    def record(self, observation: Tensor) -> None:
        """Adds what the policy did at one decision, observations (R, F)."""
        row, point = self._position(observation)
        value = observation[..., self._column["scale_to_start"]].cpu()
        self._sum.index_put_((row, point), value, accumulate=True)
        self._count.index_put_((row, point), torch.ones_like(value), accumulate=True)

    def act(self, observation: Tensor) -> Tensor:
        """The action that comes nearest to the mean curve."""
        row, point = self._position(observation)
        known = self._count[row, point] > 0
        current = observation[..., self._column["scale_to_start"]].cpu()
        mean = self._sum[row, point] / self._count[row, point].clamp_min(1)
        change = 5 * torch.where(known, mean - current, torch.zeros_like(current))
        table = self._actions.log_multiplier(torch.arange(len(self._actions)))
        nearest = (change.unsqueeze(-1) - table).abs().argmin(-1)
        return nearest.to(observation.device)

    def _position(self, observation: Tensor) -> tuple[Tensor, Tensor]:
        """Row: horizon known or not. Point: by the logarithm of the steps, or by progress."""
        column = {name: observation[..., i].cpu() for name, i in self._column.items()}
        row = (column["horizon_known"] > 0.5).long()
        # Early on intervals grow with the steps; later they are a fixed share of the run.
        by_step = (column["log_step"] + 1) / (CLIP + 1) * _POINTS
        by_progress = (column["progress"] + 1) / 2 * (_POINTS - 16) + 16
        late = (row > 0) & (column["progress"] > -0.95)
        point = torch.where(late, by_progress, by_step).long().clamp(0, _POINTS - 1)
        return row, point


def study(
    policy: LRPolicy, tasks: Sequence[Task], seeds: Sequence[int], engine: Engine
) -> tuple[Tensor, MeanCurve]:
    """Action frequencies (actions,) and mean curve of a policy on some tasks."""
    counts, curve = torch.zeros(len(policy.spec.actions)), MeanCurve(policy.spec)

    def act(observation: Tensor) -> Tensor:
        curve.record(observation)
        action = policy.act(observation)
        counts.add_(torch.bincount(action.cpu(), minlength=len(counts)))
        return action

    for task in tasks:
        run_policy(task, act, policy.spec, seeds, engine, circuit_breaker=policy.circuit_breaker)
    return counts / counts.sum(), curve


def in_harness(act: Act, policy: Policy) -> ScriptedPolicy:
    """A behaviour in the place of a policy, with its specification, start and circuit breaker."""
    return ScriptedPolicy(act, policy.spec, policy.start, policy.circuit_breaker)
