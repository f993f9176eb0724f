"""Where the subject loses, and what its runs show of why.

The reasons are read off the records: they are hints where to look, not proofs.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import mean

from lightning_dqnlr.bench.report.comparison import Comparison
from lightning_dqnlr.bench.runs.losses import TRAIN, VALIDATION, diverged
from lightning_dqnlr.bench.runs.record import Record
from lightning_dqnlr.bench.tasks.task import UNKNOWN_HORIZON
from lightning_dqnlr.scoring.statistics import WITHIN

FACTOR = 2.0  # learning rates closer than this count as alike
CUT = 0.3  # the circuit breaker cuts to a quarter; ordinary actions rarely add up to that
NOT_DECAYED = 0.3  # of the peak LR, at the end
THIRDS = ("first", "middle", "last")


@dataclass(frozen=True)
class Loss:
    """A task on which a method beats the subject.

    Args:
        task: its name.
        regrets: the subject's mean regret on training and validation loss.
        train: the methods that end lower, with the gap in mean regret, largest first.
        validation: the same on validation loss.
        hints: why, in words.
    """

    task: str
    regrets: tuple[float, float]
    train: tuple[tuple[str, float], ...]
    validation: tuple[tuple[str, float], ...]
    hints: tuple[str, ...]

    @property
    def gap(self) -> float:
        """To the best method, on the loss where it is larger."""
        return max((gap for _, gap in (*self.train, *self.validation)), default=0.0)

    @property
    def best(self) -> str:
        """The method that wins by most on training loss (validation, if none does there)."""
        return (self.train or self.validation)[0][0]


def losing(comparison: Comparison, trained_horizon: int | None = None) -> list[Loss]:
    """The tasks where a method is more than 2% ahead of the subject, the largest gap first.

    Args:
        comparison: of all methods.
        trained_horizon: the longest run that the policy was trained on, in steps, if known.
    """
    subject = comparison.roles.subject
    tasks = [task for task in comparison.ranked if (task, subject) in comparison.entries]
    rows = [_loss(comparison, task, trained_horizon) for task in tasks]
    return sorted((row for row in rows if row.gap > WITHIN), key=lambda row: (-row.gap, row.task))


def _loss(comparison: Comparison, task: str, trained_horizon: int | None) -> Loss:
    subject = comparison.roles.subject
    regrets = [comparison.regrets(task, subject, w).mean().item() for w in (TRAIN, VALIDATION)]
    train, validation = (_ahead(comparison, task, which) for which in (TRAIN, VALIDATION))
    hints = _hints(comparison, task, trained_horizon)
    if validation and not train:
        hints.insert(0, "only the validation loss is worse: it generalises worse")
    elif train and not validation:
        hints.insert(0, "only the training loss is worse: nobody generalises better")
    return Loss(task, (regrets[0], regrets[1]), train, validation, tuple(hints))


def _ahead(comparison: Comparison, task: str, which: str) -> tuple[tuple[str, float], ...]:
    subject = comparison.roles.subject
    own = comparison.regrets(task, subject, which).mean().item()
    gaps = [
        (method, own - comparison.regrets(task, method, which).mean().item())
        for method in comparison.methods
        if method != subject and (task, method) in comparison.entries
    ]
    ahead = [gap for gap in gaps if gap[1] > WITHIN]
    return tuple(sorted(ahead, key=lambda gap: (-round(gap[1], 9), gap[0])))


def _hints(comparison: Comparison, task: str, trained_horizon: int | None) -> list[str]:
    runs = comparison.entries[task, comparison.roles.subject].runs
    rivals = comparison.entries[task, comparison.roles.rival].runs
    name = f"the tuned {comparison.roles.rival}'s"
    horizon = runs[0].horizon
    hints = [_diverged(runs)]
    told = comparison.splits[task] != UNKNOWN_HORIZON
    if not told:
        hints.append("it was not told how long the run is")
    if trained_horizon is not None and horizon > trained_horizon:
        longer = horizon / trained_horizon
        hints.append(f"{horizon} steps are {longer:.1f}x the longest run it was trained on")
    hints += [
        _rates(list(zip(runs, rivals, strict=True)), name),
        _since(list(zip(runs, rivals, strict=True)), name),
        _cuts(runs),
        _no_decay(runs, told),
    ]
    return [hint for hint in hints if hint]


def _diverged(runs: Sequence[Record]) -> str:
    count = sum(map(diverged, runs))
    failures = sorted({run.failure for run in runs if run.failure is not None})
    text = f"{count} of {len(runs)} seeds diverged or ended above the start" if count else ""
    return text + (f" ({'; '.join(failures)[:120]})" if failures else "")


def _rates(pairs: Sequence[tuple[Record, Record]], name: str) -> str:
    """How far the LR lies from the rival's in each third of the run."""
    parts = []
    for i, third in enumerate(THIRDS):
        ratios = [r for run, rival in pairs for r in _ratios(run, rival, i / 3, (i + 1) / 3)]
        if not ratios:
            continue
        middle = mean(ratios)
        if abs(middle) > math.log(FACTOR):
            way = "above" if middle > 0 else "below"
            parts.append(f"{math.exp(abs(middle)):.1f}x {way} in the {third} third")
    if not any(_points(run, "lr") for run, _ in pairs):
        return ""
    return f"LR {', '.join(parts)} of {name}" if parts else f"LR within {FACTOR:.0f}x of {name}"


