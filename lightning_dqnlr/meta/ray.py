"""Episodes on a Ray cluster: the same outcomes, in the same order, from other machines.

Of Ray only actors and the object store are used. The state of the network goes out once per round
(`ray.put`), the episodes come back. A worker that dies is replaced and its episodes are collected
again: an episode is a function of its job alone, so nothing is lost and nothing learned twice.
"""

from __future__ import annotations

import logging
import math
import os
import socket
import sys
import tempfile
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib import import_module
from importlib.util import find_spec
from typing import Any
from urllib.parse import urlsplit

import torch

from lightning_dqnlr.envs.process import keep_freed_memory
from lightning_dqnlr.errors import ConfigurationError
from lightning_dqnlr.meta.collect import CollectConfig
from lightning_dqnlr.meta.workers import (
    Collector,
    Job,
    Outcome,
    check_count,
    run_job,
    workers_keep_dying,
)

_log = logging.getLogger(__name__)
# One episode runs while the next waits beside it: the worker need not wait for the learner.
_EPISODES_PER_WORKER = 2
# Unix sockets may have names of 107 characters, of which Ray uses about 80 below its folder.
_LONGEST_FOLDER = 24


@dataclass(frozen=True)
class RayWorkers:
    """Collects on rollout actors of a Ray cluster (the extra `ray`).

    Args:
        workers: number of actors, one process each.
        address: of a running cluster ("auto" for the one on this machine, "ray://..." or
            "host:6379"); None starts one here, which ends with the run.
        num_cpus: CPUs that an actor reserves.
        num_gpus: GPUs that it reserves; fractions share one. Needed for device=cuda.
        restarts: how often in a row dead actors are replaced without a single episode coming back
            in between.
        start_minutes: how long to wait for the cluster to place all actors.

    Raises:
        ConfigurationError: for a number out of range, or if Ray is not installed; from `open`, if
            there is no such cluster or it has no room; from the collector, if actors die again
            and again.
    """

    workers: int = 2
    address: str | None = None
    num_cpus: float = 1.0
    num_gpus: float = 0.0
    restarts: int = 3
    start_minutes: float = 5.0

    def __post_init__(self) -> None:
        check_count("collector.workers", self.workers, 1)
        check_count("collector.restarts", self.restarts, 0)
        for name in ("num_cpus", "num_gpus", "start_minutes"):
            value = getattr(self, name)
            if not 0 <= value < math.inf:
                raise ConfigurationError(f"collector.{name}={value!r} must not be negative.")
        if find_spec("ray") is None:
            raise ConfigurationError(
                "collector=ray needs Ray: pip install 'lightning-dqnlr[ray]', or collector=local."
            )

    @contextmanager
    def open(self) -> Iterator[Collector]:
        """A collector on the cluster's actors, which end with the context."""
        import ray

        with tempfile.TemporaryDirectory(
            prefix="dqnlr-", dir=_short_folder(), ignore_cleanup_errors=True
        ) as folder:
            self._connect(folder)
            try:
                yield _Actors(self)
            finally:
                ray.shutdown()

    def _connect(self, folder: str) -> None:
        """Joins the cluster, or starts one with exactly the resources asked for."""
        import ray

        try:
            if self.address is not None:
                _check_reachable(self.address)
                ray.init(address=self.address, log_to_driver=False, logging_level=logging.ERROR)
                return
            os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # it works without a network
            ray.init(
                address="local",
                num_cpus=max(1, math.ceil(self.workers * self.num_cpus)),
                include_dashboard=False,
                log_to_driver=False,
                logging_level=logging.ERROR,
                _temp_dir=folder,
            )
        except (OSError, RuntimeError, ValueError, ray.exceptions.RayError) as error:
            raise ConfigurationError(
                f"collector.address={self.address!r} did not answer ({_last_line(error)}). Start "
                "a cluster with `ray start --head`, or leave the address out."
            ) from error


class Rollout:
    """The actor: collects the episodes that it is told to.

    Args:
        path: where the driver finds modules; a task family may be defined beside the command.
    """

    def __init__(self, path: Sequence[str]) -> None:
        torch.set_num_threads(1)
        keep_freed_memory()
        sys.path += [folder for folder in path if folder not in sys.path]

    def process(self) -> int:
        """Its process id: the answer says that it has started."""
        return os.getpid()

    def collect(self, round_: Job, seed: int, config: CollectConfig) -> Outcome:
        """One episode of a round, given by any of its jobs."""
        return run_job(replace(round_, seed=seed, config=config))


