"""Which runs a suite consists of, which of them are missing, and running those."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple, TypeVar

from lightning_dqnlr.bench.methods.plan import Method
from lightning_dqnlr.bench.runs.archive import Archive, Store
from lightning_dqnlr.bench.runs.fingerprint import code_hash, policy_hash
from lightning_dqnlr.bench.runs.losses import survivors
from lightning_dqnlr.bench.runs.processes import Call, Refusal, run_calls
from lightning_dqnlr.bench.runs.record import Key, Record
from lightning_dqnlr.bench.tasks.task import APART, BenchTask
from lightning_dqnlr.envs.replicated_optimizer import configured_optimizer
from lightning_dqnlr.errors import ConfigurationError
from lightning_dqnlr.scoring.task_content import task_content
from lightning_dqnlr.tasks.task import Task

_Named = TypeVar("_Named", BenchTask, Method)


@dataclass(frozen=True)
class Suite:
    """What is compared on what.

    Attributes:
        tasks: names of the benchmark's tasks; None for all.
        methods: names of the methods; None for all.
        seeds: runs of each, by the seeds 0, 1, ...
        points: learning rates that a method is tuned over, in equal ratios.
        decades: that they span, centred at what is usual for the task's optimizer.
        sensitivity: methods that also run at given learning rates, one per decade; not on splits
            that `apart_methods` restricts.
        sensitivity_decades: that these span, with the same centre; an even number.
        apart_methods: those that run on the splits that ask a question of their own
            (`task.APART`); None for all of `methods`.
        first: methods that run before the others on each task, in this order.
        race_margin: see `comparison.survivors`; None if all peaks of a grid run with all seeds.

    Raises:
        ConfigurationError: a number is out of range.
    """

    tasks: Sequence[str] | None = None
    methods: Sequence[str] | None = None
    seeds: int = 5
    points: int = 17
    decades: float = 4.0
    sensitivity: Sequence[str] = ()
    sensitivity_decades: int = 6
    apart_methods: Sequence[str] | None = None
    first: Sequence[str] = ()
    race_margin: float | None = None

    def __post_init__(self) -> None:
        for name in ("seeds", "points"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ConfigurationError(f"{name}={value!r} must be an integer of at least 1.")
        if not 0.0 < self.decades <= 12.0:
            raise ConfigurationError(f"decades={self.decades!r} must lie in (0, 12].")
        if self.race_margin is not None and not 0.0 <= self.race_margin < float("inf"):
            raise ConfigurationError(
                f"race_margin={self.race_margin!r} must be at least 0, or null for no race."
            )
        if self.sensitivity_decades not in range(2, 14, 2):
            raise ConfigurationError(
                f"sensitivity_decades={self.sensitivity_decades!r} must be one of 2, 4, ..., 12."
            )


@dataclass(frozen=True)
class PlannedRun:
    """One run of a suite, and the key that its record has or will have.

    Attributes:
        exact: hash of the code here; that of the key may be an archive's.
        portable: hash that the archive knows the code by.
    """

    task: BenchTask
    method: Method
    lr: float | None
    seed: int
    key: Key
    exact: str = ""
    portable: str = ""


class Progress(NamedTuple):
    """How far a benchmark has come.

    Attributes:
        done: how many of the missing runs are over.
        total: how many were missing.
        seconds_left: by the pace so far and what a run of each task usually takes.
        latest: the last run that ended.
        failure: why it failed, if it did.
    """

    done: int
    total: int
    seconds_left: float
    latest: PlannedRun
    failure: str | None


@dataclass(frozen=True)
class Opened:
    """Serves as `BenchTask.build` for a task that is there already."""

    task: Task

    def __call__(self) -> Task:
        """The task."""
        return self.task


def your_own(task: Task, lr: float | None = None) -> BenchTask:
    """A user's task as one of a benchmark.

    Args:
        task: by `Task.from_lightning`, say.
        lr: the centre of the grids; None for the largest one of the module's own optimizer.

    Raises:
        ConfigurationError: the module's optimizer has no usable LR, and none is given.
    """
    if lr is None:
        try:
            lr = max(g["lr"] for g in configured_optimizer(task.build(0)).param_groups)
        except Exception as error:  # a user's code, which may need its Trainer
            raise ConfigurationError(
                f"the LR of {task.name!r} cannot be told from its configure_optimizers ({error}); "
                "give the one you would begin with: lr=0.001."
            ) from error
    return BenchTask(task.name, "your own", Opened(task), float(lr), seconds=task.horizon / 300)


def grid(lr: float, points: int, decades: float) -> tuple[float, ...]:
    """Learning rates in equal ratios that span so many decades around `lr`, rounded to 4 digits."""
    middle = (points - 1) / 2
    step = decades / max(1, points - 1)
    return tuple(float(f"{lr * 10 ** ((i - middle) * step):.4g}") for i in range(points))


def choose(
    items: Sequence[_Named], names: Sequence[str] | None, argument: str
) -> tuple[_Named, ...]:
    """The items of these names, in their own order; all of them for None.

    Raises:
        ConfigurationError: a name is unknown.
    """
    if names is None:
        return tuple(items)
    unknown = sorted(set(names) - {item.name for item in items})
    if unknown or not names:
        known = ", ".join(item.name for item in items)
        raise ConfigurationError(f"{argument}: {unknown or 'none given'}; there are: {known}.")
    return tuple(item for item in items if item.name in names)


def rates(suite: Suite, method: Method, task: BenchTask) -> tuple[float | None, ...]:
    """The learning rates that a method is given on a task.

    A method that needs a peak gets the grid, around the task's centre if it has one; any other one
    run without, at the module's own LR.
    """
    given: tuple[float | None, ...] = (
        grid(task.centre or task.lr, suite.points, suite.decades) if method.tuned else (None,)
    )
    if method.name in suite.sensitivity and not _restricted(suite, task):
        decades = suite.sensitivity_decades
        given += tuple(x for x in grid(task.lr, decades + 1, decades) if x not in given)
    return given


def _restricted(suite: Suite, task: BenchTask) -> bool:
    return suite.apart_methods is not None and task.split in APART


def plan(
    suite: Suite,
    tasks: Sequence[BenchTask],
    methods: Sequence[Method],
    archive: Archive | None = None,
) -> Iterator[PlannedRun]:
    """All runs of a suite, task by task.

    Args:
        suite: what to compare.
        tasks: to choose from.
        methods: to choose from.
        archive: whose records count as those of this code where all but the last bits is the same.

    Raises:
        ConfigurationError: an unknown name, the archive is damaged, or a task's data are not
            installed.
        PolicyFileError: a method's policy cannot be read.
    """
    chosen = _ordered(choose(methods, suite.methods, "suite.methods"), suite.first)
    if suite.first:
        choose(methods, suite.first, "suite.first")
    if suite.sensitivity:
        choose(methods, suite.sensitivity, "suite.sensitivity")
    policies = {method.name: policy_hash(method) for method in chosen}
    few = {method.name for method in choose(methods, suite.apart_methods, "suite.apart_methods")}
    for task in choose(tasks, suite.tasks, "suite.tasks"):
        opened = task.open()
        content = task_content(opened)
        sketch = b"" if archive is None else task_content(opened, portable=True)
        for method in chosen:
            if _restricted(suite, task) and method.name not in few:
                continue
            exact, portable = code_hash(method, opened, content), ""
            code = exact
            if archive is not None:
                portable = code_hash(method, opened, sketch)
                code = archive.code_of(task.name, method.name, portable) or exact
            for lr in rates(suite, method, task):
                for seed in range(suite.seeds):
                    key = (task.name, method.name, lr, seed, code, policies[method.name])
                    yield PlannedRun(task, method, lr, seed, key, exact, portable)


def _ordered(methods: Sequence[Method], first: Sequence[str]) -> list[Method]:
    places = {name: place for place, name in enumerate(first)}
    return sorted(methods, key=lambda method: places.get(method.name, len(places)))


def missing(
    runs: Sequence[PlannedRun], store: Store, *, retry_failed: bool = False
) -> list[PlannedRun]:
    """The runs whose records are not there; those that raised too, if they shall be tried again."""
    found = ((run, store.get(run.key)) for run in runs)
    return [
        run
        for run, record in found
        if record is None or (retry_failed and record.failure is not None)
    ]


def estimate(runs: Sequence[PlannedRun], workers: int) -> float:
    """Seconds that runs will take on so many processes, roughly."""
    return sum(run.task.seconds for run in runs) / workers


def complete(
    runs: Sequence[PlannedRun],
    store: Store,
    workers: int,
    report: Callable[[Progress], None],
) -> dict[str, str]:
    """Makes runs in several processes and stores each as soon as it is over.

    A run that raises is recorded as failed. When interrupted, what is stored is whole.

    Args:
        runs: that are missing.
        store: gets the records.
        workers: number of processes.
        report: called after each run.

    Returns:
        The methods that could not be run at all, and why (a package is missing, say).

    Raises:
        ConfigurationError: the store cannot be written, or a process was killed.
    """
    refused: dict[str, str] = {}
    calls = [Call(run.task, run.method, run.lr, run.seed) for run in runs]
    started, whole, over = time.monotonic(), estimate(runs, 1), 0.0
    outcomes = run_calls(calls, workers, lambda call: call.method.name in refused)
    for done, (index, outcome) in enumerate(outcomes, 1):
        run, failure = runs[index], None
        if isinstance(outcome, Record):
            # The archive's code; but a source may have been edited since the plan was made.
            as_planned = outcome.code == run.exact
            store.put(replace(outcome, code=run.key[4]) if as_planned else outcome)
            failure = outcome.failure
        elif isinstance(outcome, Refusal):
            refused[run.method.name] = outcome.reason
        over += run.task.seconds
        left = (time.monotonic() - started) / over * (whole - over)
        report(Progress(done, len(runs), max(0.0, left), run, failure))
    return refused


def available_cores() -> int:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


SHARE = 1 / 3  # of an undecided grid that stays, at most, as a rule; for estimates


class Rounds(NamedTuple):
    """A suite's runs as far as its races are decided.

    Attributes:
        wanted: to be made in any case: the first seed of every peak, the further seeds of peaks
            that stayed, and all runs of methods without a grid.
        undecided: the further seeds of grids whose first seed is not over.
    """

    wanted: list[PlannedRun]
    undecided: list[PlannedRun]


def rounds(runs: Sequence[PlannedRun], store: Store, margin: float | None) -> Rounds:
    """Tells which runs of a suite are to be made, in the order given.

    Args:
        runs: all of the suite.
        store: has the records of the first seed, as far as they are.
        margin: as for `survivors`; None if all peaks run with all seeds.

    Raises:
        ConfigurationError: the store's archive is damaged.
    """
    result = Rounds([], [])
    stay = {} if margin is None else _decided(runs, store, margin)
    for run in runs:
        grid = (run.task.name, run.method.name)
        if margin is None or not run.method.tuned or run.seed == 0:
            result.wanted.append(run)
        elif grid not in stay:
            result.undecided.append(run)
        elif run.lr in stay[grid]:
            result.wanted.append(run)
    return result


def _decided(
    runs: Sequence[PlannedRun], store: Store, margin: float
) -> dict[tuple[str, str], frozenset[float | None]]:
    """The peaks that stay, by task and method, where the first seed of all of them is over."""
    first: dict[tuple[str, str], list[PlannedRun]] = {}
    for run in runs:
        if run.method.tuned and run.seed == 0:
            first.setdefault((run.task.name, run.method.name), []).append(run)
    stay = {}
    for grid, peaks in first.items():
        records = [record for run in peaks if (record := store.get(run.key)) is not None]
        if len(records) == len(peaks):
            stay[grid] = survivors(records, margin)
    return stay
