"""Episodes of one round, one after the other or in several processes: the results are the same.

A round is a fixed number of episodes collected with one state of the network. Its results are
learned from in the order of the episodes, so how many processes shared the work, and which was
faster, changes nothing.
"""

from __future__ import annotations

import multiprocessing
import os
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch

from lightning_dqnlr.envs.environment import Engine, Reward
from lightning_dqnlr.errors import ConfigurationError
from lightning_dqnlr.meta.collect import CollectConfig, Episode, collect_episode
from lightning_dqnlr.policy.policy import LRPolicy
from lightning_dqnlr.tasks.task import Task, TaskFamily


@dataclass(frozen=True)
class Job:
    """One episode to collect; `seed` fixes the task, the replicas and the exploration."""

    tasks: TaskFamily
    seed: int
    policy: LRPolicy
    config: CollectConfig
    reward: Reward
    engine: Engine


class Outcome(NamedTuple):
    """What became of a job: an episode, or the error that its task raised."""

    task: Task | None
    episode: Episode | None
    error: Exception | None


class Collector(Protocol):
    """Runs the jobs of a round; the outcomes come in the order of the jobs."""

    def __call__(self, jobs: Sequence[Job]) -> Iterator[Outcome]:
        """The outcomes, as they become available."""


def run_job(job: Job) -> Outcome:
    """Collects one episode. A task that fails is an outcome, not an error: others go on."""
    task: Task | None = None
    try:
        task = job.tasks.sample(job.seed, "train")
        generator = torch.Generator().manual_seed(job.seed)
        episode = collect_episode(task, job.policy, job.config, job.reward, generator, job.engine)
    except Exception as error:
        return Outcome(task, None, error)
    return Outcome(task, episode, None)


def in_this_process(jobs: Sequence[Job]) -> Iterator[Outcome]:
    """The collector of a single process."""
    return map(run_job, jobs)


@contextmanager
def open_collector(workers: int) -> Iterator[Collector]:
    """A collector on so many processes, which end with the context (or with this process).

    Raises:
        ConfigurationError: from the collector, if a process was killed (out of memory, say).
    """
    if workers == 1:
        yield in_this_process
        return
    context = multiprocessing.get_context("spawn")  # fork would copy torch's threads half-alive
    with ProcessPoolExecutor(workers, context, initializer=_begin_worker) as pool:

        def collect(jobs: Sequence[Job]) -> Iterator[Outcome]:
            try:
                yield from pool.map(run_job, jobs)
            except BrokenProcessPool as error:
                raise ConfigurationError(
                    f"workers={workers}: a worker process was killed, perhaps for want of memory. "
                    "Go on with resume=true and fewer workers or replicas."
                ) from error

        yield collect


def _begin_worker() -> None:
    torch.set_num_threads(1)
    threading.Thread(target=_end_with_parent, args=(os.getppid(),), daemon=True).start()


def _end_with_parent(parent: int) -> None:
    """Workers of a parent that was killed would otherwise wait for ever."""
    while os.getppid() == parent:
        time.sleep(2.0)
    os._exit(1)
