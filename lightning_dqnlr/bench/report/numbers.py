"""The figures of the report, one row per method, from a comparison."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from statistics import median
from typing import NamedTuple

import torch

from lightning_dqnlr.bench.report.comparison import Comparison
from lightning_dqnlr.bench.runs.losses import TRAIN, VALIDATION, diverged, final_loss
from lightning_dqnlr.bench.runs.record import Record
from lightning_dqnlr.scoring.statistics import (
    SAMPLES,
    Interval,
    Summary,
    area,
    improvement_interval,
    probability_of_improvement,
    summarize,
)

FEWEST_RUNS = 4  # below that an interval has no width to speak of
ROUNDING = 1e-9  # means that differ by less are equal


class Standing(NamedTuple):
    """A method on a set of tasks, all of which it has."""

    method: str
    train: Summary
    validation: Summary
    step_area: float
    second_area: float
    diverged: float  # share of the runs
    tries: float  # runs that a result costs, mean over tasks
    seed_spread: float  # standard deviation over seeds of the regret, median over tasks


class Duel(NamedTuple):
    """The subject against another method, on the shared tasks that both have."""

    method: str
    tasks: int
    train: float  # probability of improvement
    train_interval: Interval  # over seeds
    train_over_tasks: Interval  # over seeds and tasks
    validation: float
    validation_interval: Interval
    worse_on: int  # tasks with a higher mean regret than the other's, on training loss
    iqm: float  # of the subject, on these tasks
    other_iqm: float
    runs: int  # of the subject

    @property
    def verdict(self) -> str:
        """What the 95% intervals on training loss allow to say of the subject.

        Worse on just these tasks is worse; better has to hold for other tasks like them.
        """
        if self.runs < FEWEST_RUNS:
            return "undecided"
        if self.train_interval[1] < 0.5:
            return "worse"
        return "better" if self.train_over_tasks[0] > 0.5 else "undecided"


class Cost(NamedTuple):
    """What a method's results cost, on the shared tasks that it and the plain method have."""

    method: str
    tasks: int
    tries: float  # runs per result, mean over tasks
    overhead: float  # seconds over the plain run's of the same task and seed, median of whole runs
    total: float  # seconds with the search, over the tuned rival's with its search, median
    extra_bytes: int  # median
    copies: float  # extra bytes over the bytes of the weights (four each), median


class Sensitivity(NamedTuple):
    """How far the LR given to a method moves where it ends."""

    method: str
    tasks: int
    decades: float  # of the LRs, the least of all tasks
    spread: float  # highest minus lowest mean regret over the LRs, median over tasks
    worst: float
    diverged: float  # share of all runs


def standing(
    comparison: Comparison, method: str, tasks: Sequence[str], samples: int = SAMPLES
) -> Standing:
    """The figures of one method, with intervals from this many bootstrap samples.

    Raises:
        KeyError: if it lacks one of the tasks.
    """
    train = comparison.scores(method, tasks, TRAIN)
    entries = [comparison.entries[task, method] for task in tasks]
    runs = [run for entry in entries for run in entry.runs]
    return Standing(
        method,
        summarize(train, samples=samples),
        summarize(comparison.scores(method, tasks, VALIDATION), samples=samples),
        area(comparison.ratios(method, tasks)),
        area(comparison.ratios(method, tasks, seconds=True)),
        sum(map(diverged, runs)) / len(runs),
        sum(entry.tries for entry in entries) / len(entries),
        _median(_deviation(scores) for scores in train),
    )


def standings(
    comparison: Comparison, tasks: Sequence[str], samples: int = SAMPLES
) -> list[Standing]:
    """Every method that has all of the tasks, best IQM of the training regret first."""
    if not tasks:
        return []
    rows = [standing(comparison, method, tasks, samples) for method in comparison.complete(tasks)]
    return sorted(rows, key=lambda row: (row.train.iqm, row.method))


def duels(comparison: Comparison) -> list[Duel]:
    """The subject against each other method, the one it is most likely worse than first."""
    subject = comparison.roles.subject
    others = [name for name in comparison.methods if name != subject]
    rows = [row for name in others if (row := _duel(comparison, subject, name)) is not None]
    return sorted(rows, key=lambda row: (row.train, row.method))


