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

import torch

from lightning_dqnlr.bench.runs.record import Record
from lightning_dqnlr.bench.runs.run import PlannedRun
from lightning_dqnlr.bench.tasks.task import BenchTask
from lightning_dqnlr.errors import ConfigurationError, MissingPackageError
from lightning_dqnlr.tasks.task import Task


@dataclass(frozen=True)
class Refusal:
    """Why a method cannot be run on this machine at all."""

    reason: str


@dataclass
class _Worker:
    process: SpawnProcess
    connection: Connection


def make_runs(
    runs: Sequence[PlannedRun], workers: int, skip: Callable[[PlannedRun], bool]
) -> Iterator[tuple[int, Record | Refusal | None]]:
    """Makes runs in several processes, which end when this iterator does.

    Args:
        runs: those of a task should follow each other, because a process keeps the last task that
            it opened.
        workers: number of processes.
        skip: asked right before a run would begin.

    Yields:
        The place in `runs`, and what became of it (None if skipped), in the order in which runs
        end.

    Raises:
        ConfigurationError: a task or method cannot be sent to another process, or one was killed.
    """
    with _open(min(workers, len(runs)), runs) as pool:
        idle, busy = list(pool), 0
        for index, run in enumerate(runs):
            if skip(run):
                yield index, None
                continue
            if not idle:
                yield _receive(idle, pool)
                busy -= 1
                if skip(run):
                    yield index, None
                    continue
            _send(idle.pop(), index)
            busy += 1
        for _ in range(busy):
            yield _receive(idle, pool)


@contextmanager
def _open(count: int, runs: Sequence[PlannedRun]) -> Iterator[list[_Worker]]:
    pool: list[_Worker] = []
    try:
        for _ in range(count):
            pool.append(_start(runs))
        yield pool
    finally:
        for worker in pool:  # not `terminate`: Lightning lets a run go on after SIGTERM
            worker.process.kill()
            worker.connection.close()
            worker.process.join()


def _start(runs: Sequence[PlannedRun]) -> _Worker:
    context = multiprocessing.get_context("spawn")  # fork would copy torch's threads half-alive
    ours, theirs = context.Pipe()
    process = context.Process(target=_serve, args=(theirs, runs), daemon=True)
    try:
        process.start()
    except Exception as error:  # whatever a user's object raises when it is to be sent
        raise ConfigurationError(
            f"a task or method cannot be sent to another process ({error}); define its module and "
            "its data loader at the top of a file that can be imported."
        ) from error
    theirs.close()
    return _Worker(process, ours)


def _send(worker: _Worker, job: int) -> None:
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


def _serve(connection: Connection, runs: Sequence[PlannedRun]) -> None:
    """Makes the runs whose places it is sent, until the connection closes.

    All runs are sent once, at the start: their tasks may be large, and many runs share one.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the parent, which ends this
    threading.Thread(target=_end_with_parent, daemon=True).start()
    torch.set_num_threads(1)
    opened: tuple[BenchTask, Task] | None = None
    while True:
        try:
            index: int = connection.recv()
        except EOFError:
            return
        run = runs[index]
        if opened is None or opened[0] is not run.task:
            opened = (run.task, run.task.open())
        connection.send((index, _outcome(run, opened[1])))


def _outcome(run: PlannedRun, task: Task) -> Record | Refusal:
    try:
        return run.make(task)
    except MissingPackageError as error:
        return Refusal(str(error))


def _end_with_parent() -> None:
    """A run of a parent that was killed would otherwise go on."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
