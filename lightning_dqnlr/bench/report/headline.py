"""How good each method is: regret over all tasks, and split by split."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from lightning_dqnlr.bench.report.comparison import Comparison
from lightning_dqnlr.bench.report.content import (
    Block,
    Picture,
    Section,
    Table,
    number,
    share,
    with_interval,
)
from lightning_dqnlr.bench.report.drawing import INK, Estimate, intervals, picture, styles
from lightning_dqnlr.bench.runs.losses import TRAIN, VALIDATION, diverged
from lightning_dqnlr.bench.tasks.task import APART
from lightning_dqnlr.scoring.statistics import SAMPLES, Summary, area, summarize


class HeadlineRow(NamedTuple):
    """A method on a set of tasks, all of which it has."""

    method: str
    tasks: int
    train: Summary
    validation: Summary
    profile_area: float  # of the performance profile in steps
    diverged: float  # share of the runs
    tries: float  # runs that a result costs, mean over tasks


_COLUMNS: dict[str, Callable[[HeadlineRow], str]] = {
    "method": lambda row: row.method,
    "tasks": lambda row: str(row.tasks),
    "regret, training: IQM [95% CI]": lambda row: with_interval(row.train.iqm, row.train.interval),
    "median": lambda row: number(row.train.median),
    "90th pct.": lambda row: number(row.train.p90, 2),
    "worst": lambda row: number(row.train.worst, 2),
    "within 2%": lambda row: share(row.train.within),
    "regret, validation: IQM [95% CI]": lambda row: with_interval(
        row.validation.iqm, row.validation.interval
    ),
    "profile area": lambda row: number(row.profile_area, 2),
    "diverged": lambda row: share(row.diverged),
    "runs per result": lambda row: f"{row.tries:.3g}",
}


def headline_row(
    comparison: Comparison, method: str, tasks: Sequence[str], samples: int = SAMPLES
) -> HeadlineRow:
    """The figures of one method, with intervals from this many bootstrap samples.

    Raises:
        KeyError: if it lacks one of the tasks.
    """
    entries = [comparison.entries[task, method] for task in tasks]
    runs = [run for entry in entries for run in entry.runs]
    return HeadlineRow(
        method=method,
        tasks=len(tasks),
        train=summarize(comparison.scores(method, tasks, TRAIN), samples=samples),
        validation=summarize(comparison.scores(method, tasks, VALIDATION), samples=samples),
        profile_area=area(comparison.ratios(method, tasks)),
        diverged=sum(map(diverged, runs)) / len(runs),
        tries=sum(entry.tries for entry in entries) / len(entries),
    )


def headline_rows(
    comparison: Comparison, tasks: Sequence[str], samples: int = SAMPLES
) -> list[HeadlineRow]:
    """Every method that has all of the tasks, best IQM of the training regret first."""
    if not tasks:
        return []
    names = comparison.complete(tasks)
    rows = [headline_row(comparison, method, tasks, samples) for method in names]
    return sorted(rows, key=lambda row: (row.train.iqm, row.method))


def headline(comparison: Comparison, tasks: Sequence[str]) -> Table:
    """Every method that has all the tasks; the others as missing or not run."""
    return _table(comparison, tasks, headline_rows(comparison, tasks))


def _table(comparison: Comparison, tasks: Sequence[str], rows: Sequence[HeadlineRow]) -> Table:
    table = Table.of(rows, _COLUMNS, (comparison.roles.subject,))
    for method in comparison.methods:
        lacking = len(tasks) - len(comparison.common(method, among=tasks))
        if lacking:
            left_out = all(comparison.left_out(task, method) for task in tasks)
            reason = "not run" if left_out else f"missing {lacking} of {len(tasks)}"
            table = table.with_gap(method, reason)
    return table


def how_good(comparison: Comparison) -> Section:
    """The headline over all tasks, as a table and a picture."""
    tasks = comparison.shared
    rows = headline_rows(comparison, tasks)
    text = (
        f"Regret = log((final loss + e) / (tuned {comparison.roles.rival}'s + e)), e = 1% of the "
        f"initial loss, over {len(tasks)} tasks; 0 is as good, 0.1 is 10% above, below zero is "
        "better. IQM: interquartile mean, with 95% stratified bootstrap intervals. Sorted by it."
    )
    shown = (_picture(comparison, rows),) if rows else ()
    return Section("How good", (text, _table(comparison, tasks, rows), *shown))


def _picture(comparison: Comparison, rows: Sequence[HeadlineRow]) -> Picture:
    def draw(figure: Any) -> None:
        axes = figure.subplots(1, 2, sharey=True)
        for panel, which in zip(axes, (TRAIN, VALIDATION), strict=True):
            parts = {row.method: row.train if which == TRAIN else row.validation for row in rows}
            estimates = [Estimate(name, part.iqm, part.interval) for name, part in parts.items()]
            intervals(panel, estimates, styles(comparison))
            panel.axvline(0, color=INK, linewidth=1)
            panel.set_xlabel(f"regret, {which} loss (IQM, 95% interval)")
        axes[0].invert_yaxis()

    text = "Interquartile mean of the regret per method with 95% intervals."
    return picture("regret", text, draw, width=9.2, height=1.0 + 0.3 * len(rows))


def split_by_split(comparison: Comparison) -> Section:
    """The headline of each split, if there are several."""
    names = sorted({comparison.splits[task] for task in comparison.ranked})
    blocks: list[Block] = []
    for name in names if len(names) > 1 else ():
        tasks = [task for task in comparison.ranked if comparison.splits[task] == name]
        apart = f", {APART[name]}" if name in APART else ""
        blocks.append(f"{name or 'no split'}{apart} ({', '.join(tasks)}):")
        blocks.append(headline(comparison, tasks))
    return Section("Split by split", tuple(blocks))
