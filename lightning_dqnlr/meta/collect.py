"""One episode of meta-training: R replicas of one task under an exploring policy."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Annotated, NamedTuple

import torch
from torch import Tensor

from lightning_dqnlr.checks import Count, NotNegative, Positive, Share, check_settings
from lightning_dqnlr.envs.environment import (
    USER_LR_EXPONENTS,
    Engine,
    LREnvironment,
    StartKind,
    Terms,
)
from lightning_dqnlr.envs.vector import ON_CPU
from lightning_dqnlr.meta.demonstrate import Demonstrators
from lightning_dqnlr.policy.policy import LRPolicy
from lightning_dqnlr.rl.replay import Rollout, Transitions, n_step_transitions
from lightning_dqnlr.rl.rewards import End, Reward, TrainingInterval
from lightning_dqnlr.tasks.sampling import check_range
from lightning_dqnlr.tasks.task import Task

_Power = Annotated[float, "[-2, 2]"]


@dataclass(frozen=True)
class CollectConfig:
    """How experience is gathered.

    Args:
        replicas: R, runs of one task side by side.
        epsilon: the most exploring replica's; replica i uses epsilon^(1 + alpha i / (R - 1))
            (Horgan et al. 2018, arXiv:1803.00933, eq. in section 4).
        epsilon_alpha: alpha above; 0 gives every replica the same epsilon.
        n_step: length of the returns, in decisions.
        cut_at_exploration: whether the returns of replicas that follow the policy end before the
            next random action. Else a state's value includes what random actions did later, and the
            policy keeps away from rates that only those make dangerous.
        discount: gamma; 1 because only the end of the run counts.
        off_start_share: share of the replicas that start away from the safe start. The policy
            learns about bad learning rates from them.
        off_start_decades: how far away: log-uniform over +- so many decades.
        start: "safe", or "user" for learning rates log-uniform over 1e-6..10.
        shared_seed: all replicas begin with the same weights and see the same batches, so that
            they differ in their learning rates alone.
        circuit_breaker: whether blown-up intervals are undone.
        demonstrators: share of the replicas that follow `Demonstrators` at the first episode.
        demonstrator_episodes: episodes over which that share falls linearly to
            `demonstrators_left`; None to keep it.
        demonstrators_left: see above. With none left the policy forgets what good peaks look like.
        demonstrator_n_step: length of the demonstrators' returns; None for `n_step`. A long return
            credits the steps of a climb with its peak, which the observation does not show. A short
            one credits them with what the policy makes of the state they lead to.
        demonstrated_ratios: each demonstrator's update ratio is log-uniform between these.
        demonstrator_epsilon: probability that a demonstrator acts at random.
        demonstrated_drifts: half of the demonstrators let their scale follow a power of the step,
            uniform between these; the others keep it.

    Raises:
        ConfigurationError: a value out of range; the message names the field.

    Example:
        >>> config = CollectConfig(demonstrators=0.5, demonstrator_episodes=100)
        >>> config.at(episode=50).demonstrators
        0.25
    """

    replicas: Count = 64
    epsilon: Share = 0.1
    epsilon_alpha: NotNegative = 7.0
    n_step: Count = 32
    cut_at_exploration: bool = False
    discount: Share = 1.0
    off_start_share: Share = 0.25
    off_start_decades: NotNegative = 2.0
    start: StartKind = "safe"
    shared_seed: bool = True
    circuit_breaker: bool = True
    demonstrators: Share = 0.5
    demonstrator_episodes: Count | None = None
    demonstrators_left: Share = 0.0
    demonstrator_n_step: Count | None = None
    demonstrated_ratios: tuple[Positive, Positive] = (0.003, 0.3)
    demonstrator_epsilon: Share = 0.03
    demonstrated_drifts: tuple[_Power, _Power] = (0.0, 0.0)

    def __post_init__(self) -> None:
        for name in ("demonstrated_ratios", "demonstrated_drifts"):
            bounds = tuple(getattr(self, name))
            object.__setattr__(self, name, bounds)
            check_range(f"CollectConfig.{name}", bounds, "(-inf, inf)")
        check_settings(self, "CollectConfig.")

    def at(self, episode: int) -> CollectConfig:
        """The settings of one episode, with the share of demonstrators left by then."""
        if self.demonstrator_episodes is None:
            return self
        over = min(1.0, episode / self.demonstrator_episodes)
        share = self.demonstrators + over * (self.demonstrators_left - self.demonstrators)
        return replace(self, demonstrators=share, demonstrator_episodes=None)


class Episode(NamedTuple):
    """What one episode gave."""

    transitions: Transitions
    steps: int  # inner steps over all replicas
    final_losses: Tensor  # (R,)
    initial_loss: float
    trips: float  # mean per replica
    failed: float  # share of replicas that ended without a finite loss


def collect_episode(
    task: Task,
    policy: LRPolicy,
    config: CollectConfig,
    reward: Reward,
    generator: torch.Generator,
    engine: Engine = ON_CPU,
) -> Episode:
    """Runs one task to its horizon under epsilon-greedy control and cuts it into transitions."""
    seeds = torch.randint(2**31, (config.replicas,), generator=generator).tolist()
    if config.shared_seed:
        seeds = seeds[:1] * config.replicas
    env = engine.open(task, policy.spec, seeds, _terms(config, generator))
    try:
        rollout = _rollout(env, policy, config, generator)
        history = env.controller.history
        end = End(env.evaluate(task.train_data), history.trips)
    finally:
        env.close()
    return Episode(
        transitions=rollout.transitions(config, reward, end),
        steps=env.controller.step * config.replicas,
        final_losses=end.loss,
        initial_loss=history.initial_loss.mean().item(),
        trips=history.trips.mean().item(),
        failed=1.0 - env.alive.float().mean().item(),
    )


def _rollout(
    env: LREnvironment, policy: LRPolicy, config: CollectConfig, generator: torch.Generator
) -> _Recorded:
    first = env.reset()
    position = torch.linspace(0, 1, config.replicas)
    epsilon = (config.epsilon ** (1 + config.epsilon_alpha * position)).to(first.device)
    demonstrators = _demonstrators(config, generator, first.device)
    record = _Recorded(demonstrators.shows, [first])
    while not env.finished:
        own = policy.choose(record.observations[-1], epsilon, generator)
        action = torch.where(demonstrators.shows, demonstrators.act(env, generator), own.action)
        result = env.step(action)
        record.actions.append(result.action)
        # What a trial does instead is no exploration: it happens under the greedy policy as well.
        record.explored.append(action != own.q_values.argmax(-1))
        record.observations.append(result.observation)
        record.intervals.append(result.interval)
    return record


@dataclass
class _Recorded:
    """Lists over decisions of (R, ...) tensors; one observation more than actions.

    Attributes:
        shows: (R,) bool, which replicas demonstrate.
    """

    shows: Tensor
    observations: list[Tensor]
    actions: list[Tensor] = field(default_factory=list)
    explored: list[Tensor] = field(default_factory=list)  # bool, where it was not the greedy one
    intervals: list[TrainingInterval] = field(default_factory=list)

    def transitions(self, config: CollectConfig, reward: Reward, end: End) -> Transitions:
        columns = zip(*self.intervals, strict=True)
        intervals = TrainingInterval(*(torch.stack(column) for column in columns))
        alive = intervals.alive
        before = torch.cat([torch.ones_like(alive[:1]), alive[:-1]])  # when the action was taken
        rewards = torch.where(before, reward.pay(intervals, end), 0.0)
        continues = alive.clone()
        continues[-1] = False  # the run is over: nothing to bootstrap from
        observations = torch.stack(self.observations)
        actions = torch.stack(self.actions)
        explored = torch.stack(self.explored) if config.cut_at_exploration else None

        rollout = Rollout(observations, actions, rewards, continues, before, explored)
        shown = n_step_transitions(
            rollout.of(self.shows)._replace(explored=None),
            config.demonstrator_n_step or config.n_step,
            config.discount,
        )
        own = n_step_transitions(rollout.of(~self.shows), config.n_step, config.discount)
        return Transitions(*(torch.cat(pair) for pair in zip(shown, own, strict=True)))


def _terms(config: CollectConfig, generator: torch.Generator) -> Terms:
    if config.start == "user":
        lr = 10.0 ** _uniform(*USER_LR_EXPONENTS, config, generator)
        return Terms(lr, circuit_breaker=config.circuit_breaker)
    uniform = torch.rand(config.replicas, generator=generator)
    off = torch.rand(config.replicas, generator=generator) < config.off_start_share
    decades = (2 * uniform - 1) * config.off_start_decades * off
    return Terms(multiplier=10.0**decades, circuit_breaker=config.circuit_breaker)


def _demonstrators(
    config: CollectConfig, generator: torch.Generator, device: torch.device | str
) -> Demonstrators:
    low, high = config.demonstrated_ratios
    ratio = _uniform(math.log(low), math.log(high), config, generator).exp()
    shows = torch.rand(config.replicas, generator=generator) < config.demonstrators
    drift = _drifts(config, generator)
    epsilon = config.demonstrator_epsilon
    return Demonstrators(ratio.to(device), shows.to(device), epsilon, drift.to(device))


def _drifts(config: CollectConfig, generator: torch.Generator) -> Tensor:
    if not any(config.demonstrated_drifts):
        return torch.zeros(config.replicas)
    drift = _uniform(*config.demonstrated_drifts, config, generator)
    return drift * (torch.rand(config.replicas, generator=generator) < 0.5)


def _uniform(low: float, high: float, config: CollectConfig, generator: torch.Generator) -> Tensor:
    return low + (high - low) * torch.rand(config.replicas, generator=generator)
