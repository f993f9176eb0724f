"""What a result costs: runs, seconds and memory, and how much it depends on the seed."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from statistics import median
from typing import NamedTuple

from lightning_dqnlr.bench.report.comparison import PLAIN, RIVAL, SUBJECT, Comparison
from lightning_dqnlr.bench.report.content import Block, Section, Table, number
from lightning_dqnlr.bench.report.headline import headline_rows
from lightning_dqnlr.bench.runs.record import Record, final_loss


class Cost(NamedTuple):
    """What a method's results cost, on the shared tasks that it and the plain method have."""

    method: str
    tasks: int
    tries: float  # runs per result, mean over tasks
    overhead: float  # seconds over the plain run's of the same task and seed, median of whole runs
    total: float  # seconds with the search, over the tuned rival's with its search, median
    extra_bytes: int  # median
    copies: float  # extra bytes over the bytes of the weights (four each), median


def _bytes(count: int) -> str:
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= size:
            return f"{count / size:.1f} {unit}"
    return f"{count} B"


def costs(comparison: Comparison) -> list[Cost]:
    """Every method that shares a task with the plain one, cheapest total first."""
    names = [n for n in comparison.methods if comparison.common(n, PLAIN)]
    return sorted((_cost(comparison, n) for n in names), key=lambda row: (row.total, row.method))


def _cost(comparison: Comparison, method: str) -> Cost:
    entries = comparison.entries
    tasks = comparison.common(method, PLAIN)
    mine = [entries[task, method] for task in tasks]
    runs = [run for entry in mine for run in entry.runs]
    plain = [run for task in tasks for run in entries[task, PLAIN].runs]
    pairs = [(a, b) for a, b in zip(runs, plain, strict=True) if _finished(a) and _finished(b)]
    rivals = [entries[task, RIVAL] for task in tasks]
    return Cost(
        method=method,
        tasks=len(tasks),
        tries=sum(entry.tries for entry in mine) / len(mine),
        overhead=_median(_ratio(a.seconds, b.seconds) for a, b in pairs),
        total=_median(_ratio(x.seconds, y.seconds) for x, y in zip(mine, rivals, strict=True)),
        extra_bytes=round(median(run.extra_bytes for run in runs)),
        copies=_median(_ratio(run.extra_bytes, 4 * run.parameters) for run in runs),
    )


def _finished(run: Record) -> bool:
    """Whether a run took as long as a whole one; a diverged one may have stopped early."""
    return not math.isnan(final_loss(run))


def _ratio(value: float, reference: float) -> float:
    return value / reference if reference > 0 else math.nan


def _median(values: Iterable[float]) -> float:
    """Of those that are known; NaN if none is."""
    known = [value for value in values if not math.isnan(value)]
    return median(known) if known else math.nan


def cost_table(comparison: Comparison) -> Table:
    columns: dict[str, Callable[[Cost], str]] = {
        "method": lambda row: row.method,
        "tasks": lambda row: str(row.tasks),
        "runs per result": lambda row: f"{row.tries:.3g}",
        f"seconds with the search / tuned {RIVAL}'s": lambda row: number(row.total),
        f"seconds of one run / {PLAIN}'s": lambda row: number(row.overhead, 2),
        "extra memory": lambda row: _bytes(row.extra_bytes),
        "copies of the weights": lambda row: number(row.copies, 1),
    }
    return Table.of(costs(comparison), columns, (SUBJECT,))


def _seed_table(comparison: Comparison) -> Table:
    """Standard deviation over seeds of the training regret; equal ones in the headline's order."""
    names = [row.method for row in headline_rows(comparison, comparison.shared, samples=1)]
    scores = {name: comparison.scores(name, comparison.shared) for name in names}
    # A single seed says nothing of it.
    found = {n: _median(row.std().item() for row in scores[n] if len(row) > 1) for n in names}
    names.sort(key=lambda name: math.inf if math.isnan(found[name]) else found[name])
    cells = tuple((name, number(found[name])) for name in names)
    return Table(("method", "median task"), cells, (SUBJECT,))


def what_it_costs(comparison: Comparison) -> Section:
    text = (
        f"Runs per result counts those that chose the LR. Seconds are of training alone (medians). "
        f"Those of all these runs are compared with the tuned {RIVAL}'s. Those of one run are "
        f"compared with the {PLAIN} one of the same task and seed. Memory is beyond the plain run, "
        "in bytes and in copies of the weights."
    )
    table = cost_table(comparison)
    blocks: tuple[Block, ...] = (text, table)
    if not table.rows:
        blocks = (f"No task has both {PLAIN} and another method, so there is no overhead.",)
    seeds = "Standard deviation over seeds of the training regret:"
    return Section("What it costs", (*blocks, seeds, _seed_table(comparison)))