def _duel(comparison: Comparison, subject: str, other: str) -> Duel | None:
    both = [
        task
        for task in comparison.shared
        if (task, subject) in comparison.entries and (task, other) in comparison.entries
    ]
    if not both:
        return None
    mine, theirs = comparison.scores(subject, both), comparison.scores(other, both)
    held_out = [comparison.scores(name, both, VALIDATION) for name in (subject, other)]
    return Duel(
        other,
        len(both),
        probability_of_improvement(mine, theirs),
        improvement_interval(mine, theirs),
        improvement_interval(mine, theirs, over_tasks=True),
        probability_of_improvement(*held_out),
        improvement_interval(*held_out),
        sum(bool(x.mean() - y.mean() > ROUNDING) for x, y in zip(mine, theirs, strict=True)),
        summarize(mine, samples=1).iqm,
        summarize(theirs, samples=1).iqm,
        sum(map(len, mine)),
    )


def costs(comparison: Comparison) -> list[Cost]:
    """Every method that shares a task with the plain one, cheapest total first."""
    rows = [row for name in comparison.methods if (row := _cost(comparison, name)) is not None]
    return sorted(rows, key=lambda row: (row.total, row.method))


def _cost(comparison: Comparison, method: str) -> Cost | None:
    entries, plain = comparison.entries, comparison.roles.plain
    tasks = [t for t in comparison.shared if (t, method) in entries and (t, plain) in entries]
    if not tasks:
        return None
    mine = [entries[task, method] for task in tasks]
    pairs = [
        (run, other)
        for task, entry in zip(tasks, mine, strict=True)
        for run, other in zip(entry.runs, entries[task, plain].runs, strict=True)
    ]
    runs = [run for run, _ in pairs]
    rivals = [entries[task, comparison.roles.rival] for task in tasks]
    return Cost(
        method,
        len(tasks),
        sum(entry.tries for entry in mine) / len(mine),
        _median(_over(a.seconds, b.seconds) for a, b in pairs if finished(a) and finished(b)),
        _median(_over(x.seconds, y.seconds) for x, y in zip(mine, rivals, strict=True)),
        round(median(run.extra_bytes for run in runs)),
        _median(_over(run.extra_bytes, 4 * run.parameters) for run in runs),
    )


def swept(comparison: Comparison) -> tuple[str, ...]:
    """The tasks on which the subject (the rival, if the subject has none) ran over LRs."""
    for method in (comparison.roles.subject, comparison.roles.rival):
        tasks = tuple(task for task in comparison.shared if comparison.sweep(task, method))
        if tasks:
            return tasks
    return ()


def sensitivities(comparison: Comparison) -> list[Sensitivity]:
    """Every method that was swept on all of these tasks, the least sensitive first."""
    tasks = swept(comparison)
    names = [n for n in comparison.methods if tasks and all(comparison.sweep(t, n) for t in tasks)]
    rows = [_sensitivity(comparison, name, tasks) for name in names]
    return sorted(rows, key=lambda row: (row.spread, row.method))


def mean_regrets(comparison: Comparison, task: str, method: str) -> dict[float, float]:
    """Regret on training loss by the LR given, mean over seeds, in the order of the LRs."""
    sweep = comparison.sweep(task, method).items()
    return {lr: comparison.regrets_of(runs).mean().item() for lr, runs in sweep}


def _sensitivity(comparison: Comparison, method: str, tasks: Sequence[str]) -> Sensitivity:
    sweeps = [comparison.sweep(task, method) for task in tasks]
    means = [mean_regrets(comparison, task, method).values() for task in tasks]
    spreads = [max(values) - min(values) for values in means]
    runs = [run for sweep in sweeps for group in sweep.values() for run in group]
    return Sensitivity(
        method,
        len(tasks),
        min(math.log10(max(sweep) / min(sweep)) for sweep in sweeps),
        median(spreads),
        max(spreads),
        sum(map(diverged, runs)) / len(runs),
    )


def _deviation(scores: torch.Tensor) -> float:
    """Over seeds; a single seed says nothing of it."""
    return scores.std().item() if len(scores) > 1 else math.nan


def _median(values: Iterable[float]) -> float:
    """Of those that are known; NaN if none is."""
    known = [value for value in values if not math.isnan(value)]
    return median(known) if known else math.nan


def finished(run: Record) -> bool:
    """Whether a run took as long as a whole one; a diverged one may have stopped early."""
    return not math.isnan(final_loss(run))


def _over(value: float, reference: float) -> float:
    return value / reference if reference > 0 else math.nan
