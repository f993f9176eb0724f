"""The benchmark's runs in several processes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial

from lightning_dqnlr.bench.runs.record import Record
from lightning_dqnlr.bench.runs.run import PlannedRun
from lightning_dqnlr.bench.tasks.task import BenchTask
from lightning_dqnlr.errors import ConfigurationError, MissingPackageError
from lightning_dqnlr.processes import NotSent, ProcessDied, Processes
from lightning_dqnlr.tasks.task import Task


def make_runs(
    runs: Sequence[PlannedRun], workers: int, skip: Callable[[PlannedRun], bool]
) -> Iterator[tuple[int, Record | str | None]]:
    """Makes runs in several processes, which end when this iterator does.

    Runs of a task should follow each other, because a process keeps the last task that it opened.
    `skip` is asked right before a run would begin.

    Yields:
        The place in `runs`, in the order in which runs end, and what became of it: a record, why
        the method cannot be run on this machine at all, or None if it was skipped.

    Raises:
        ConfigurationError: a task or method cannot be sent to another process, or one was killed.
    """
    count = min(workers, len(runs))
    busy = 0
    try:
        with Processes(count, partial(_Maker, runs)) as pool:
            for index, run in enumerate(runs):
                if busy == count:
                    yield pool.receive()
                    busy -= 1
                if skip(run):
                    yield index, None
                    continue
                pool.submit(index, index)
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


class _Maker:
    """In a process: makes the runs whose places it is told; keeps the last task that it opened.

    All runs are sent once, at the start. Their tasks may be large, and many runs share one.
    """

    def __init__(self, runs: Sequence[PlannedRun]) -> None:
        self._runs = runs
        self._opened: tuple[BenchTask, Task] | None = None

    def __call__(self, index: int) -> Record | str:
        run = self._runs[index]
        if self._opened is None or self._opened[0] is not run.task:
            self._opened = (run.task, run.task.open())
        try:
            return run.make(self._opened[1])
        except MissingPackageError as error:
            return str(error)