def _ratios(run: Record, rival: Record, start: float, end: float) -> list[float]:
    """Log LR ratio at the points between two shares of the run; the rival's LR is interpolated."""
    other = _interpolate(_points(rival, "lr"))
    return [
        math.log(lr / reference)
        for step, lr in _points(run, "lr")
        if start * run.horizon < step <= end * run.horizon and (reference := other(step)) > 0
    ]


def _since(pairs: Sequence[tuple[Record, Record]], name: str) -> str:
    """From when on the running training loss stays above the rival's."""
    shares = []
    for run, rival in pairs:
        other = _interpolate(_points(rival, "train"))
        points = [(step, loss > other(step)) for step, loss in _points(run, "train")]
        if not points or not points[-1][1]:
            continue
        ahead = [step for step, behind in points if not behind]
        shares.append((ahead[-1] if ahead else 0) / run.horizon)
    if not shares:
        return ""
    middle = sorted(shares)[len(shares) // 2]
    since = "from the start" if middle < 0.05 else f"only after {middle:.0%} of the run"
    return f"training loss above {name} {since} (in {len(shares)} of {len(pairs)} seeds)"


def _cuts(runs: Sequence[Record]) -> str:
    """A trip of the circuit breaker cuts the LR to a quarter; ordinary decay is over later."""
    steps = []
    for run in runs:
        points = [p for p in _points(run, "lr") if p[0] <= 0.75 * run.horizon]
        pairs = itertools.pairwise(points)
        steps += [after[0] for before, after in pairs if after[1] < CUT * before[1]][:1]
    if not steps:
        return ""
    return (
        f"LR cut to less than {CUT:.0%} between two points in {len(steps)} of {len(runs)} seeds, "
        f"first at step {min(steps):.0f}: a trip of the circuit breaker, or a steep decision"
    )


def _no_decay(runs: Sequence[Record], told: bool) -> str:
    ends = [p[-1][1] / max(lr for _, lr in p) for run in runs if (p := _points(run, "lr"))]
    if not ends or mean(ends) < NOT_DECAYED:
        return ""
    as_if = ", as if no horizon were known" if told else ""
    return f"LR never came down (ends at {mean(ends):.0%} of its peak){as_if}"


def _points(run: Record, name: str) -> list[tuple[float, float]]:
    """Positive finite points of a curve; others have no logarithm."""
    pairs = zip(run.curve["step"], run.curve[name], strict=True)
    return [(s, v) for s, v in pairs if v is not None and math.isfinite(v) and v > 0]


def _interpolate(points: Sequence[tuple[float, float]]) -> Callable[[float], float]:
    """Piecewise linear between the points, constant outside; 0 without points."""

    def value(step: float) -> float:
        if not points:
            return 0.0
        if step <= points[0][0]:
            return points[0][1]
        for (left, a), (right, b) in itertools.pairwise(points):
            if step <= right:
                return a + (b - a) * (step - left) / (right - left)
        return points[-1][1]

    return value
