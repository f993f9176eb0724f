"""Episodes of one round, one after the other or in several processes: the results are the same.

A round is a fixed number of episodes collected with one state of the network. An episode is a
function of its job alone, and its result is learned from in the order of the episodes, exactly
once. The number of processes, their speed and their replacement therefore change nothing.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Annotated, NamedTuple, Protocol

import torch

from lightning_dqnlr.checks import Count, check_settings
from lightning_dqnlr.envs.environment import Engine
from lightning_dqnlr.envs.process import give_back_freed_memory, keep_freed_memory
from lightning_dqnlr.errors import ConfigurationError
from lightning_dqnlr.meta.collect import CollectConfig, Episode, collect_episode
from lightning_dqnlr.policy.policy import LRPolicy
from lightning_dqnlr.processes import NotSent, ProcessDied, Processes
from lightning_dqnlr.rl.replay import Transitions
from lightning_dqnlr.rl.rewards import Reward
from lightning_dqnlr.tasks.task import TaskFamily

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Job:
    """One episode to collect; `seed` fixes the task, the replicas and the exploration.

    The jobs of a round differ in `seed` and `config` only.
    """

    tasks: TaskFamily
    seed: int
    policy: LRPolicy
    config: CollectConfig
    reward: Reward
    engine: Engine


class TaskSummary(NamedTuple):
    """What a log says of a task. The task itself, with its data, stays in the worker."""

    name: str
    optimizer: str
    horizon: int


class JobOutcome(NamedTuple):
    """What became of a job: an episode, or in words why its task failed.

    In words, because not every exception survives the way from one process to another.
    """

    task: TaskSummary | None
    episode: Episode | None
    failure: str | None


Collector = Callable[[Sequence[Job]], Iterator[JobOutcome]]
"""Runs the jobs of a round; the outcomes come in the order of the jobs."""


class Workers(Protocol):
    """Where episodes are collected."""

    def open(self) -> AbstractContextManager[Collector]:
        """A collector, whose processes end with the context."""


def run_job(job: Job) -> JobOutcome:
    """Collects one episode. A task that fails is an outcome, not an error: others go on."""
    give_back_freed_memory()  # of the episode before, whose tensors had other sizes
    summary: TaskSummary | None = None
    try:
        task = job.tasks.sample(job.seed, "train")
        summary = TaskSummary(task.name, task.optimizer, task.horizon)
        generator = torch.Generator().manual_seed(job.seed)
        episode = collect_episode(task, job.policy, job.config, job.reward, generator, job.engine)
    except (Exception, SystemExit) as error:
        return JobOutcome(summary, None, f"{type(error).__name__}: {error}")
    if not episode.final_losses.isfinite().any():
        count = len(episode.final_losses)
        return JobOutcome(summary, None, f"not one of {count} replicas ended with a finite loss")
    transitions = finite(episode.transitions)
    if len(transitions.action) == 0:
        return JobOutcome(summary, None, "not one finite transition")
    return JobOutcome(summary, episode._replace(transitions=transitions), None)


def finite(transitions: Transitions) -> Transitions:
    """The transitions that can be learned from; one NaN in the replay would end up everywhere.

    A transition is dropped if its observation or return is not finite. It is also dropped if it
    bootstraps from a next observation that is not finite. At discount 0 (a replica that blew up,
    say) nothing is bootstrapped, and zeros replace such a next observation.
    """
    ends = transitions.discount == 0
    next_finite = transitions.next_observation.isfinite().all(-1)
    keep = transitions.observation.isfinite().all(-1) & transitions.reward.isfinite()
    keep &= transitions.discount.isfinite() & (next_finite | ends)
    following = torch.where(next_finite.unsqueeze(-1), transitions.next_observation, 0.0)
    return Transitions(*(x[keep] for x in transitions._replace(next_observation=following)))


@dataclass(frozen=True)
class LocalWorkers:
    """Collects in this process, or in several of this machine.

    Args:
        workers: number of processes; 1 for this one alone.
        restarts: how often in a row killed processes are replaced without an episode coming back.

    Raises:
        ConfigurationError: for a count out of range; from the collector, if processes are killed
            again and again (out of memory, say).

    Example:
        >>> with LocalWorkers(workers=4).open() as collect:  # doctest: +SKIP
        ...     outcomes = list(collect(jobs))
    """

    workers: Count = 1
    restarts: Annotated[int, 0] = 3

    def __post_init__(self) -> None:
        check_settings(self, "collector.")

    @contextmanager
    def open(self) -> Iterator[Collector]:
        if self.workers == 1:
            yield partial(map, run_job)
            return
        with Processes(self.workers, _begin_worker) as pool:
            yield _Rounds(pool, self.workers, self.restarts)


class _Rounds:
    """Collects rounds in a pool of processes, and replaces those that are killed."""

    def __init__(self, pool: Processes[Job, JobOutcome], workers: int, restarts: int) -> None:
        self._pool = pool
        self._workers = workers
        self._restarts = restarts
        self._left = restarts
        self._handed_in = 0  # jobs of all rounds, whose numbers are their keys

    def __call__(self, jobs: Sequence[Job]) -> Iterator[JobOutcome]:
        round_ = dict(enumerate(jobs, self._handed_in))
        self._handed_in += len(jobs)
        for key, job in round_.items():
            self._pool.submit(key, job)
        done: dict[int, JobOutcome] = {}
        for key in round_:
            while key not in done:
                self._receive(round_, done)
            yield done.pop(key)

    def _receive(self, round_: dict[int, Job], done: dict[int, JobOutcome]) -> None:
        try:
            finished = self._pool.receive()
        except ProcessDied as error:
            if self._left == 0:
                raise workers_keep_dying(self._workers) from error
            self._left -= 1
            _log.warning("A worker was killed and is replaced; its episode is collected again.")
            self._pool.add()
            if error.key in round_:  # not a job of a round that was given up
                self._pool.submit(error.key, round_[error.key])
        except NotSent as error:
            raise ConfigurationError(
                f"collector.workers={self._workers}: the tasks cannot be sent to another "
                f"process ({error}); define them in a module, or use collector.workers=1."
            ) from error
        else:
            done[finished.key] = finished.outcome
            self._left = self._restarts


def workers_keep_dying(workers: int) -> ConfigurationError:
    """The error of a collector that replaced its workers as often as it may."""
    return ConfigurationError(
        f"collector.workers={workers}: worker processes were killed again and again, perhaps for "
        "want of memory. Go on with resume=true and fewer workers or replicas."
    )


def _begin_worker() -> Callable[[Job], JobOutcome]:
    keep_freed_memory()
    return run_job
