"""How good each method is, over all tasks, split by split and task by task; and how fast.

The performance profiles are those of Dolan & Moré 2002 (arXiv:cs/0102001).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from statistics import median
from typing import Any, NamedTuple

from lightning_dqnlr.bench.report.comparison import RIVAL, SUBJECT, Comparison
from lightning_dqnlr.bench.report.content import (
    NOTHING,
    Block,
    Picture,
    Section,
    Table,
    number,
    share,
    with_interval,
)
from lightning_dqnlr.bench.report.drawing import interval_picture, picture, styles
from lightning_dqnlr.bench.runs.record import TRAIN, VALIDATION, diverged, final_loss
from lightning_dqnlr.bench.tasks.task import APART
from lightning_dqnlr.scoring.statistics import LIMIT, SAMPLES, Summary, area, fractions, summarize
from lightning_dqnlr.svg import INK

_FACTORS = [LIMIT ** (i / 100) for i in range(-100, 101)]


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
    "regret, training: IQM [95% CI]": lambda row: with_interval(row.train.estimate),
    "median": lambda row: number(row.train.median),
    "90th pct.": lambda row: number(row.train.p90, 2),
    "worst": lambda row: number(row.train.worst, 2),
    "within 2%": lambda row: share(row.train.within),
    "regret, validation: IQM [95% CI]": lambda row: with_interval(row.validation.estimate),
    "profile area": lambda row: number(row.profile_area, 2),
    "diverged": lambda row: share(row.diverged),
    "runs per result": lambda row: f"{row.tries:.3g}",
}


def headline_row(
    comparison: Comparison, method: str, tasks: Sequence[str], samples: int = SAMPLES
) -> HeadlineRow:
    """The figures of a method that has these tasks, with so many bootstrap samples."""
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


def headline(
    comparison: Comparison, tasks: Sequence[str], rows: Sequence[HeadlineRow] | None = None
) -> Table:
    """`headline_rows`, and the other methods as missing or not run."""
    rows = headline_rows(comparison, tasks) if rows is None else rows
    table = Table.of(rows, _COLUMNS, (SUBJECT,))
    for method in comparison.methods:
        lacking = len(tasks) - len(comparison.common(method, among=tasks))
        if lacking:
            left_out = all(comparison.left_out(task, method) for task in tasks)
            reason = "not run" if left_out else f"missing {lacking} of {len(tasks)}"
            table = table.with_gap(method, reason)
    return table


def how_good(comparison: Comparison) -> Section:
    tasks = comparison.shared
    rows = headline_rows(comparison, tasks)
    text = (
        f"Regret = log((final loss + e) / (tuned {RIVAL}'s + e)), e = 1% of the "
        f"initial loss, over {len(tasks)} tasks. A regret of 0 is as good, 0.1 is 10% above, and "
        "below zero is better. IQM: interquartile mean, with 95% stratified bootstrap intervals. "
        "Rows are sorted by it."
    )
    shown = (_picture(comparison, rows),) if rows else ()
    return Section("How good", (text, headline(comparison, tasks, rows), *shown))


def _picture(comparison: Comparison, rows: Sequence[HeadlineRow]) -> Picture:
    panels = {
        "regret, train loss (IQM, 95% interval)": [row.train.estimate for row in rows],
        "regret, validation loss (IQM, 95% interval)": [row.validation.estimate for row in rows],
    }
    methods = [row.method for row in rows]
    text = "Interquartile mean of the regret per method with 95% intervals."
    return interval_picture(comparison, methods, panels, name="regret", text=text, middle=0)


def split_by_split(comparison: Comparison) -> Section:
    names = sorted({comparison.splits[task] for task in comparison.ranked})
    blocks: list[Block] = []
    for name in names if len(names) > 1 else ():
        tasks = [task for task in comparison.ranked if comparison.splits[task] == name]
        apart = f", {APART[name]}" if name in APART else ""
        blocks.append(f"{name or 'no split'}{apart} ({', '.join(tasks)}):")
        blocks.append(headline(comparison, tasks))
    return Section("Split by split", tuple(blocks))


def regret_by_task(comparison: Comparison) -> Section:
    text = (
        f"Mean regret over seeds; orange is above the tuned {RIVAL}, blue below, "
        f"{NOTHING} missing or not run."
    )
    train = ("On training loss:", heat_map(comparison, TRAIN))
    validation = ("On validation loss:", heat_map(comparison, VALIDATION))
    return Section("Regret, task by task", (text, *train, *validation))


def heat_map(comparison: Comparison, which: str = TRAIN) -> Table:
    """Mean regret over seeds, task x method; a task without a rival has no figures."""
    rows = tuple(
        (task, *[_regret(comparison, task, method, which) for method in comparison.methods])
        for task in comparison.tasks
    )
    return Table(("task", *comparison.methods), rows, heat=True)


def _regret(comparison: Comparison, task: str, method: str, which: str) -> str:
    if not comparison.common(method, RIVAL, among=[task]):
        return NOTHING
    return number(comparison.mean_regret(task, method, which), 2)


def final_losses(comparison: Comparison) -> Section:
    header = ("task", "method", "LR", "initial", "training", "validation", "diverged", "seeds")
    rows = tuple(_loss_cells(comparison, *key) for key in sorted(comparison.entries))
    text = "Medians over seeds, with the LR chosen. All regrets come from these."
    return Section("Final losses", (text, Table(header, rows)) if rows else (), folded=True)


def _loss_cells(comparison: Comparison, task: str, method: str) -> tuple[str, ...]:
    entry = comparison.entries[task, method]
    return (
        task,
        method,
        NOTHING if entry.lr is None else f"{entry.lr:.2g}",
        f"{median(run.initial_train for run in entry.runs):.4g}",
        median_loss(final_loss(run) for run in entry.runs),
        median_loss(final_loss(run, VALIDATION) for run in entry.runs),
        str(sum(map(diverged, entry.runs))),
        str(len(entry.runs)),
    )


def median_loss(losses: Iterable[float]) -> str:
    """The middle one as text; a run that diverged counts as the highest.

    Example:
        >>> median_loss([0.1, 0.3, math.nan]), median_loss([0.1, math.nan, math.nan])
        ('0.3', 'diverged')
    """
    middle = median(math.inf if math.isnan(loss) else loss for loss in losses)
    return f"{middle:.4g}" if math.isfinite(middle) else "diverged"


def how_fast(comparison: Comparison) -> Section:
    text = (
        f"A performance profile is a share of (task, seed). On these a method reaches the tuned "
        f"{RIVAL}'s final validation loss within a factor of the {RIVAL}'s own time. The area is "
        f"the mean over log factor from 1/{LIMIT:.0f} to {LIMIT:.0f}: 0.5 is the tuned {RIVAL} "
        "itself. A run that never gets there counts as infinitely slow; a method exactly as good "
        "gets there about every other time. Searching for an LR is not in here, but under the cost."
    )
    blocks = (text, _profile_picture(comparison)) if comparison.complete() else ()
    return Section("How fast", blocks)


def _profile_picture(comparison: Comparison) -> Picture:
    names = comparison.complete()

    def draw(figure: Any) -> None:
        axes = figure.subplots(1, 2, sharey=True)
        for panel, seconds in zip(axes, (False, True), strict=True):
            _profiles(panel, comparison, seconds)
            unit = "seconds of one run" if seconds else "steps"
            panel.set_xlabel(f"{unit}, relative to the tuned {RIVAL}")
        axes[0].set_ylabel("share of runs that got there")

    text = "Performance profiles of all methods."
    return picture("profile", text, draw, width=11.5, height=2.6 + 0.17 * max(8, len(names)))


def _profiles(axes: Any, comparison: Comparison, seconds: bool) -> None:
    look = styles(comparison)
    tasks = comparison.shared
    names = comparison.complete()
    ratios = {name: comparison.ratios(name, tasks, seconds=seconds) for name in names}
    areas = {name: area(values) for name, values in ratios.items()}
    for name in sorted(ratios, key=lambda name: -areas[name]):
        label = f"{name}  {areas[name]:.2f}"
        axes.plot(_FACTORS, fractions(ratios[name], _FACTORS), label=label, **look[name])
    axes.set_xscale("log", base=2)
    axes.set_xticks([0.25, 0.5, 1, 2, 4], ["1/4", "1/2", "1", "2", "4"])
    axes.set(xlim=(1 / LIMIT, LIMIT), ylim=(0, 1.02))
    axes.axvline(1, color=INK, linewidth=0.8)
    axes.grid(True)
    legend = {"loc": "center left", "bbox_to_anchor": (1.0, 0.5), "title": "area"}
    axes.legend(frameon=False, fontsize=8, handlelength=2.6, title_fontsize=8, **legend)
