"""The meta-training loop: sample a task, run it under the exploring policy, learn, evaluate.

The checkpoint holds everything that the next step of the outer loop depends on: networks,
optimizer, replay, random state, task cursor. A killed run therefore goes on as if uninterrupted.
"""

from __future__ import annotations

import copy
import re
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any

import torch

from lightning_dqnlr.checks import Count, check_integer, check_settings
from lightning_dqnlr.control.spec import ControllerSpec
from lightning_dqnlr.envs.environment import Engine
from lightning_dqnlr.envs.vector import ON_CPU
from lightning_dqnlr.errors import ConfigurationError
from lightning_dqnlr.files import remove_leftovers
from lightning_dqnlr.meta.checkpoint import (
    FORMAT_VERSION,
    check_same_settings,
    check_state,
    faults_of,
    read_checkpoint,
    write_checkpoint,
)
from lightning_dqnlr.meta.collect import CollectConfig
from lightning_dqnlr.meta.failures import Failures, usable_tasks
from lightning_dqnlr.meta.logs import EpisodeReport, Watch
from lightning_dqnlr.meta.workers import Collector, Job, JobOutcome, LocalWorkers, Workers
from lightning_dqnlr.policy.network import Network
from lightning_dqnlr.policy.policy import LRPolicy
from lightning_dqnlr.provenance import provenance
from lightning_dqnlr.rl.dqn import Agent
from lightning_dqnlr.rl.rewards import Reward
from lightning_dqnlr.scoring.evaluate import Regrets, Rivals, evaluate
from lightning_dqnlr.tasks.task import Task, TaskFamily

_PROGRESS = ("episode", "inner_steps", "seconds", "best_score")
_SETTINGS = ("tasks", "reward", "spec", "agent", "collect", "engine")
# `best` compares scores, so the runs that are evaluated stay the same.
_EVALUATED = ("evaluation_tasks", "evaluation_seeds")
_FIXED = ("updates", "round", "warm_up_episodes", "capacity", "seed", *_EVALUATED)


@dataclass(frozen=True)
class TrainConfig:
    """The outer loop.

    Args:
        episodes: outer steps; each runs one task with R replicas.
        updates: of the learner after each episode.
        warm_up_episodes: episodes before the first update.
        capacity: of the replay buffer, in transitions.
        evaluate_every: episodes between evaluations.
        evaluation_tasks: number of validation tasks.
        evaluation_seeds: replicas of each.
        checkpoint_every: episodes between checkpoints.
        keep_every: episodes between policies that are kept, as `episode-00448` and so on. Kept
            policies can be averaged with `dqnlr-combine`. None keeps only the best and the last.
        round: episodes collected with one state of the network before learning from them.
        rivals: folder of the tuned cosines, which runs of the same tasks can share; None for
            `rivals` in the run's own folder.
        max_minutes: stop after this wall-clock time; None for no limit.
        seed: of tasks, exploration and network.
        device: where the outer loop runs.

    Raises:
        ConfigurationError: for a count or a time limit out of range.

    Example:
        >>> TrainConfig(episodes=64, round=8).updates
        200
    """

    episodes: Count = 1000
    updates: Annotated[int, 0] = 200
    warm_up_episodes: Annotated[int, 0] = 4
    capacity: Count = 500_000
    evaluate_every: Count = 25
    evaluation_tasks: Count = 12
    evaluation_seeds: Count = 8
    checkpoint_every: Count = 25
    keep_every: Count | None = None
    round: Count = 1
    rivals: str | None = None
    max_minutes: Annotated[float, "(0, inf]"] | None = None
    seed: int = 0
    device: str = "cpu"

    def __post_init__(self) -> None:
        check_settings(self, "TrainConfig.")
        check_integer("TrainConfig.seed", self.seed, -(2**63), 2**63 - 1)  # torch's own range


