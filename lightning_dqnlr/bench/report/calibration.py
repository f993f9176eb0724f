"""Calibration: how far the subject's learning rates lie from the best peak of the tuned rival.

It needs no final loss, so one run says much. Zero is a policy whose rates are what a sweep finds.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from statistics import median
from typing import NamedTuple

import numpy as np

from lightning_dqnlr.bench.report.comparison import RIVAL, SUBJECT, Comparison
from lightning_dqnlr.bench.report.content import Section, Table, number
from lightning_dqnlr.bench.runs.record import Record

QUARTILE = 0.75  # of the rates of a run; a decay over the last third leaves it alone


class Calibration(NamedTuple):
    """The rates of a method on one task.

    Attributes:
        task: its name.
        batch_size: of the task.
        used: upper quartile of the learning rates in use, geometric mean over seeds.
        best: peak of the tuned rival.
        octaves: log2 of the first over the second; below zero the rates are too low.
    """

    task: str
    batch_size: int
    used: float
    best: float
    octaves: float


def calibrations(comparison: Comparison, method: str = SUBJECT) -> list[Calibration]:
    """Of each task that both have, where rates and a peak are known; the lowest rates first.

    Example:
        >>> calibrations(comparison)[0].octaves  # doctest: +SKIP
        -2.3
    """
    tasks = comparison.common(method, among=comparison.ranked)
    found = [_calibration(comparison, task, method) for task in tasks]
    return sorted((row for row in found if row is not None), key=lambda row: row.octaves)


def _calibration(comparison: Comparison, task: str, method: str) -> Calibration | None:
    best = comparison.entries[task, RIVAL].lr
    runs = comparison.entries[task, method].runs
    logs = [math.log2(used) for used in map(upper_quartile, runs) if used > 0]
    if best is None or not logs:
        return None
    used = 2 ** (sum(logs) / len(logs))
    return Calibration(task, runs[0].batch_size, used, best, math.log2(used / best))


def upper_quartile(run: Record) -> float:
    """Of the learning rates after the first step, at the points of the run's curve; 0 for none."""
    points = zip(run.curve["step"], run.curve["lr"], strict=True)
    rates = [lr for step, lr in points if step > 0 and lr is not None]
    return float(np.quantile(rates, QUARTILE)) if rates else 0.0


def calibration(comparison: Comparison) -> Section:
    """The section of the report."""
    title = "Calibration: its rates against the best peaks"
    rows = calibrations(comparison) if SUBJECT in comparison.methods else []
    if not rows:
        return Section(title, ())
    columns: dict[str, Callable[[Calibration], str]] = {
        "task": lambda row: row.task,
        "batch": lambda row: str(row.batch_size),
        f"rate of {SUBJECT}": lambda row: f"{row.used:.2g}",
        f"best peak of {RIVAL}": lambda row: f"{row.best:.2g}",
        "octaves": lambda row: number(row.octaves, 1),
    }
    return Section(title, (_in_words(rows), Table.of(rows, columns)))


def _in_words(rows: Sequence[Calibration]) -> str:
    octaves = [row.octaves for row in rows]
    low, high = np.quantile(octaves, 0.25), np.quantile(octaves, QUARTILE)
    return (
        f"The upper quartile of {SUBJECT}'s learning rates over the best peak of the {RIVAL}, in "
        f"octaves: log2 of the ratio. Over {len(rows)} tasks the median is "
        f"{number(median(octaves), 1)}, half of them lie from {number(low, 1)} to "
        f"{number(high, 1)}. Below zero its rates are lower than what a sweep finds."
    )
