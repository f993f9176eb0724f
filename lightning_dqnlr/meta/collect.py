"""One episode of meta-training: R replicas of one task under an exploring policy."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor

from lightning_dqnlr.control.features import compressed_loss
from lightning_dqnlr.control.history import History
from lightning_dqnlr.envs.environment import (
    USER_LR_EXPONENTS,
    Engine,
    LREnvironment,
    Reward,
    Start,
    StartKind,
    StepResult,
    Terms,
)
from lightning_dqnlr.envs.vector import ON_CPU
from lightning_dqnlr.errors import ConfigurationError
from lightning_dqnlr.meta.demonstrate import Demonstrators
from lightning_dqnlr.policy.policy import LRPolicy
from lightning_dqnlr.rl.replay import Transitions, n_step_transitions
from lightning_dqnlr.rl.rewards import group_final_score, group_relative
from lightning_dqnlr.tasks.task import Task

Credit = Literal["interval", "group_relative", "final_score"]
_SHARES = (
    "epsilon",
    "discount",
    "off_start_share",
    "demonstrators",
    "demonstrators_left",
    "demonstrator_epsilon",
)


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
        off_start_share: share of the replicas that start away from the safe start, so that bad
            learning rates are states the policy knows.
        off_start_decades: how far away: log-uniform over +- so many decades.
        start: "safe", or "user" for learning rates log-uniform over 1e-6..10, whatever a user
            may have set.
        credit: what the returns are made of. "interval" pays each interval's reward as it is;
            "group_relative" subtracts the replicas' mean and divides by the spread of totals;
            "final_score" pays once, at the end, by `group_final_score` of the loss of the whole
            training set in eval mode.
        temperature: of the final score.
        shared_seed: all replicas begin with the same weights and see the same batches, so that
            they differ in their learning rates alone.
        final_evaluation: end the return on the loss of the whole training set in eval mode.
        circuit_breaker: whether blown-up intervals are undone.
        trip_penalty: of an undone interval, in units of log loss.
        demonstrators: share of the replicas that follow `Demonstrators` instead of the policy at
            the first episode.
        demonstrator_episodes: episodes over which that share falls linearly to
            `demonstrators_left`; None to keep it.
        demonstrators_left: see above. With none left the policy forgets what good peaks look like.
        demonstrator_n_step: length of the demonstrators' returns; None for `n_step`. A long one
            credits the steps of a climb with the peak that it was meant to lead to, which the
            observation does not show; a short one with what the policy makes of where it led.
        demonstrated_ratios: each demonstrator's update ratio is log-uniform between these.
        demonstrator_epsilon: probability that a demonstrator acts at random.
        demonstrated_drifts: half of the demonstrators let their scale follow a power of the step,
            uniform between these; the others keep it.

    Raises:
        ConfigurationError: a value out of range; the message names the field.
    """

    replicas: int = 64
    epsilon: float = 0.1
    epsilon_alpha: float = 7.0
    n_step: int = 32
    cut_at_exploration: bool = False
    discount: float = 1.0
    off_start_share: float = 0.25
    off_start_decades: float = 2.0
    start: StartKind = "safe"
    credit: Credit = "final_score"
    temperature: float = 0.2
    shared_seed: bool = True
    final_evaluation: bool = True
    circuit_breaker: bool = True
    trip_penalty: float = 0.02
    demonstrators: float = 0.5
    demonstrator_episodes: int | None = None
    demonstrators_left: float = 0.0
    demonstrator_n_step: int | None = None
    demonstrated_ratios: tuple[float, float] = (0.003, 0.3)
    demonstrator_epsilon: float = 0.03
    demonstrated_drifts: tuple[float, float] = (0.0, 0.0)

    def __post_init__(self) -> None:
        self._check("replicas", isinstance(self.replicas, int) and self.replicas >= 1, "at least 1")
        self._check("n_step", isinstance(self.n_step, int) and self.n_step >= 1, "at least 1")
        for name in _SHARES:
            self._check(name, 0 <= getattr(self, name) <= 1, "in [0, 1]")
        for name in ("epsilon_alpha", "off_start_decades", "trip_penalty"):
            self._check(name, 0 <= getattr(self, name) < math.inf, "finite and not negative")
        object.__setattr__(self, "demonstrated_ratios", tuple(self.demonstrated_ratios))
        episodes = self.demonstrator_episodes
        self._check("demonstrator_episodes", episodes is None or episodes >= 1, "at least 1")
        own = self.demonstrator_n_step
        self._check("demonstrator_n_step", own is None or own >= 1, "at least 1")
        low, high = self.demonstrated_ratios
        self._check("demonstrated_ratios", 0 < low <= high < math.inf, "positive and ascending")
        object.__setattr__(self, "demonstrated_drifts", tuple(self.demonstrated_drifts))
        low, high = self.demonstrated_drifts
        self._check("demonstrated_drifts", -2 <= low <= high <= 2, "ascending, in [-2, 2]")
        self._check("temperature", 0 < self.temperature < math.inf, "positive and finite")
        self._check("credit", self.credit in get_args(Credit), f"one of {get_args(Credit)}")
        self._check("start", self.start in get_args(StartKind), f"one of {get_args(StartKind)}")

    def at(self, episode: int) -> CollectConfig:
        """The settings of one episode, with the share of demonstrators that is left by then."""
        if self.demonstrator_episodes is None:
            return self
        over = min(1.0, episode / self.demonstrator_episodes)
        share = self.demonstrators + over * (self.demonstrators_left - self.demonstrators)
        return replace(self, demonstrators=share, demonstrator_episodes=None)

    def _check(self, name: str, holds: bool, wanted: str) -> None:
        if not holds:
            raise ConfigurationError(
                f"CollectConfig.{name} must be {wanted}; got {getattr(self, name)!r}."
            )


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
    start = _start(config, generator)
    terms = Terms(reward, start, config.circuit_breaker, config.trip_penalty)
    env = engine.open(task, policy.spec, seeds, terms)
    try:
        record = _rollout(env, policy, config, generator)
        final, control = env.losses().train, env.controller
    finally:
        env.close()
    record.credit(config, reward, final, control.history)
    return Episode(
        record.transitions(config),
        control.step * config.replicas,
        final,
        control.history.initial_loss.mean().item(),
        control.history.trips.mean().item(),
        1.0 - env.alive.float().mean().item(),
    )


