"""How much the given learning rate matters: task by task, and by its distance from the best."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from statistics import median
from typing import Any, NamedTuple

import numpy as np
import torch

from lightning_dqnlr.bench.report.comparison import RIVAL, SUBJECT, Comparison
from lightning_dqnlr.bench.report.content import Picture, Section, Table, number, share
from lightning_dqnlr.bench.report.drawing import gallery, log_scale, picture, styles
from lightning_dqnlr.bench.runs.record import TRAIN, VALIDATION, diverged
from lightning_dqnlr.scoring.statistics import interquartile_mean
from lightning_dqnlr.svg import INK

Curves = dict[str, dict[float, float]]  # by method: a value by the LR
FACTORS = tuple(10 ** (quarter / 4) for quarter in range(-12, 13))


class Sensitivity(NamedTuple):
    """How far the LR given to a method moves where it ends."""

    method: str
    tasks: int
    decades: float  # of the LRs, the least of all tasks
    spread: float  # highest minus lowest mean regret over the LRs, median over tasks
    worst: float
    diverged: float  # share of all runs


_COLUMNS: dict[str, Callable[[Sensitivity], str]] = {
    "method": lambda row: row.method,
    "tasks": lambda row: str(row.tasks),
    "decades of LR": lambda row: number(row.decades, 1),
    "spread, median task": lambda row: number(row.spread),
    "worst task": lambda row: number(row.worst),
    "diverged": lambda row: share(row.diverged),
}


def swept(comparison: Comparison) -> tuple[str, ...]:
    """The tasks on which the subject (the rival, if the subject has none) ran over LRs."""
    for method in (SUBJECT, RIVAL):
        tasks = tuple(task for task in comparison.shared if comparison.sweep(task, method))
        if tasks:
            return tasks
    return ()


def sensitivities(comparison: Comparison) -> list[Sensitivity]:
    """Every method that was swept on all of these tasks, the least sensitive first.

    The spread on a task is the highest minus the lowest mean regret over the LRs.
    """
    tasks = swept(comparison)
    names = [n for n in comparison.methods if tasks and all(comparison.sweep(t, n) for t in tasks)]
    rows = [_sensitivity(comparison, name, tasks) for name in names]
    return sorted(rows, key=lambda row: (row.spread, row.method))


def _sensitivity(comparison: Comparison, method: str, tasks: Sequence[str]) -> Sensitivity:
    sweeps = [comparison.sweep(task, method) for task in tasks]
    means = [_mean_regrets(comparison, task, method).values() for task in tasks]
    spreads = [max(values) - min(values) for values in means]
    runs = [run for sweep in sweeps for group in sweep.values() for run in group]
    return Sensitivity(
        method=method,
        tasks=len(tasks),
        decades=min(math.log10(max(sweep) / min(sweep)) for sweep in sweeps),
        spread=median(spreads),
        worst=max(spreads),
        diverged=sum(map(diverged, runs)) / len(runs),
    )


def _mean_regrets(
    comparison: Comparison, task: str, method: str, which: str = TRAIN
) -> dict[float, float]:
    """Regret by the LR given, mean over seeds, in the order of the LRs.

    The subject does not read the LR. Where it was not run at given ones, its runs without one stand
    for it at all of the rival's.
    """
    sweep = comparison.sweep(task, method)
    entry = comparison.entries.get((task, method))
    if not sweep and method == SUBJECT and entry is not None and entry.lr is None:
        sweep = dict.fromkeys(comparison.sweep(task, RIVAL), entry.runs)
    return {lr: comparison.regrets_of(runs, which).mean().item() for lr, runs in sweep.items()}


def sensitivity_table(comparison: Comparison) -> Table:
    """One row per method; methods swept on fewer tasks as missing."""
    table = Table.of(sensitivities(comparison), _COLUMNS, (SUBJECT,))
    tasks = swept(comparison)
    for method in comparison.methods:
        have = sum(bool(comparison.sweep(task, method)) for task in tasks)
        if 0 < have < len(tasks):
            table = table.with_gap(method, f"missing {len(tasks) - have} of {len(tasks)}")
    return table


def mistuned(comparison: Comparison, method: str) -> dict[float, float]:
    """Regret on training loss by the factor of the LR to the rival's best peak.

    Regrets are means over seeds, and between two LRs they lie on a line in log LR. The result is
    the interquartile mean over the tasks that were swept. A factor beyond the LRs of any task is
    left out, because the mean over the others would be of other tasks.
    """
    curves = [_curve(comparison, task, method) for task in swept(comparison)]
    if not all(curves) or not curves:
        return {}
    powers = [round(math.log10(factor), 2) for factor in FACTORS]
    outside = {"left": math.nan, "right": math.nan}
    lines = [np.interp(powers, list(c), list(c.values()), **outside) for c in curves]
    regrets = zip(FACTORS, torch.tensor(np.stack(lines, 1), dtype=torch.float32), strict=True)
    return {f: interquartile_mean(row) for f, row in regrets if row.isfinite().all()}


def _curve(comparison: Comparison, task: str, method: str) -> dict[float, float]:
    """Mean regrets by log10 of the LR over the best peak, ascending."""
    peak = comparison.entries[task, RIVAL].lr
    if peak is None:
        return {}
    # Rounded, or the last LR of a grid might lie short of the factor that it stands for.
    return {
        round(math.log10(lr / peak), 2): regret
        for lr, regret in _mean_regrets(comparison, task, method).items()
    }


def _over_lr(axes: Any, comparison: Comparison, curves: Curves, level: float) -> None:
    """Draws curves over the LR, the subject's on top, and a line at a level below them."""
    look = styles(comparison)
    axes.axhline(level, color=INK, linewidth=0.8)
    for name in reversed(curves):  # the subject is the first
        axes.plot(list(curves[name]), list(curves[name].values()), **look[name])
    axes.set_xscale("log")
    axes.grid(True)


