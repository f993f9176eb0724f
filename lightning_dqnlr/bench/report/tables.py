"""The tables of the report as plain text cells, for Markdown and HTML alike."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import median

from lightning_dqnlr.bench.report.blocks import NOTHING, Table
from lightning_dqnlr.bench.report.comparison import Comparison
from lightning_dqnlr.bench.report.numbers import (
    Cost,
    Duel,
    Sensitivity,
    Standing,
    costs,
    duels,
    sensitivities,
    standings,
    swept,
)
from lightning_dqnlr.bench.runs.losses import TRAIN, VALIDATION, diverged, final_loss
from lightning_dqnlr.scoring.statistics import Interval


def number(value: float, digits: int = 3) -> str:
    """A signed zero or a NaN would only distract."""
    if math.isnan(value):
        return NOTHING
    text = f"{value:.{digits}f}"
    return text.removeprefix("-") if float(text) == 0 else text


def with_interval(value: float, interval: Interval, digits: int = 3) -> str:
    """`0.069 [0.057, 0.085]`."""
    low, high = interval
    return f"{number(value, digits)} [{number(low, digits)}, {number(high, digits)}]"


def share(value: float) -> str:
    """Per cent without decimals, unless that would round a few runs down to none."""
    return f"{value:.1%}" if 0 < value < 0.01 or 0.99 < value < 1 else f"{value:.0%}"


def headline(comparison: Comparison, tasks: Sequence[str]) -> Table:
    """Every method that has all the tasks; the others as missing or not run."""
    header = (
        "method",
        "tasks",
        "regret, training: IQM [95% CI]",
        "median",
        "90th pct.",
        "worst",
        "within 2%",
        "regret, validation: IQM [95% CI]",
        "profile area",
        "diverged",
        "runs per result",
    )
    rows = [_standing(row, len(tasks)) for row in standings(comparison, tasks)]
    for method in comparison.methods:
        lacking = [task for task in tasks if (task, method) not in comparison.entries]
        if lacking:
            left_out = all(comparison.left_out(task, method) for task in tasks)
            cell = "not run" if left_out else f"missing {len(lacking)} of {len(tasks)}"
            rows.append((method, cell, *[NOTHING] * (len(header) - 2)))
    return Table(header, tuple(rows), (comparison.roles.subject,))


def _standing(row: Standing, tasks: int) -> tuple[str, ...]:
    train = row.train
    return (
        row.method,
        str(tasks),
        with_interval(train.iqm, train.interval),
        number(train.median),
        number(train.p90, 2),
        number(train.worst, 2),
        share(train.within),
        with_interval(row.validation.iqm, row.validation.interval),
        number(row.step_area, 2),
        share(row.diverged),
        f"{row.tries:.3g}",
    )


def against(comparison: Comparison) -> Table:
    """The subject against each other method."""
    subject = comparison.roles.subject
    header = (
        f"{subject} against",
        "tasks",
        "P(improvement), training [95% CI]",
        "[95% CI over tasks]",
        "P(improvement), validation [95% CI]",
        "worse on tasks",
        f"IQM of {subject}",
        "IQM of the other",
        f"{subject} is",
    )
    return Table(header, tuple(map(_duel, duels(comparison))))


def _duel(row: Duel) -> tuple[str, ...]:
    return (
        row.method,
        str(row.tasks),
        with_interval(row.train, row.train_interval, 2),
        with_interval(row.train, row.train_over_tasks, 2).split(" ", 1)[1],
        with_interval(row.validation, row.validation_interval, 2),
        f"{row.worse_on} of {row.tasks}",
        number(row.iqm),
        number(row.other_iqm),
        row.verdict,
    )


def cost_table(comparison: Comparison) -> Table:
    """What a result costs."""
    header = (
        "method",
        "tasks",
        "runs per result",
        f"seconds with the search / tuned {comparison.roles.rival}'s",
        f"seconds of one run / {comparison.roles.plain}'s",
        "extra memory",
        "copies of the weights",
    )
    rows = tuple(map(_cost, costs(comparison)))
    return Table(header, rows, (comparison.roles.subject,))


def _cost(row: Cost) -> tuple[str, ...]:
    return (
        row.method,
        str(row.tasks),
        f"{row.tries:.3g}",
        number(row.total),
        number(row.overhead, 2),
        _bytes(row.extra_bytes),
        number(row.copies, 1),
    )


def _bytes(count: int) -> str:
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= size:
            return f"{count / size:.1f} {unit}"
    return f"{count} B"


def sensitivity_table(comparison: Comparison) -> Table:
    """How far the LR given moves the result; methods swept on fewer tasks as missing."""
    header = ("method", "tasks", "decades of LR", "spread, median task", "worst task", "diverged")
    rows = tuple(map(_sensitivity, sensitivities(comparison)))
    done, tasks = {row[0] for row in rows}, swept(comparison)
    for method in comparison.methods:
        have = sum(bool(comparison.sweep(task, method)) for task in tasks)
        if method not in done and have:
            rows += ((method, f"missing {len(tasks) - have} of {len(tasks)}", *[NOTHING] * 4),)
    return Table(header, rows, (comparison.roles.subject,))


def _sensitivity(row: Sensitivity) -> tuple[str, ...]:
    return (
        row.method,
        str(row.tasks),
        number(row.decades, 1),
        number(row.spread),
        number(row.worst),
        share(row.diverged),
    )


def variance_table(comparison: Comparison) -> Table:
    """Standard deviation over seeds of the training regret."""
    rows = standings(comparison, comparison.shared)
    rows.sort(key=lambda row: math.inf if math.isnan(row.seed_spread) else row.seed_spread)
    cells = tuple((row.method, number(row.seed_spread)) for row in rows)
    return Table(("method", "median task"), cells, (comparison.roles.subject,))


def heat(comparison: Comparison, which: str = TRAIN) -> Table:
    """Mean regret over seeds, task x method; the last rows are tasks without a rival."""
    rows = tuple(
        (task, *[_regret(comparison, task, method, which) for method in comparison.methods])
        for task in comparison.tasks
    )
    return Table(("task", *comparison.methods), rows)


def _regret(comparison: Comparison, task: str, method: str, which: str) -> str:
    if task not in comparison.ranked or (task, method) not in comparison.entries:
        return NOTHING
    return number(comparison.regrets(task, method, which).mean().item(), 2)


def losses(comparison: Comparison) -> Table:
    """Final losses per task and method, with the LR chosen; what regret is made of."""
    header = ("task", "method", "LR", "initial", "training", "validation", "diverged", "seeds")
    return Table(header, tuple(_loss(comparison, *key) for key in sorted(comparison.entries)))


def _loss(comparison: Comparison, task: str, method: str) -> tuple[str, ...]:
    entry = comparison.entries[task, method]
    return (
        task,
        method,
        NOTHING if entry.lr is None else f"{entry.lr:.2g}",
        f"{median(run.initial_train for run in entry.runs):.4g}",
        _median_loss([final_loss(run) for run in entry.runs]),
        _median_loss([final_loss(run, VALIDATION) for run in entry.runs]),
        str(sum(map(diverged, entry.runs))),
        str(len(entry.runs)),
    )


def _median_loss(values: Sequence[float]) -> str:
    middle = median(math.inf if math.isnan(value) else value for value in values)
    return f"{middle:.4g}" if math.isfinite(middle) else "diverged"