def _rollout(
    env: LREnvironment, policy: LRPolicy, config: CollectConfig, generator: torch.Generator
) -> _Rollout:
    first = env.reset()
    epsilon = _epsilons(config).to(first.device)
    demonstrators = _demonstrators(config, generator, first.device)
    record = _Rollout(demonstrators.shows, [first], [], [], [], [])
    while not env.finished:
        own = policy.choose(record.observations[-1], epsilon, generator)
        action = torch.where(demonstrators.shows, demonstrators.act(env, generator), own.action)
        result = env.step(action)
        record.add(action, own.q_values.argmax(-1), result)
    return record


@dataclass
class _Rollout:
    """Lists over decisions of (R, ...) tensors; one observation more than actions.

    Attributes:
        shows: (R,) bool, which replicas demonstrate.
    """

    shows: Tensor
    observations: list[Tensor]
    actions: list[Tensor]
    explored: list[Tensor]  # bool, where the action was not the greedy one
    rewards: list[Tensor]
    alive: list[Tensor]

    def add(self, action: Tensor, greedy: Tensor, result: StepResult) -> None:
        self.actions.append(action)
        self.explored.append(action != greedy)
        self.observations.append(result.observation)
        self.rewards.append(result.reward)
        self.alive.append(result.alive)

    def credit(
        self, config: CollectConfig, reward: Reward, final: Tensor, history: History
    ) -> None:
        """Adds what only the end of the run tells: the loss of the whole training set."""
        if config.credit == "final_score":
            penalty = config.trip_penalty * history.trips
            level = compressed_loss(final, history.initial_loss) + penalty
            score = group_final_score(level, config.temperature)
            # A run that died is paid for where it did: what comes after counts for nothing.
            last = self.before.sum(0) - 1
            self.rewards = [torch.where(last == i, score, 0.0) for i in range(len(self.rewards))]
        elif config.final_evaluation:
            gain = reward(history.loss, final, history.initial_loss).nan_to_num(-1.0, -1.0, -1.0)
            self.rewards[-1] = self.rewards[-1] + gain

    @property
    def before(self) -> Tensor:
        """(decisions, R) bool, which replicas were alive when the action was taken."""
        alive = torch.stack(self.alive)
        return torch.cat([torch.ones_like(alive[:1]), alive[:-1]])

    def transitions(self, config: CollectConfig) -> Transitions:
        alive, before = torch.stack(self.alive), self.before
        rewards = torch.where(before, torch.stack(self.rewards), 0.0)
        if config.credit == "group_relative":
            rewards = group_relative(rewards, before)
        continues = alive.clone()
        continues[-1] = False  # the run is over: nothing to bootstrap from
        observations, actions = torch.stack(self.observations), torch.stack(self.actions)

        explored = torch.stack(self.explored) if config.cut_at_exploration else None

        def returns(replicas: Tensor, n_step: int, explored: Tensor | None = None) -> Transitions:
            return n_step_transitions(
                observations[:, replicas],
                actions[:, replicas],
                rewards[:, replicas],
                continues[:, replicas],
                n_step,
                config.discount,
                valid=before[:, replicas],
                explored=None if explored is None else explored[:, replicas],
            )

        shown = returns(self.shows, config.demonstrator_n_step or config.n_step)
        own = returns(~self.shows, config.n_step, explored)
        return Transitions(*(torch.cat(pair) for pair in zip(shown, own, strict=True)))


def _start(config: CollectConfig, generator: torch.Generator) -> Start:
    uniform = torch.rand(config.replicas, generator=generator)
    if config.start == "user":
        low, high = USER_LR_EXPONENTS
        return Start(lr=10.0 ** (low + (high - low) * uniform))
    off = torch.rand(config.replicas, generator=generator) < config.off_start_share
    decades = (2 * uniform - 1) * config.off_start_decades * off
    return Start(multiplier=10.0**decades)


def _demonstrators(
    config: CollectConfig, generator: torch.Generator, device: torch.device | str
) -> Demonstrators:
    low, high = (math.log(bound) for bound in config.demonstrated_ratios)
    ratio = (low + (high - low) * torch.rand(config.replicas, generator=generator)).exp()
    shows = torch.rand(config.replicas, generator=generator) < config.demonstrators
    drift = _drifts(config, generator)
    epsilon = config.demonstrator_epsilon
    return Demonstrators(ratio.to(device), shows.to(device), epsilon, drift.to(device))


def _drifts(config: CollectConfig, generator: torch.Generator) -> Tensor:
    low, high = config.demonstrated_drifts
    if low == high == 0:
        return torch.zeros(config.replicas)
    drift = low + (high - low) * torch.rand(config.replicas, generator=generator)
    return drift * (torch.rand(config.replicas, generator=generator) < 0.5)


def _epsilons(config: CollectConfig) -> Tensor:
    position = torch.linspace(0, 1, config.replicas)
    epsilons: Tensor = config.epsilon ** (1 + config.epsilon_alpha * position)
    return epsilons
