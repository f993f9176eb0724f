"""The benchmark's processes: each makes one run after the other on a thread of its own.

Not `concurrent.futures`: that waits for runs which have begun when it is interrupted, and a run may
take a minute.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from typing import NamedTuple

import torch

from lightning_dqnlr.bench.methods.plan import Method
from lightning_dqnlr.bench.runs.record import Record
from lightning_dqnlr.bench.runs.run import run
from lightning_dqnlr.bench.tasks.task import BenchTask
from lightning_dqnlr.errors import ConfigurationError, MissingPackageError
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

    call: int
    task: int
    method: int
    lr: float | None
    seed: int


@dataclass
class _Worker:
    process: SpawnProcess
    connection: Connection


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
    tasks, methods = _distinct([c.task for c in calls]), _distinct([c.method for c in calls])
    waiting = iter(range(len(calls)))
    with _open(min(workers, len(calls)), (list(tasks.values()), list(methods.values()))) as pool:
        idle, busy = list(pool), 0
        for index in waiting:
            call = calls[index]
            if skip(call):
                yield index, None
                continue
            if not idle:
                yield _receive(idle, pool)
                busy -= 1
                if skip(call):
                    yield index, None
                    continue
            places = list(tasks).index(id(call.task)), list(methods).index(id(call.method))
            _send(idle.pop(), _Job(index, *places, call.lr, call.seed))
            busy += 1
        for _ in range(busy):
            yield _receive(idle, pool)


def _distinct(items: Sequence[BenchTask] | Sequence[Method]) -> dict[int, BenchTask | Method]:
    return {id(item): item for item in items}


@contextmanager
def _open(
    count: int, inventory: tuple[list[BenchTask | Method], list[BenchTask | Method]]
) -> Iterator[list[_Worker]]:
    pool: list[_Worker] = []
    try:
        for _ in range(count):
            pool.append(_start(inventory))
        yield pool
    finally:
        for worker in pool:  # not `terminate`: Lightning lets a run go on after SIGTERM
            worker.process.kill()
            worker.connection.close()
            worker.process.join()


def _start(inventory: tuple[list[BenchTask | Method], list[BenchTask | Method]]) -> _Worker:
    context = multiprocessing.get_context("spawn")  # fork would copy torch's threads half-alive
    ours, theirs = context.Pipe()
    process = context.Process(target=_serve, args=(theirs, *inventory), daemon=True)
    try:
        process.start()
    except Exception as error:  # whatever a user's object raises when it is to be sent
        raise ConfigurationError(
            f"a task or method cannot be sent to another process ({error}); define its module and "
            "its data loader at the top of a file that can be imported."
        ) from error
    theirs.close()
    return _Worker(process, ours)


def _send(worker: _Worker, job: _Job) -> None:
    try:
        worker.connection.send(job)
    except OSError as error:
        raise _ended(worker) from error


def _receive(idle: list[_Worker], pool: list[_Worker]) -> tuple[int, Record | Refusal]:
    """Waits for any run to end; its worker is idle then."""
    ready = wait([worker.connection for worker in pool if worker not in idle])
    worker = next(worker for worker in pool if worker.connection is ready[0])
    try:
        outcome: tuple[int, Record | Refusal] = worker.connection.recv()
    except (EOFError, OSError) as error:
        raise _ended(worker) from error
    idle.append(worker)
    return outcome


def _ended(worker: _Worker) -> ConfigurationError:
    worker.process.join(5.0)
    return ConfigurationError(
        f"workers: a process ended with code {worker.process.exitcode}, perhaps for want of memory "
        "(-9), or because it cannot import a task's module (1; set PYTHONPATH). What was finished "
        "is stored; the same command goes on, with fewer workers if need be."
    )


def _serve(connection: Connection, tasks: list[BenchTask], methods: list[Method]) -> None:
    """Makes runs until the connection closes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the parent, which ends this
    threading.Thread(target=_end_with_parent, daemon=True).start()
    torch.set_num_threads(1)
    opened: tuple[int, Task] | None = None
    while True:
        try:
            job: _Job = connection.recv()
        except EOFError:
            return
        if opened is None or opened[0] != job.task:
            opened = job.task, tasks[job.task].open()
        connection.send((job.call, _make(job, tasks[job.task], methods[job.method], opened[1])))


def _make(job: _Job, named: BenchTask, method: Method, task: Task) -> Record | Refusal:
    try:
        return run(method, task, job.lr, job.seed, named.split)
    except MissingPackageError as error:
        return Refusal(str(error))


def _end_with_parent() -> None:
    """A run of a parent that was killed would otherwise go on."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
