"""Regret and final losses of every method on every task."""

from __future__ import annotations

import math
from collections.abc import Iterable
from statistics import median

from lightning_dqnlr.bench.report.comparison import RIVAL, Comparison
from lightning_dqnlr.bench.report.content import NOTHING, Section, Table, number
from lightning_dqnlr.bench.runs.losses import TRAIN, VALIDATION, diverged, final_loss


def regret_by_task(comparison: Comparison) -> Section:
    text = (
        f"Mean regret over seeds; orange is above the tuned {RIVAL}, blue below, "
        f"{NOTHING} missing or not run."
    )
    train, validation = (heat_map(comparison, which) for which in (TRAIN, VALIDATION))
    blocks = (text, "On training loss:", train, "On validation loss:", validation)
    return Section("Regret, task by task", blocks)


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
    rows = tuple(_losses(comparison, *key) for key in sorted(comparison.entries))
    text = "Medians over seeds, with the LR chosen. All regrets come from these."
    return Section("Final losses", (text, Table(header, rows)) if rows else (), folded=True)


def _losses(comparison: Comparison, task: str, method: str) -> tuple[str, ...]:
    entry = comparison.entries[task, method]
    return (
        task,
        method,
        NOTHING if entry.lr is None else f"{entry.lr:.2g}",
        f"{median(run.initial_train for run in entry.runs):.4g}",
        _median(final_loss(run) for run in entry.runs),
        _median(final_loss(run, VALIDATION) for run in entry.runs),
        str(sum(map(diverged, entry.runs))),
        str(len(entry.runs)),
    )


def _median(losses: Iterable[float]) -> str:
    middle = median(math.inf if math.isnan(loss) else loss for loss in losses)
    return f"{middle:.4g}" if math.isfinite(middle) else "diverged"
