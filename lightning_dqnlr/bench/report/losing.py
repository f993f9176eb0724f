"""Where the subject loses, and what its runs show of why.

The reasons are computed from the recorded curves. They say where to look and prove nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import mean
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from lightning_dqnlr.bench.report.comparison import RIVAL, SUBJECT, Comparison
from lightning_dqnlr.bench.report.content import Bullets, Case, Section, Table, listed, number
from lightning_dqnlr.bench.report.trajectories import side_by_side
from lightning_dqnlr.bench.runs.record import TRAIN, VALIDATION, Record, diverged
from lightning_dqnlr.bench.tasks.task import UNKNOWN_HORIZON
from lightning_dqnlr.scoring.statistics import WITHIN

FACTOR = 2.0  # learning rates closer than this count as alike
CUT = 0.3  # the circuit breaker cuts to a quarter; ordinary actions rarely add up to that
NOT_DECAYED = 0.3  # of the peak LR, at the end
Array = NDArray[np.float64]
THIRDS = ("first", "middle", "last")
DETAILED = 8  # tasks that are shown with their trajectories


class Curve(NamedTuple):
    """Points (N,) of a run."""

    steps: Array
    values: Array


class Gap(NamedTuple):
    """How far a method is ahead of the subject."""

    method: str
    by: float  # in mean regret


@dataclass(frozen=True)
class LostTask:
    """A task on which a method beats the subject."""

    task: str
    regret: float  # the subject's mean on training loss
    validation_regret: float
    train: tuple[Gap, ...]  # to the methods that end lower, the largest first
    validation: tuple[Gap, ...]
    hints: tuple[str, ...]  # why, in words

    @property
    def gap(self) -> float:
        """To the best method, on the loss where it is larger."""
        return max((gap.by for gap in (*self.train, *self.validation)), default=0.0)

    @property
    def best(self) -> str:
        """The method that wins by most on training loss (validation, if none does there)."""
        return (self.train or self.validation)[0].method


def losing(comparison: Comparison) -> list[LostTask]:
    """The tasks where a method is more than 2% ahead of the subject, the largest gap first."""
    tasks = comparison.common(SUBJECT, among=comparison.ranked)
    rows = [_lost_task(comparison, task) for task in tasks]
    return sorted((row for row in rows if row.gap > WITHIN), key=lambda row: (-row.gap, row.task))


def _lost_task(comparison: Comparison, task: str) -> LostTask:
    train = _ahead(comparison, task, TRAIN)
    validation = _ahead(comparison, task, VALIDATION)
    hints = _hints(comparison, task)
    if validation and not train:
        hints.insert(0, "only the validation loss is worse: it generalises worse")
    elif train and not validation:
        hints.insert(0, "only the training loss is worse: nobody generalises better")
    return LostTask(
        task=task,
        regret=comparison.mean_regret(task, SUBJECT),
        validation_regret=comparison.mean_regret(task, SUBJECT, VALIDATION),
        train=train,
        validation=validation,
        hints=tuple(hints),
    )


def _ahead(comparison: Comparison, task: str, which: str) -> tuple[Gap, ...]:
    own = comparison.mean_regret(task, SUBJECT, which)
    gaps = [
        Gap(method, own - comparison.mean_regret(task, method, which))
        for method in comparison.methods
        if method != SUBJECT and (task, method) in comparison.entries
    ]
    ahead = [gap for gap in gaps if gap.by > WITHIN]
    return tuple(sorted(ahead, key=lambda gap: (-round(gap.by, 9), gap.method)))


def where_we_lose(comparison: Comparison, rows: Sequence[LostTask]) -> Section:
    title = "Where we lose, and why"
    if SUBJECT not in comparison.methods:
        return Section(title, ())
    if not rows:
        return Section(title, (f"Nobody ends more than 2% below {SUBJECT} on any task.",))
    text = (
        f"Tasks where a method ends more than 2% below {SUBJECT} (mean over seeds), largest gap "
        "first. The reasons are read off the recorded runs: where to look, not proof."
    )
    columns: dict[str, Callable[[LostTask], str]] = {
        "task": lambda row: row.task,
        "split": lambda row: comparison.splits[row.task],
        "regret": lambda row: f"{number(row.regret, 2)} / {number(row.validation_regret, 2)}",
        "ahead on training loss": lambda row: _gaps(row.train),
        "ahead on validation loss": lambda row: _gaps(row.validation),
    }
    cases = [_case(comparison, row) for row in rows[:DETAILED]]
    return Section(title, (text, Table.of(rows, columns), *cases))


def _gaps(gaps: Sequence[Gap]) -> str:
    return listed([f"{gap.method} by {gap.by:.2f}" for gap in gaps], 5)


def _case(comparison: Comparison, row: LostTask) -> Case:
    methods = list(dict.fromkeys((SUBJECT, RIVAL, row.best)))
    split = comparison.splits[row.task]
    return Case(
        title=f"{row.task} ({split})" if split else row.task,
        bullets=Bullets(row.hints or ("nothing in its runs stands out",)),
        picture=side_by_side(comparison, row.task, methods),
    )


def _hints(comparison: Comparison, task: str) -> list[str]:
    runs = comparison.entries[task, SUBJECT].runs
    rivals = comparison.entries[task, RIVAL].runs
    name = f"the tuned {RIVAL}'s"
    told = comparison.splits[task] != UNKNOWN_HORIZON
    hints = [
        _diverged(runs),
        "" if told else "it was not told how long the run is",
        _rates(runs, rivals, name),
        _since(runs, rivals, name),
        _cuts(runs),
        _no_decay(runs, told),
    ]
    return [hint for hint in hints if hint]


def _diverged(runs: Sequence[Record]) -> str:
    count = sum(map(diverged, runs))
    failures = sorted({run.failure for run in runs if run.failure is not None})
    text = f"{count} of {len(runs)} seeds diverged or ended above the start" if count else ""
    return text + (f" ({'; '.join(failures)[:120]})" if failures else "")


def _rates(runs: Sequence[Record], rivals: Sequence[Record], name: str) -> str:
    """How far the LR lies from the rival's in each third of the run."""
    parts = []
    for i, third in enumerate(THIRDS):
        ratios = np.concatenate([_log_ratios(a, b, i) for a, b in zip(runs, rivals, strict=True)])
        middle = ratios.mean() if len(ratios) else 0.0
        if abs(middle) > math.log(FACTOR):
            way = "above" if middle > 0 else "below"
            parts.append(f"{math.exp(abs(middle)):.1f}x {way} in the {third} third")
    if not any(len(_curve(run, "lr").steps) for run in runs):
        return ""
    return f"LR {', '.join(parts)} of {name}" if parts else f"LR within {FACTOR:.0f}x of {name}"


