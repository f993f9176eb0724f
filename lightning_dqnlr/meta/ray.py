"""Episodes on a Ray cluster: the same outcomes, in the same order, from other machines.

An episode is a function of its job alone, so each is a Ray task. Ray runs a task again if its
worker dies. What is the same for all jobs of a round goes out once (`ray.put`).
"""

from __future__ import annotations

import logging
import math
import os
import socket
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib.util import find_spec
from typing import Annotated, Any
from urllib.parse import urlsplit

import torch

from lightning_dqnlr.checks import Count, NotNegative, Positive, check_kind, check_settings
from lightning_dqnlr.envs.process import keep_freed_memory
from lightning_dqnlr.errors import ConfigurationError
from lightning_dqnlr.meta.collect import CollectConfig
from lightning_dqnlr.meta.workers import Collector, Job, JobOutcome, run_job, workers_keep_dying

# Unix sockets may have names of 107 characters, of which Ray uses about 80 below its folder.
_LONGEST_FOLDER = 24
_QUIET: Any = {"log_to_driver": False, "logging_level": logging.ERROR}


@dataclass(frozen=True)
class RayWorkers:
    """Collects by tasks on a Ray cluster (the extra `ray`).

    Args:
        workers: episodes under way at a time, each in a process of its own.
        address: of a running cluster ("auto" for the one on this machine, "ray://..." or
            "host:6379"); None starts one here, which ends with the run.
        num_cpus: CPUs that are reserved for each worker.
        num_gpus: GPUs that are reserved for each; fractions share one. Needed for device=cuda.
        restarts: how often an episode is collected again whose worker died.
        start_minutes: how long to wait for the cluster to have room for all workers.

    Raises:
        ConfigurationError: for a number out of range, without Ray, or without such a cluster. The
            collector raises it for want of room, or if workers die again and again.

    Example:
        >>> with RayWorkers(workers=4).open() as collect:  # doctest: +SKIP
        ...     outcomes = list(collect(jobs))
    """

    workers: Count = 2
    address: str | None = None
    num_cpus: Positive = 1.0
    num_gpus: NotNegative = 0.0
    restarts: Annotated[int, 0] = 3
    start_minutes: NotNegative = 5.0

    def __post_init__(self) -> None:
        check_settings(self, "collector.")
        if self.address is not None:
            check_kind("collector.address", self.address, str)
        if find_spec("ray") is None:
            raise ConfigurationError(
                "collector=ray needs Ray: pip install 'lightning-dqnlr[ray]', or collector=local."
            )

    @contextmanager
    def open(self) -> Iterator[Collector]:
        import ray

        place = None if len(tempfile.gettempdir()) <= _LONGEST_FOLDER else "/tmp"
        with tempfile.TemporaryDirectory(
            prefix="dqnlr-", dir=place, ignore_cleanup_errors=True
        ) as folder:
            self._connect(folder)
            try:
                yield self._collector()
            finally:
                ray.shutdown()

    def _collector(self) -> Collector:
        import ray
        from ray.util.placement_group import placement_group
        from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

        bundle = {"CPU": self.num_cpus, "GPU": self.num_gpus}
        # The group holds the room of all workers, and so no more episodes run than there are.
        room = placement_group([{k: v for k, v in bundle.items() if v}] * self.workers)
        collect_one: Any = ray.remote(
            num_cpus=self.num_cpus,
            num_gpus=self.num_gpus,
            max_retries=self.restarts,
            scheduling_strategy=PlacementGroupSchedulingStrategy(room),
        )(_collect)

        def collect(jobs: Sequence[Job]) -> Iterator[JobOutcome]:
            if not jobs:
                return
            with self._clear_errors():
                if not room.wait(60 * self.start_minutes):
                    raise ConfigurationError(self._no_room())
                # In a list it arrives unopened: a worker must know first where to find modules.
                round_ = [ray.put(jobs[0])]
                calls = [collect_one.remote(round_, j.seed, j.config, sys.path) for j in jobs]
            for call in calls:
                with self._clear_errors():
                    outcome = ray.get(call)
                yield outcome

        return collect

    def _connect(self, folder: str) -> None:
        """Joins the cluster, or starts one with exactly the resources asked for."""
        import ray

        try:
            if self.address is not None:
                _check_reachable(self.address)
                ray.init(address=self.address, **_QUIET)
                return
            os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # it works without a network
            ray.init(
                address="local",
                num_cpus=max(1, math.ceil(self.workers * self.num_cpus)),
                include_dashboard=False,
                _temp_dir=folder,
                **_QUIET,
            )
        except (OSError, RuntimeError, ValueError, ray.exceptions.RayError) as error:
            raise ConfigurationError(
                f"collector.address={self.address!r} did not answer ({_last_line(error)}). Start "
                "a cluster with `ray start --head`, or leave the address out."
            ) from error

    def _no_room(self) -> str:
        import ray

        there = ray.cluster_resources()
        return (
            f"collector.workers={self.workers} with num_cpus={self.num_cpus} and "
            f"num_gpus={self.num_gpus} each: there was no room for them within "
            f"{self.start_minutes} minutes; the cluster has {there.get('CPU', 0)} CPUs and "
            f"{there.get('GPU', 0)} GPUs. Ask for less, or give the cluster more."
        )

    @contextmanager
    def _clear_errors(self) -> Iterator[None]:
        """Turns Ray's errors into ours: `run_job` itself raises nothing."""
        from ray import exceptions

        died = ("WorkerCrashedError", "NodeDiedError", "LocalRayletDiedError", "OutOfMemoryError")
        try:
            yield
        except tuple(getattr(exceptions, name) for name in died) as error:
            raise workers_keep_dying(self.workers) from error
        except exceptions.RayTaskError as error:
            raise ConfigurationError(
                f"collector=ray: a worker could not take or return an episode "
                f"({_last_line(error)}). The tasks' module must be importable there, and the "
                "packages the same as here."
            ) from error
        except exceptions.RayError as error:
            raise ConfigurationError(
                f"collector=ray: the cluster failed ({_last_line(error)}). Go on with resume=true."
            ) from error


def _collect(round_: list[Any], seed: int, config: CollectConfig, path: list[str]) -> JobOutcome:
    """In a worker: one episode of a round, given by any job of it; they differ in seed and config.

    The reference to the job is alone in a list. `path` is where the driver finds modules: a task
    family may be defined beside the command.
    """
    import ray

    torch.set_num_threads(1)
    keep_freed_memory()
    sys.path += [folder for folder in path if folder not in sys.path]
    return run_job(replace(ray.get(round_[0]), seed=seed, config=config))


def _check_reachable(address: str) -> None:
    """Raises OSError or ValueError at once; Ray itself would try for many minutes."""
    if ":" not in address:
        return  # "auto", which looks on this machine only
    place = urlsplit(address if "://" in address else f"//{address}")
    socket.create_connection((place.hostname or "", place.port or 10001), timeout=10).close()


def _last_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[-1]
