"""Where the subject loses, and what its runs show of why.

The reasons are read off the records: they are hints where to look, not proofs.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import mean
from typing import NamedTuple

from lightning_dqnlr.bench.report.comparison import Comparison
from lightning_dqnlr.bench.report.content import NOTHING, Bullets, Case, Section, Table, number
from lightning_dqnlr.bench.report.trajectories import side_by_side
from lightning_dqnlr.bench.runs.losses import TRAIN, VALIDATION, diverged
from lightning_dqnlr.bench.runs.record import Record
from lightning_dqnlr.bench.tasks.task import UNKNOWN_HORIZON
from lightning_dqnlr.scoring.statistics import WITHIN

FACTOR = 2.0  # learning rates closer than this count as alike
CUT = 0.3  # the circuit breaker cuts to a quarter; ordinary actions rarely add up to that
NOT_DECAYED = 0.3  # of the peak LR, at the end
THIRDS = ("first", "middle", "last")
DETAILED = 8  # tasks that are shown with their trajectories


class Point(NamedTuple):
    """Of a curve."""

    step: float
    value: float


class Pair(NamedTuple):
    """Runs of the subject and of the rival with the same seed."""

    run: Record
    rival: Record


class Gap(NamedTuple):
    """How far a method is ahead of the subject."""

    method: str
    by: float  # in mean regret


@dataclass(frozen=True)
class LostTask:
    """A task on which a method beats the subject.

    Args:
        task: its name.
        regret: the subject's mean on training loss.
        validation_regret: on validation loss.
        train: the methods that end lower, largest gap first.
        validation: the same on validation loss.
        hints: why, in words.
    """

    task: str
    regret: float
    validation_regret: float
    train: tuple[Gap, ...]
    validation: tuple[Gap, ...]
    hints: tuple[str, ...]

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
    tasks = comparison.common(comparison.roles.subject, among=comparison.ranked)
    rows = [_lost_task(comparison, task) for task in tasks]
    return sorted((row for row in rows if row.gap > WITHIN), key=lambda row: (-row.gap, row.task))


def _lost_task(comparison: Comparison, task: str) -> LostTask:
    train, validation = (_ahead(comparison, task, which) for which in (TRAIN, VALIDATION))
    hints = _hints(comparison, task)
    if validation and not train:
        hints.insert(0, "only the validation loss is worse: it generalises worse")
    elif train and not validation:
        hints.insert(0, "only the training loss is worse: nobody generalises better")
    return LostTask(
        task=task,
        regret=comparison.mean_regret(task, comparison.roles.subject),
        validation_regret=comparison.mean_regret(task, comparison.roles.subject, VALIDATION),
        train=train,
        validation=validation,
        hints=tuple(hints),
    )


def _ahead(comparison: Comparison, task: str, which: str) -> tuple[Gap, ...]:
    own = comparison.mean_regret(task, comparison.roles.subject, which)
    gaps = [
        Gap(method, own - comparison.mean_regret(task, method, which))
        for method in comparison.methods
        if method != comparison.roles.subject and (task, method) in comparison.entries
    ]
    ahead = [gap for gap in gaps if gap.by > WITHIN]
    return tuple(sorted(ahead, key=lambda gap: (-round(gap.by, 9), gap.method)))


def where_we_lose(comparison: Comparison, rows: Sequence[LostTask]) -> Section:
    """The tasks as a table, and the worst of them looked at closely."""
    subject = comparison.roles.subject
    title = "Where we lose, and why"
    if subject not in comparison.methods:
        return Section(title, ())
    if not rows:
        return Section(title, (f"Nobody ends more than 2% below {subject} on any task.",))
    text = (
        f"Tasks where a method ends more than 2% below {subject} (mean over seeds), largest gap "
        "first. The reasons are read off the recorded runs: where to look, not proof."
    )
    header = ("task", "split", "regret", "ahead on training loss", "ahead on validation loss")
    cells = tuple(_cells(comparison, row) for row in rows)
    cases = [_case(comparison, row) for row in rows[:DETAILED]]
    return Section(title, (text, Table(header, cells), *cases))


def _cells(comparison: Comparison, row: LostTask) -> tuple[str, ...]:
    regrets = f"{number(row.regret, 2)} / {number(row.validation_regret, 2)}"
    split = comparison.splits[row.task]
    return (row.task, split, regrets, _gaps(row.train), _gaps(row.validation))


def _gaps(gaps: Sequence[Gap], shown: int = 5) -> str:
    listed = ", ".join(f"{gap.method} by {gap.by:.2f}" for gap in gaps[:shown])
    more = f" and {len(gaps) - shown} more" if len(gaps) > shown else ""
    return listed + more or NOTHING


def _case(comparison: Comparison, row: LostTask) -> Case:
    roles = comparison.roles
    methods = list(dict.fromkeys((roles.subject, roles.rival, row.best)))
    split = comparison.splits[row.task]
    return Case(
        title=f"{row.task} ({split})" if split else row.task,
        bullets=Bullets(row.hints or ("nothing in its runs stands out",)),
        picture=side_by_side(comparison, row.task, methods),
    )


def _hints(comparison: Comparison, task: str) -> list[str]:
    runs = comparison.entries[task, comparison.roles.subject].runs
    rivals = comparison.entries[task, comparison.roles.rival].runs
    name = f"the tuned {comparison.roles.rival}'s"
    pairs = [Pair(run, rival) for run, rival in zip(runs, rivals, strict=True)]
    told = comparison.splits[task] != UNKNOWN_HORIZON
    hints = [
        _diverged(runs),
        "" if told else "it was not told how long the run is",
        _rates(pairs, name),
        _since(pairs, name),
        _cuts(runs),
        _no_decay(runs, told),
    ]
    return [hint for hint in hints if hint]


def _diverged(runs: Sequence[Record]) -> str:
    count = sum(map(diverged, runs))
    failures = sorted({run.failure for run in runs if run.failure is not None})
    text = f"{count} of {len(runs)} seeds diverged or ended above the start" if count else ""
    return text + (f" ({'; '.join(failures)[:120]})" if failures else "")


def _rates(pairs: Sequence[Pair], name: str) -> str:
    """How far the LR lies from the rival's in each third of the run."""
    parts = []
    for i, third in enumerate(THIRDS):
        ratios = [r for pair in pairs for r in _log_ratios(pair, i / 3, (i + 1) / 3)]
        if ratios and abs(mean(ratios)) > math.log(FACTOR):
            way = "above" if mean(ratios) > 0 else "below"
            parts.append(f"{math.exp(abs(mean(ratios))):.1f}x {way} in the {third} third")
    if not any(_curve(pair.run, "lr") for pair in pairs):
        return ""
    return f"LR {', '.join(parts)} of {name}" if parts else f"LR within {FACTOR:.0f}x of {name}"