class _Actors:
    """Hands the jobs of a round to actors, two at a time, and replaces the dead."""

    def __init__(self, settings: RayWorkers) -> None:
        self._ray: Any = import_module("ray")
        self._settings, self._restarts = settings, settings.restarts
        options = {"num_cpus": settings.num_cpus, "num_gpus": settings.num_gpus}
        self._rollout: Any = self._ray.remote(**options)(Rollout)
        self._starting: dict[Any, Any] = {}  # the call that tells -> the actor
        self._load: dict[Any, int] = {}  # the actor -> episodes it was given
        self._running: dict[Any, tuple[int, Any]] = {}  # the call -> number of the job, the actor
        for _ in range(settings.workers):
            self._start()
        started = list(self._starting)
        self._ray.wait(started, num_returns=len(started), timeout=60 * settings.start_minutes)

    def __call__(self, jobs: Sequence[Job]) -> Iterator[Outcome]:
        if not jobs:
            return
        self._running, self._load = {}, dict.fromkeys(self._load, 0)
        waiting, done = deque(range(len(jobs))), dict[int, Outcome]()
        with _clear_errors(self._ray, "collector=ray"):
            # Everything but seed and config is the same in a round, and travels once.
            round_ = self._ray.put(jobs[0])
        for i in range(len(jobs)):
            while i not in done:
                self._submit(round_, jobs, waiting)
                with _clear_errors(self._ray, "collector=ray"):
                    self._advance(waiting, done)
            yield done.pop(i)

    def _start(self) -> None:
        actor = self._rollout.remote(sys.path)
        self._starting[actor.process.remote()] = actor

    def _submit(self, round_: Any, jobs: Sequence[Job], waiting: deque[int]) -> None:
        while waiting and self._load:
            actor = min(self._load, key=self._load.__getitem__)
            if self._load[actor] == _EPISODES_PER_WORKER:
                return
            self._load[actor] += 1
            job = waiting.popleft()
            call = actor.collect.remote(round_, jobs[job].seed, jobs[job].config)
            self._running[call] = job, actor

    def _advance(self, waiting: deque[int], done: dict[int, Outcome]) -> None:
        """Waits until an episode is over, or an actor has started, or one is lost."""
        patience = None if self._running else 60 * self._settings.start_minutes
        calls = [*self._running, *self._starting]
        over, _ = self._ray.wait(calls, num_returns=1, timeout=patience)
        if not over:
            raise ConfigurationError(self._no_room())
        call = over[0]
        try:
            result = self._ray.get(call)
        except _losses(self._ray) as error:
            self._lose(call, waiting, error)
            return
        if call in self._starting:
            self._load[self._starting.pop(call)] = 0
            return
        job, actor = self._running.pop(call)
        done[job], self._restarts = result, self._settings.restarts
        if actor in self._load:
            self._load[actor] -= 1

    def _lose(self, call: Any, waiting: deque[int], error: Exception) -> None:
        """Puts the job back in front, and another actor in the place of the one that died."""
        if call in self._starting:
            actor = self._starting.pop(call)
        else:
            job, actor = self._running.pop(call)
            waiting.appendleft(job)
            if self._load.pop(actor, None) is None:
                return  # the second job of an actor that was replaced for its first
        if self._restarts == 0:
            raise workers_keep_dying(self._settings.workers) from error
        self._restarts -= 1
        _log.warning("A worker was lost and is replaced; its episode is collected again.")
        self._ray.kill(actor)  # it may be out of reach, not dead
        self._start()

    def _no_room(self) -> str:
        wanted, there = self._settings, self._ray.cluster_resources()
        return (
            f"collector.workers={wanted.workers} with num_cpus={wanted.num_cpus} and "
            f"num_gpus={wanted.num_gpus} each: no worker could start within "
            f"{wanted.start_minutes} minutes; the cluster has {there.get('CPU', 0)} CPUs and "
            f"{there.get('GPU', 0)} GPUs. Ask for less, or give the cluster more."
        )


def _losses(ray: Any) -> tuple[type[Exception], ...]:
    """What Ray raises when an actor, its machine or a result that was still there is gone."""
    names = ("RayActorError", "WorkerCrashedError", "NodeDiedError", "ObjectLostError")
    errors = [getattr(ray.exceptions, name) for name in (*names, "OutOfMemoryError")]
    return tuple(errors)


@contextmanager
def _clear_errors(ray: Any, what: str) -> Iterator[None]:
    """Turns what is left of Ray's errors into ours: `run_job` itself raises nothing."""
    try:
        yield
    except ray.exceptions.RayTaskError as error:
        raise ConfigurationError(
            f"{what}: a worker could not take or return an episode ({_last_line(error)}). The "
            "tasks' module must be importable there, and the packages the same as here."
        ) from error
    except ray.exceptions.RayError as error:
        raise ConfigurationError(
            f"{what}: the cluster failed ({_last_line(error)}). Go on with resume=true."
        ) from error


def _check_reachable(address: str) -> None:
    """Ray itself would try for many minutes.

    Raises:
        OSError: nobody answers at the address.
        ValueError: it is not an address.
    """
    if ":" not in address:
        return  # "auto", which looks on this machine only
    place = urlsplit(address if "://" in address else f"//{address}")
    socket.create_connection((place.hostname or "", place.port or 10001), timeout=10).close()


def _last_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[-1]


def _short_folder() -> str | None:
    """Where Ray's folder can be: the usual place for temporary files, or /tmp."""
    return None if len(tempfile.gettempdir()) <= _LONGEST_FOLDER else "/tmp"
