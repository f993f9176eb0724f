"""The benchmark's runs in several processes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

from lightning_dqnlr.bench.methods.plan import Method
from lightning_dqnlr.bench.runs.record import Record
from lightning_dqnlr.bench.runs.run import run
from lightning_dqnlr.bench.tasks.task import BenchTask
from lightning_dqnlr.errors import ConfigurationError, MissingPackageError
from lightning_dqnlr.processes import NotSent, ProcessDied, Processes
from lightning_dqnlr.tasks.task import Task


class Call(NamedTuple):
    """The arguments of one run."""

    task: BenchTask
    method: Method
    lr: float | None
    seed: int


@dataclass(frozen=True)
class Refusal:
    """Why a method cannot be run on this machine at all."""

    reason: str


class _Job(NamedTuple):
    """A call as it is sent: tasks may be large, so they are sent once, and then named."""

    task: int
    method: int
    lr: float | None
    seed: int


def run_calls(
    calls: Sequence[Call], workers: int, skip: Callable[[Call], bool]
) -> Iterator[tuple[int, Record | Refusal | None]]:
    """Makes runs in several processes, which end when this iterator does.

    Args:
        calls: the runs; those of a task should follow each other, because a process keeps the last
            task that it opened.
        workers: number of processes.
        skip: asked right before a run would begin.

    Yields:
        The place in `calls`, and what became of it (None if skipped), in the order in which runs
        end.

    Raises:
        ConfigurationError: a task or method cannot be sent to another process, or one was killed.
    """
    tasks = {id(call.task): call.task for call in calls}
    methods = {id(call.method): call.method for call in calls}
    make = partial(_Runs, list(tasks.values()), list(methods.values()))
    task_place = {key: place for place, key in enumerate(tasks)}
    method_place = {key: place for place, key in enumerate(methods)}
    count, busy = min(workers, len(calls)), 0
    try:
        with Processes(count, make) as pool:
            for index, call in enumerate(calls):
                if busy == count:
                    yield pool.receive()
                    busy -= 1
                if skip(call):
                    yield index, None
                    continue
                task, method = task_place[id(call.task)], method_place[id(call.method)]
                pool.submit(index, _Job(task, method, call.lr, call.seed))
                busy += 1
            for _ in range(busy):
                yield pool.receive()
    except NotSent as error:
        raise ConfigurationError(
            f"a task or method cannot be sent to another process ({error}); define its module and "
            "its data loader at the top of a file that can be imported."
        ) from error
    except ProcessDied as error:
        raise ConfigurationError(
            f"workers: a process ended with code {error.code}, perhaps for want of memory (-9), or "
            "because it cannot import a task's module (1; set PYTHONPATH). What was finished is "
            "stored; the same command goes on, with fewer workers if need be."
        ) from error


class _Runs:
    """Makes runs, one after the other; keeps the last task that it opened."""

    def __init__(self, tasks: list[BenchTask], methods: list[Method]) -> None:
        self._tasks, self._methods = tasks, methods
        self._opened: tuple[int, Task] | None = None

    def __call__(self, job: _Job) -> Record | Refusal:
        named = self._tasks[job.task]
        if self._opened is None or self._opened[0] != job.task:
            self._opened = job.task, named.open()
        try:
            method = self._methods[job.method]
            return run(method, self._opened[1], job.lr, job.seed, named.split)
        except MissingPackageError as error:
            return Refusal(str(error))
