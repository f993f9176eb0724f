"""A pool of spawned processes that end with it, and with its parent.

Not `concurrent.futures`: when interrupted, that waits for jobs that have begun, and a training run
may take minutes. One process that is killed there takes the jobs of all others with it.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess
from queue import SimpleQueue
from typing import Any, Generic, TypeVar

import torch

J = TypeVar("J")
O = TypeVar("O")  # noqa: E741 (an outcome)


class ProcessDied(RuntimeError):
    """A process ended before its job did.

    Attributes:
        key: of the job.
        code: with which the process ended: minus the signal's number, if one killed it.
    """

    def __init__(self, key: int, code: int | None) -> None:
        super().__init__(f"the process of job {key} ended with code {code}")
        self.key = key
        self.code = code


class NotSent(RuntimeError):
    """A job cannot be sent to another process; the cause says why."""


@dataclass(frozen=True)
class Done(Generic[O]):
    """A job that is over."""

    key: int
    outcome: O


@dataclass(frozen=True)
class _Handed(Generic[J]):
    """A job that is handed in."""

    key: int
    job: J


class Processes(Generic[J, O]):
    """Does jobs in processes of one torch thread each.

    Args:
        count: number of processes.
        make: called in each process when it begins; it returns what does a job. What it holds is
            sent to each process once.

    Raises:
        NotSent: `make` cannot be sent.

    Example:
        >>> with Processes(2, make_squarer) as pool:  # doctest: +SKIP
        ...     pool.submit(0, 3)
        ...     pool.receive()
        Done(key=0, outcome=9)
    """

    def __init__(self, count: int, make: Callable[[], Callable[[J], O]]) -> None:
        self._make = make
        self._waiting: SimpleQueue[_Handed[J] | None] = SimpleQueue()
        self._over: SimpleQueue[Done[O] | Exception] = SimpleQueue()
        self._processes: list[SpawnProcess] = []
        try:
            for _ in range(count):
                self.add()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Processes[J, O]:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def add(self) -> None:
        """Starts another process, in the place of one that died, say."""
        context = multiprocessing.get_context("spawn")  # fork would copy torch's threads half-alive
        ours, theirs = context.Pipe()
        process = context.Process(target=_serve, args=(theirs, self._make), daemon=True)
        try:
            process.start()
        except Exception as error:  # whatever an object raises when it is to be sent
            raise NotSent(str(error)) from error
        theirs.close()
        self._processes.append(process)
        # A thread, so that a process has its next job although nobody waits for its last.
        threading.Thread(target=self._attend, args=(process, ours), daemon=True).start()

    def submit(self, key: int, job: J) -> None:
        """Hands in a job; `receive` will name it by its key."""
        self._waiting.put(_Handed(key, job))

    def receive(self) -> Done[O]:
        """Waits for any job to be over.

        Raises:
            ProcessDied: the process of a job ended; the job may be handed in again.
            NotSent: a job cannot be sent to another process.
        """
        result = self._over.get()
        if isinstance(result, Exception):
            raise result
        return result

    def close(self) -> None:
        """Ends the processes at once, whatever they do."""
        for process in self._processes:  # not `terminate`: Lightning lets a run go on after SIGTERM
            process.kill()
            self._waiting.put(None)
        for process in self._processes:
            # Two threads wait for it: join() returns at once where the other has seen its end.
            while process.exitcode is None:
                process.join(0.1)

    def _attend(self, process: SpawnProcess, connection: Connection) -> None:
        """Hands jobs to one process until it dies, or the pool is closed."""
        with connection:
            while (handed := self._waiting.get()) is not None:
                key = handed.key
                try:
                    connection.send(handed.job)
                    self._over.put(Done(key, connection.recv()))
                except (EOFError, OSError):
                    process.join(5.0)
                    self._over.put(ProcessDied(key, process.exitcode))
                    return
                except Exception as error:  # whatever a job raises when it is to be sent
                    failure = NotSent(str(error))
                    failure.__cause__ = error
                    self._over.put(failure)


def _serve(connection: Connection, make: Callable[[], Callable[[Any], Any]]) -> None:
    """Does jobs until the connection closes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the parent, which ends this
    threading.Thread(target=_end_with_parent, daemon=True).start()
    torch.set_num_threads(1)
    work = make()
    while True:
        try:
            job = connection.recv()
        except EOFError:
            return
        connection.send(work(job))


def _end_with_parent() -> None:
    """The work of a parent that was killed would otherwise go on."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