def mistuning_picture(comparison: Comparison) -> tuple[Picture, ...]:
    """All methods that were swept, over all tasks; nothing where none was."""
    regrets = {name: mistuned(comparison, name) for name in comparison.methods}
    swept_ones = {name: curve for name, curve in regrets.items() if len(curve) > 1}
    if not swept_ones:
        return ()
    ratios = {name: {f: math.exp(r) for f, r in c.items()} for name, c in swept_ones.items()}

    def draw(figure: Any) -> None:
        axes = figure.subplots()
        _over_lr(axes, comparison, ratios, level=1)
        log_scale(axes)
        axes.set_xlabel(f"learning rate given, over the best peak of the {RIVAL}")
        axes.set_ylabel(f"training loss, over the tuned {RIVAL}'s")
        place = {"loc": "outside right center", "frameon": False, "handlelength": 2.6}
        figure.legend(axes.get_lines()[:0:-1], list(ratios), **place)

    text = "What a wrong learning rate costs each method, over all tasks."
    return (picture("mistuning", text, draw, width=8.2, height=3.6),)


def loss_by_lr(comparison: Comparison, task: str) -> tuple[Picture, ...]:
    """Both losses on a task by the LR given, over the tuned rival's; nothing without a grid."""
    methods = [n for n in comparison.methods if len(_mean_regrets(comparison, task, n)) > 1]
    if not methods:
        return ()

    def draw(figure: Any) -> None:
        panels = figure.subplots(1, 2)
        for axes, which in zip(panels, (TRAIN, VALIDATION), strict=True):
            regrets = {n: _mean_regrets(comparison, task, n, which) for n in methods}
            ratios = {n: {lr: math.exp(r) for lr, r in c.items()} for n, c in regrets.items()}
            _over_lr(axes, comparison, ratios, level=1)
            log_scale(axes)
            named = "training" if which == TRAIN else which
            axes.set(xlabel="learning rate given", ylabel=f"{named} loss, over the tuned {RIVAL}'s")
        place = {"loc": "outside right center", "frameon": False, "handlelength": 2.6}
        figure.legend(panels[0].get_lines()[:0:-1], methods, **place)

    text = f"Training and validation loss of each method on {task} by the learning rate given."
    return (picture(f"loss-by-lr-{task}", text, draw, width=10.4, height=3.3),)


def _task_picture(comparison: Comparison, task: str) -> Picture:
    curves = {name: _mean_regrets(comparison, task, name) for name in comparison.methods}

    def draw(figure: Any) -> None:
        axes = figure.subplots()
        _over_lr(axes, comparison, curves, level=0)
        axes.set(title=task, xlabel="learning rate given", ylabel="regret, training")

    text = f"Regret against the given learning rate on {task}."
    return picture(f"sensitivity-{task}", text, draw, width=3.7, height=2.5)


def how_much_the_lr_matters(comparison: Comparison, *, drawn: bool = False) -> Section:
    """The table, and the pictures unless the report has drawn them already."""
    title = "How much the given LR matters"
    tasks = swept(comparison)
    if not tasks:
        return Section(title, ("No method was run over learning rates on the same seeds.",))
    text = (
        "Mean regret on training loss against the learning rate that the method was given. Spread: "
        "highest minus lowest over these rates; 0 means that the rate does not matter. A method "
        "that was given more decades had more to spoil."
    )
    table = sensitivity_table(comparison)
    if drawn:
        return Section(title, (text, table))
    text += (
        " The first picture is over all tasks: the interquartile mean, by how far the rate is from "
        "the best peak of each task."
    )
    names = comparison.methods
    methods = [n for n in names if any(_mean_regrets(comparison, t, n) for t in tasks)]
    small = gallery(
        comparison, methods, "sensitivity", (_task_picture(comparison, t) for t in tasks)
    )
    return Section(title, (text, *mistuning_picture(comparison), table, small))