@dataclass
class MetaTrainer:
    """Learns an `LRPolicy` over a distribution of tasks.

    Args:
        tasks: where training ("train") and selection ("validation") tasks come from.
        reward: of an episode's decisions.
        spec: features, actions, decision times.
        agent: what learns, and from which transitions.
        collect: the rollouts.
        config: the outer loop.
        folder: checkpoints and the policies go here; this run alone writes to it.
        workers: where episodes are collected; the result does not depend on it.
        record: plain JSON data put into the record of every policy saved (the command, say).
        engine: runs the inner loops.

    Raises:
        ConfigurationError: for a reward that would be 0 whatever the policy does.

    Example:
        >>> trainer = MetaTrainer(  # doctest: +SKIP
        ...     NoisyQuadratics(), FinalScore(), ControllerSpec(), Agent(), CollectConfig(),
        ...     TrainConfig(episodes=64), Path("run"),
        ... )
        >>> best_score = trainer.fit(report=print)  # doctest: +SKIP
    """

    tasks: TaskFamily
    reward: Reward
    spec: ControllerSpec
    agent: Agent
    collect: CollectConfig
    config: TrainConfig
    folder: Path
    workers: Workers = field(default_factory=LocalWorkers)
    record: dict[str, Any] = field(default_factory=dict)
    engine: Engine = ON_CPU
    episode: int = 0
    inner_steps: int = 0
    seconds: float = 0.0
    best_score: float = float("inf")
    failures: Failures = field(default_factory=Failures)

    def __post_init__(self) -> None:
        if self.collect.replicas < self.reward.least_replicas:
            raise ConfigurationError(
                f"env.collect.replicas={self.collect.replicas} leaves reward {self.reward} nothing "
                f"to compare; use at least {self.reward.least_replicas} replicas, or "
                "reward=log_progress, which pays each run by itself."
            )
        self._last_validation: dict[str, Any] = {}
        torch.manual_seed(self.config.seed)
        self.generator = torch.Generator().manual_seed(self.config.seed)
        device = self.config.device
        size = len(self.spec.features)
        self.learner = self.agent.learner.build(self.spec, device)
        self.replay = self.agent.replay.build(self.config.capacity, size, device)
        self.rivals = Rivals(self.config.rivals or self.folder / "rivals", self.engine)

    @property
    def behaviour(self) -> LRPolicy:
        """The exploring policy: what the learner learns with."""
        return self._frozen(self.learner.online)

    @property
    def policy(self) -> LRPolicy:
        """The policy to evaluate and ship: the learner's average."""
        return self._frozen(self.learner.average)

    def _frozen(self, network: Network) -> LRPolicy:
        """Learning leaves the copy alone; the record is what the callback takes as defaults."""
        start = "auto" if self.collect.start == "safe" else "optimizer"
        record = {"start": start, "circuit_breaker": self.collect.circuit_breaker}
        return LRPolicy(copy.deepcopy(network).requires_grad_(False), self.spec, record)

    def validation_tasks(self, watch: Watch = iter) -> Sequence[Task]:
        """The tasks that choose; never trained on, never reported on."""
        numbers = watch(range(self.config.evaluation_tasks))
        return usable_tasks(self.tasks, numbers, self.rivals, self.failures)

    def fit(self, report: Callable[[EpisodeReport], None], watch: Watch = iter) -> float:
        """Runs to the last episode (or the time limit); returns the best validation score.

        Args:
            report: called after every episode.
            watch: passes on the numbers of the validation tasks, each before its cosine is tuned.
        """
        remove_leftovers(self.folder)
        started = time.monotonic() - self.seconds
        validation = self.validation_tasks(watch)
        with self.workers.open() as collect:
            while not self.finished:
                before = self.episode
                last = min(before + self.config.round, self.config.episodes)
                for progress in self._round(collect, last - before):
                    self.seconds = progress.seconds = time.monotonic() - started
                    if self.episode == last and self._due(before, self.config.evaluate_every):
                        progress.scores = self._select(validation)
                    progress.best_score = self.best_score
                    report(progress)
                if self.config.keep_every and self._due(before, self.config.keep_every):
                    self._save_policy(f"episode-{self.episode:05d}")
                if self._due(before, self.config.checkpoint_every):
                    self.save_checkpoint()
        return self.best_score

    @property
    def finished(self) -> bool:
        limit = self.config.max_minutes
        late = limit is not None and self.seconds > 60 * limit
        return late or self.episode >= self.config.episodes

    def _due(self, before: int, every: int) -> bool:
        """Whether the round since `before` crossed a multiple of `every`, or is the last."""
        return self.episode // every > before // every or self.finished

    def _round(self, collect: Collector, size: int) -> Iterator[EpisodeReport]:
        """Episodes collected with one state of the network, each followed by its updates."""
        policy = self.behaviour
        first = self.config.seed * 1_000_003 + self.episode
        settings = map(self.collect.at, range(self.episode, self.episode + size))
        jobs = [
            Job(self.tasks, seed, policy, each, self.reward, self.engine)
            for seed, each in enumerate(settings, first)
        ]
        for job, outcome in zip(jobs, collect(jobs), strict=True):
            yield self._learn_from(job.seed, outcome)

    def _learn_from(self, seed: int, outcome: JobOutcome) -> EpisodeReport:
        """Takes in one episode. A task that failed is recorded and skipped."""
        self.episode += 1
        if outcome.episode is None:
            name = outcome.task.name if outcome.task else f"seed {seed}"
            failure = self.failures.note_training(name, str(outcome.failure))
            outcome = outcome._replace(failure=failure)
            return EpisodeReport(self.episode, self.inner_steps, outcome)
        self.failures.in_a_row = 0
        self.inner_steps += outcome.episode.steps
        self.replay.extend(outcome.episode.transitions)
        learns = self.episode > self.config.warm_up_episodes
        loss = self._learn() if learns else float("nan")
        return EpisodeReport(self.episode, self.inner_steps, outcome, loss)

    def _learn(self) -> float:
        total = torch.zeros((), device=self.config.device)
        for _ in range(self.config.updates):
            draw = self.replay.sample(self.agent.learner.batch_size, self.generator)
            update = self.learner.update(draw.transitions, draw.weights)
            self.replay.learned(draw.rows, update.errors)
            total += update.loss
        return (total / max(1, self.config.updates)).item()

    def _select(self, validation: Sequence[Task]) -> Regrets:
        seeds = range(self.config.evaluation_seeds)
        scores = evaluate(self.policy, validation, self.rivals, seeds, self.engine)
        self._last_validation = {**scores.summary(), "tasks": scores.by_task()}
        if scores.score < self.best_score:
            self.best_score = scores.score
            self._save_policy("best")
        return scores

    def _save_policy(self, name: str) -> None:
        policy = self.policy
        policy.record |= self._policy_record()
        policy.save(self.folder / name)

    def _policy_record(self) -> dict[str, Any]:
        """What a user of the policy should know."""
        return {
            "validation": self._last_validation,
            "episodes": self.episode,
            "failed_tasks": len(self.failures.texts),
            "failures": list(self.failures.texts),
            "inner_steps": self.inner_steps,
            "updates": self.learner.updates,
            "minutes": round(self.seconds / 60, 2),
            "seed": self.config.seed,
            **{name: _text(getattr(self, name)) for name in _SETTINGS if name != "spec"},
            **self.record,
            **provenance(),
        }

    def save_checkpoint(self) -> Path:
        """Writes `checkpoint.pt` atomically, and the policy of that moment as `last`."""
        self._save_policy("last")
        return write_checkpoint(self.folder, self.state_dict())

    def load_checkpoint(self) -> None:
        """Continues from `checkpoint.pt`.

        Raises:
            ConfigurationError: there is none, it is damaged, or it was made with other settings.
        """
        with faults_of(self.folder):
            self.load_state_dict(read_checkpoint(self.folder))

    def state_dict(self) -> dict[str, Any]:
        """Everything the next outer step depends on."""
        return {
            "learner": self.learner.state_dict(),
            "replay": self.replay.state_dict(),
            "generator": self.generator.get_state(),
            **{name: getattr(self, name) for name in _PROGRESS},
            "failures": asdict(self.failures),
            "validation": self._last_validation,
            "settings": self._settings(),
            "format_version": FORMAT_VERSION,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        check_state(state)
        check_same_settings(state["settings"], self._settings())
        self.learner.load_state_dict(state["learner"])
        self.replay.load_state_dict(state["replay"])
        self.generator.set_state(state["generator"])
        for name in _PROGRESS:
            setattr(self, name, state[name])
        self.failures = Failures(**state["failures"])
        self._last_validation = state["validation"]

    def _settings(self) -> dict[str, str]:
        """What may not change within a run; its length and its limits may."""
        config = {name: _text(getattr(self.config, name)) for name in _FIXED}
        return {**config, **{name: _text(getattr(self, name)) for name in _SETTINGS}}


def _text(settings: object) -> str:
    """Settings in words; without memory addresses, which differ from process to process."""
    return re.sub(r" at 0x[0-9a-f]+", "", repr(settings))