def _log_ratios(run: Record, rival: Record, third: int) -> Array:
    """Of the LRs, at the points in a third of the run; none without a rival's LR."""
    mine = _curve(run, "lr")
    other = _curve(rival, "lr")
    inside = (third / 3 * run.horizon < mine.steps) & (mine.steps <= (third + 1) / 3 * run.horizon)
    if not len(other.steps):
        return np.empty(0)
    return np.log(mine.values / np.interp(mine.steps, *other))[inside]


def _since(runs: Sequence[Record], rivals: Sequence[Record], name: str) -> str:
    """From when on the running training loss stays above the rival's."""
    shares = []
    for run, rival in zip(runs, rivals, strict=True):
        mine = _curve(run, "train")
        other = _curve(rival, "train")
        reference = np.interp(mine.steps, *other) if len(other.steps) else np.zeros_like(mine.steps)
        ahead = mine.values <= reference
        if len(ahead) and not ahead[-1]:
            shares.append(max(mine.steps[ahead], default=0.0) / run.horizon)
    if not shares:
        return ""
    middle = sorted(shares)[len(shares) // 2]
    since = "from the start" if middle < 0.05 else f"only after {middle:.0%} of the run"
    return f"training loss above {name} {since} (in {len(shares)} of {len(runs)} seeds)"


def _cuts(runs: Sequence[Record]) -> str:
    """A trip of the circuit breaker cuts the LR to a quarter; ordinary decay is over later."""
    steps: list[float] = []
    for run in runs:
        lr = _curve(run, "lr")
        cut = (lr.values[1:] < CUT * lr.values[:-1]) & (lr.steps[1:] <= 0.75 * run.horizon)
        steps += lr.steps[1:][cut][:1].tolist()
    if not steps:
        return ""
    return (
        f"LR cut to less than {CUT:.0%} between two points in {len(steps)} of {len(runs)} seeds, "
        f"first at step {min(steps):.0f} (a trip, or a steep decision)"
    )


def _no_decay(runs: Sequence[Record], told: bool) -> str:
    curves = [_curve(run, "lr").values for run in runs]
    ends = [lr[-1] / lr.max() for lr in curves if len(lr)]
    if not ends or mean(ends) < NOT_DECAYED:
        return ""
    as_if = ", as if no horizon were known" if told else ""
    return f"LR never came down (ends at {mean(ends):.0%} of its peak){as_if}"


def _curve(run: Record, name: str) -> Curve:
    """Its positive finite points; others have no logarithm."""
    steps = np.array(run.curve["step"], dtype=float)
    values = np.array(run.curve[name], dtype=float)
    known = np.isfinite(values) & (values > 0)
    return Curve(steps[known], values[known])
