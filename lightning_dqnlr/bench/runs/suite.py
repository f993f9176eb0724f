"""Which runs a suite consists of, which of them are missing, and running those."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from typing import Annotated, Literal, NamedTuple, TypeVar

from lightning_dqnlr.bench.methods.plan import Method
from lightning_dqnlr.bench.runs.archive import Store
from lightning_dqnlr.bench.runs.record import Record, RunKey, survivors
from lightning_dqnlr.bench.runs.run import PlannedRun
from lightning_dqnlr.bench.runs.versions import policy_hash, run_version
from lightning_dqnlr.bench.tasks.task import APART, BenchSplit, BenchTask
from lightning_dqnlr.checks import Count, NotNegative, check_settings
from lightning_dqnlr.envs.replicated_optimizer import configured_optimizer
from lightning_dqnlr.errors import ConfigurationError, MissingPackageError
from lightning_dqnlr.processes import Done, NotSent, ProcessDied, Processes
from lightning_dqnlr.scoring.task_content import task_digest
from lightning_dqnlr.tasks.task import Task

_Named = TypeVar("_Named", BenchTask, Method)


@dataclass(frozen=True)
class Suite:
    """What is compared on what.

    Attributes:
        tasks: names of the benchmark's tasks; None for all of the splits.
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
        race_margin: see `record.survivors`; None if all peaks of a grid run with all seeds.
        device: kind of device to train on, "cpu" or "cuda".
        evaluations: about how many points the curve of a run has.
        splits: that the tasks are of; None for all.

    Example:
        >>> suite = Suite(tasks=["digits MLP"], methods=["dqnlr", "cosine"], seeds=2)

    Raises:
        ConfigurationError: a number is out of range.
    """

    tasks: Sequence[str] | None = None
    methods: Sequence[str] | None = None
    seeds: Count = 5
    points: Count = 17
    decades: Annotated[float, "(0, 12]"] = 4.0
    sensitivity: Sequence[str] = ()
    sensitivity_decades: Literal[2, 4, 6, 8, 10, 12] = 6
    apart_methods: Sequence[str] | None = None
    first: Sequence[str] = ()
    race_margin: NotNegative | None = None
    device: str = "cpu"
    evaluations: Count = 24
    splits: Sequence[BenchSplit] | None = None

    def __post_init__(self) -> None:
        check_settings(self, "")


class EndedRun(NamedTuple):
    """What became of a planned run.

    The outcome is its record, why the method cannot be run on this machine at all, or None for a
    skipped run.
    """

    run: PlannedRun
    outcome: Record | str | None = None
    seconds: float = 0.0  # that it took in its process, with its evaluations


class Progress(NamedTuple):
    """How far a benchmark has come."""

    seconds_left: float  # by the runs that ended here and what a run of each task usually takes
    latest: PlannedRun  # the last run that ended
    failure: str | None  # of the latest
    over: int  # runs that have ended


def your_own(task: Task, lr: float | None = None) -> BenchTask:
    """A user's task as one of a benchmark, with its grids around the LR.

    None stands for the largest LR of the module's own optimizer.

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
    return BenchTask(
        task.name,
        "your own",
        partial(replace, task),
        float(lr),
        seconds=task.horizon / 300,
        version=task_digest(task),
    )


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

    A method that needs a peak gets the grid, around the task's centre if it has one. Any other
    method gets one run at the module's own LR.
    """
    given: tuple[float | None, ...] = (
        grid(task.centre or task.lr, suite.points, suite.decades) if method.tuned else (None,)
    )
    if method.name in suite.sensitivity and not _restricted(suite, task):
        decades = suite.sensitivity_decades
        given += tuple(x for x in grid(task.lr, decades + 1, decades) if x not in given)
    return given


def with_further(suite: Suite, names: Sequence[str]) -> Suite:
    """The suite with further methods of a user, which run on every task of it.

    Example:
        >>> with_further(Suite(methods=["cosine"]), ["mine"]).methods
        ['cosine', 'mine']
    """
    chosen = (suite.methods, suite.apart_methods)
    methods, apart = (None if some is None else [*some, *names] for some in chosen)
    return replace(suite, methods=methods, apart_methods=apart)


def _restricted(suite: Suite, task: BenchTask) -> bool:
    return suite.apart_methods is not None and task.split in APART


def plan(
    suite: Suite, tasks: Sequence[BenchTask], methods: Sequence[Method]
) -> Iterator[PlannedRun]:
    """All runs of a suite, task by task, of the tasks and methods that there are.

    No task is opened.

    Raises:
        ConfigurationError: an unknown name.
        PolicyFileError: a method's policy cannot be read.
    """
    places = {name: place for place, name in enumerate(suite.first)}
    chosen = sorted(
        choose(methods, suite.methods, "suite.methods"),
        key=lambda method: places.get(method.name, len(places)),
    )
    choose(methods, suite.first or None, "suite.first")
    choose(methods, suite.sensitivity or None, "suite.sensitivity")
    policies = {method.name: policy_hash(method) for method in chosen}
    few = {method.name for method in choose(methods, suite.apart_methods, "suite.apart_methods")}
    for task in choose(tasks, suite.tasks, "suite.tasks"):
        if suite.splits is not None and task.split not in suite.splits:
            continue
        for method in chosen:
            if not _restricted(suite, task) or method.name in few:
                yield from _runs(suite, method, task, policies[method.name])


def _runs(
    suite: Suite, method: Method, task: BenchTask, policy: str | None
) -> Iterator[PlannedRun]:
    """One method on one task, at all its learning rates and seeds."""
    version = run_version(method, task.version, suite.device)
    for lr in rates(suite, method, task):
        for seed in range(suite.seeds):
            key = RunKey(task.name, method.name, lr, seed, version, policy)
            yield PlannedRun(task, method, lr, seed, key, suite.device, suite.evaluations)


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


def make_runs(
    runs: Sequence[PlannedRun], workers: int, skip: Callable[[PlannedRun], bool]
) -> Iterator[EndedRun]:
    """Makes runs in several processes, which end when this iterator does.

    Runs of a task should follow each other, because a process keeps the last task that it opened.
    `skip` is asked right before a run would begin. The order is that in which runs end.

    Raises:
        ConfigurationError: a task or method cannot be sent to another process, or one was killed.
    """
    count = min(workers, len(runs))
    busy = 0
    try:
        with Processes(count, partial(_Maker, runs)) as pool:
            for index, run in enumerate(runs):
                if busy == count:
                    yield _ended(runs, pool.receive())
                    busy -= 1
                if skip(run):
                    yield EndedRun(run)
                    continue
                pool.submit(index, index)
                busy += 1
            for _ in range(busy):
                yield _ended(runs, pool.receive())
    except NotSent as error:
        raise ConfigurationError(
            f"a task or method cannot be sent to another process ({error}). Define its module and "
            "its data loader at the top of a file that can be imported."
        ) from error
    except ProcessDied as error:
        raise ConfigurationError(
            f"workers: a process ended with code {error.code}, perhaps for want of memory (-9), or "
            "because it cannot import a task's module (1; set PYTHONPATH). What was finished is "
            "stored; the same command goes on, with fewer workers if need be."
        ) from error


def _ended(runs: Sequence[PlannedRun], job: Done[_Made]) -> EndedRun:
    return EndedRun(runs[job.key], *job.outcome)


class _Made(NamedTuple):
    """What comes back from a process."""

    outcome: Record | str
    seconds: float


class _Maker:
    """In a process: makes the runs whose places it is told; keeps the last task that it opened.

    All runs are sent once, at the start. Their tasks may be large, and many runs share one.
    """

    def __init__(self, runs: Sequence[PlannedRun]) -> None:
        self._runs = runs
        self._open = lru_cache(maxsize=1)(BenchTask.open)

    def __call__(self, index: int) -> _Made:
        run = self._runs[index]
        task = self._open(run.task)
        began = time.monotonic()
        try:
            outcome: Record | str = run.make(task)
        except MissingPackageError as error:
            outcome = str(error)
        return _Made(outcome, time.monotonic() - began)


def complete(
    runs: Sequence[PlannedRun],
    store: Store,
    workers: int,
    report: Callable[[Progress], None],
    later: float = 0.0,
) -> dict[str, str]:
    """Makes runs in several processes and stores each as soon as it is over.

    A run that raises is recorded as failed. When interrupted, what is stored is whole. `report` is
    called after each run. The time left that it is told includes `later`: an estimate of what
    follows these runs, in seconds of one process.

    Returns:
        The methods that could not be run at all, and why (a package is missing, say).

    Raises:
        ConfigurationError: a task's data are not installed, the store cannot be written, or a
            process was killed.
    """
    for task in {id(run.task): run.task for run in runs}.values():
        task.open()  # what is not installed is named before any run begins
    refused: dict[str, str] = {}
    left = estimate(runs, 1) + later
    seconds = expected = 0.0  # of the runs that were made
    ends = make_runs(runs, workers, lambda run: run.method.name in refused)
    for over, ended in enumerate(ends, 1):
        failure = None
        if isinstance(ended.outcome, Record):
            store.put(ended.outcome)
            failure = ended.outcome.failure
        elif ended.outcome is not None:
            refused[ended.run.method.name] = ended.outcome
        left -= ended.run.task.seconds
        if ended.seconds:
            seconds += ended.seconds
            expected += ended.run.task.seconds
        pace = seconds / expected if expected else 1.0
        left = left if over < len(runs) else later
        report(Progress(pace * left / workers, ended.run, failure, over))
    return refused


SHARE = 1 / 3  # of an undecided grid that stays, at most, as a rule; for estimates


class Rounds(NamedTuple):
    """A suite's runs as far as its races are decided.

    Wanted are the first seed of every peak, the further seeds of peaks that stayed, and all runs
    of methods without a grid. Undecided are the further seeds of grids whose first is not over.
    """

    wanted: list[PlannedRun]
    undecided: list[PlannedRun]


def rounds(runs: Sequence[PlannedRun], store: Store, margin: float | None) -> Rounds:
    """Which of a suite's runs are to be made, by the stored ones of the first seed.

    The margin is that of `survivors`; None if all peaks run with all seeds.

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


def missing_in_rounds(
    runs: Sequence[PlannedRun], store: Store, margin: float | None, *, retry_failed: bool = False
) -> Iterator[list[PlannedRun]]:
    """The runs to be made, round by round: what a race leaves is known after the first round.

    The caller makes the runs of one round before it asks for the next.
    """
    first = rounds(runs, store, margin).wanted
    yield missing(first, store, retry_failed=retry_failed)
    known = {run.key for run in first}
    second = [run for run in rounds(runs, store, margin).wanted if run.key not in known]
    yield missing(second, store, retry_failed=retry_failed)


def _decided(
    runs: Sequence[PlannedRun], store: Store, margin: float
) -> dict[tuple[str, str], frozenset[float | None]]:
    """The peaks that stay, by task and method, where the first seed of all of them is over."""
    first: dict[tuple[str, str], list[PlannedRun]] = defaultdict(list)
    for run in runs:
        if run.method.tuned and run.seed == 0:
            first[run.task.name, run.method.name].append(run)
    stay = {}
    for grid, peaks in first.items():
        records = [record for run in peaks if (record := store.get(run.key)) is not None]
        if len(records) == len(peaks):
            stay[grid] = survivors(records, margin)
    return stay