def _log_ratios(pair: Pair, start: float, end: float) -> list[float]:
    """Of the LRs, at the points of the run between two shares of it."""
    run = pair.run
    return [
        math.log(point.value / reference)
        for point in _curve(run, "lr")
        if start * run.horizon < point.step <= end * run.horizon
        and (reference := _at(point.step, _curve(pair.rival, "lr"))) > 0
    ]


def _since(pairs: Sequence[Pair], name: str) -> str:
    """From when on the running training loss stays above the rival's."""
    shares = []
    for pair in pairs:
        points, other = _curve(pair.run, "train"), _curve(pair.rival, "train")
        ahead = [point for point in points if point.value <= _at(point.step, other)]
        if points and points[-1] not in ahead[-1:]:
            shares.append((ahead[-1].step if ahead else 0) / pair.run.horizon)
    if not shares:
        return ""
    middle = sorted(shares)[len(shares) // 2]
    since = "from the start" if middle < 0.05 else f"only after {middle:.0%} of the run"
    return f"training loss above {name} {since} (in {len(shares)} of {len(pairs)} seeds)"


def _cuts(runs: Sequence[Record]) -> str:
    """A trip of the circuit breaker cuts the LR to a quarter; ordinary decay is over later."""
    steps = []
    for run in runs:
        early = [point for point in _curve(run, "lr") if point.step <= 0.75 * run.horizon]
        pairs = itertools.pairwise(early)
        steps += [after.step for before, after in pairs if after.value < CUT * before.value][:1]
    if not steps:
        return ""
    return (
        f"LR cut to less than {CUT:.0%} between two points in {len(steps)} of {len(runs)} seeds, "
        f"first at step {min(steps):.0f}: a trip of the circuit breaker, or a steep decision"
    )


def _no_decay(runs: Sequence[Record], told: bool) -> str:
    curves = [curve for run in runs if (curve := [p.value for p in _curve(run, "lr")])]
    ends = [curve[-1] / max(curve) for curve in curves]
    if not ends or mean(ends) < NOT_DECAYED:
        return ""
    as_if = ", as if no horizon were known" if told else ""
    return f"LR never came down (ends at {mean(ends):.0%} of its peak){as_if}"


def _curve(run: Record, name: str) -> list[Point]:
    """Positive finite points of a curve; others have no logarithm."""
    pairs = zip(run.curve["step"], run.curve[name], strict=True)
    return [Point(s, v) for s, v in pairs if v is not None and math.isfinite(v) and v > 0]


def _at(step: float, points: Sequence[Point]) -> float:
    """Piecewise linear between the points, constant outside; 0 without points."""
    if not points or step <= points[0].step:
        return points[0].value if points else 0.0
    for left, right in itertools.pairwise(points):
        if step <= right.step:
            share = (step - left.step) / (right.step - left.step)
            return left.value + (right.value - left.value) * share
    return points[-1].value
