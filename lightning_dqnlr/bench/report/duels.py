"""The subject against each other method: who is likely to end lower on the same task."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

from lightning_dqnlr.bench.report.comparison import SUBJECT, Comparison
from lightning_dqnlr.bench.report.content import (
    Picture,
    Section,
    Table,
    interval_text,
    number,
    with_interval,
)
from lightning_dqnlr.bench.report.drawing import interval_picture
from lightning_dqnlr.bench.runs.record import VALIDATION
from lightning_dqnlr.scoring.statistics import (
    Estimate,
    Interval,
    improvement,
    mean_gap,
    summarize,
)

Verdict = Literal["worse", "better", "undecided"]

FEWEST_RUNS = 4  # on several tasks; below that an interval has no width to speak of
ROUNDING = 1e-9  # means that differ by less are equal


class Duel(NamedTuple):
    """The subject against another method, on the shared tasks that both have."""

    method: str
    tasks: int
    train: Estimate  # probability of improvement, its interval over seeds
    train_over_tasks: Interval  # over seeds and tasks
    validation: Estimate
    worse_on: int  # tasks with a higher mean regret than the other's, on training loss
    iqm: float  # of the subject, on these tasks
    other_iqm: float
    runs: int  # of the subject
    gap: Estimate | None = None  # on a single task: its mean regret minus the other's
    validation_gap: Estimate | None = None  # the same on validation loss

    @property
    def verdict(self) -> Verdict:
        """What the 95% intervals on training loss allow to say of the subject.

        Worse on just these tasks is worse; better has to hold for other tasks like them. On a
        single task the gap decides, because a bootstrap of few runs is too sure of itself.
        """
        if self.gap is not None:
            return side(self.gap)
        if self.runs < FEWEST_RUNS:
            return "undecided"
        if self.train.interval.high < 0.5:
            return "worse"
        return "better" if self.train_over_tasks.low > 0.5 else "undecided"


def side(gap: Estimate) -> Verdict:
    """What a gap in regret says of the subject, if its interval leaves out zero."""
    if gap.interval.low > ROUNDING:
        return "worse"
    return "better" if gap.interval.high < -ROUNDING else "undecided"


def duels(comparison: Comparison) -> list[Duel]:
    """The subject against each other method, the one it is most likely worse than first.

    P(improvement) is the mean over tasks of P(X < Y) + P(X = Y) / 2. X are the regrets of the
    subject's runs, and Y those of the other's.
    """
    rows = [
        _duel(comparison, other, tasks)
        for other in comparison.methods
        if other != SUBJECT and (tasks := comparison.common(SUBJECT, other))
    ]
    return sorted(rows, key=lambda row: (row.train.value, row.method))


def _duel(comparison: Comparison, other: str, tasks: Sequence[str]) -> Duel:
    mine = comparison.scores(SUBJECT, tasks)
    theirs = comparison.scores(other, tasks)
    held_out = [comparison.scores(name, tasks, VALIDATION) for name in (SUBJECT, other)]
    alone = len(comparison.tasks) == 1
    return Duel(
        method=other,
        tasks=len(tasks),
        train=improvement(mine, theirs),
        train_over_tasks=improvement(mine, theirs, over_tasks=True).interval,
        validation=improvement(*held_out),
        worse_on=sum(
            bool(x.mean() - y.mean() > ROUNDING) for x, y in zip(mine, theirs, strict=True)
        ),
        iqm=summarize(mine, samples=1).iqm,
        other_iqm=summarize(theirs, samples=1).iqm,
        runs=sum(map(len, mine)),
        gap=mean_gap(mine[0], theirs[0]) if alone else None,
        validation_gap=mean_gap(held_out[0][0], held_out[1][0]) if alone else None,
    )


def duel_table(rows: Sequence[Duel]) -> Table:
    columns: dict[str, Callable[[Duel], str]] = {
        f"{SUBJECT} against": lambda row: row.method,
        "tasks": lambda row: str(row.tasks),
        "P(improvement), training [95% CI]": lambda row: with_interval(row.train, 2),
        "[95% CI over tasks]": lambda row: interval_text(row.train_over_tasks, 2),
        "P(improvement), validation [95% CI]": lambda row: with_interval(row.validation, 2),
        "worse on tasks": lambda row: f"{row.worse_on} of {row.tasks}",
        f"IQM of {SUBJECT}": lambda row: number(row.iqm),
        "IQM of the other": lambda row: number(row.other_iqm),
        f"{SUBJECT} is": lambda row: row.verdict,
    }
    return Table.of(rows, columns)


def against_each(comparison: Comparison, rows: Sequence[Duel]) -> Section:
    text = (
        f"The probability that a run of {SUBJECT} ends lower than one of the other method on the "
        "same task, mean over tasks (ties count half). The first interval is over seeds, on just "
        "these tasks; the second resamples the tasks, too. Worse if the first lies below 1/2, "
        "better only if the second lies above. The most dangerous rival comes first."
    )
    if len(comparison.tasks) == 1:
        text += " On a single task the verdict is by the gap between the mean losses instead."
    blocks = (text, duel_table(rows), _picture(comparison, rows)) if rows else ()
    return Section(f"{SUBJECT} against each", blocks)


def _picture(comparison: Comparison, rows: Sequence[Duel]) -> Picture:
    panels = {
        f"P({SUBJECT} ends lower), train loss": [row.train for row in rows],
        f"P({SUBJECT} ends lower), validation loss": [row.validation for row in rows],
    }
    methods = [row.method for row in rows]
    text = f"Probability that {SUBJECT} ends lower than each other method."
    whole = Interval(-0.02, 1.02)
    return interval_picture(
        comparison, methods, panels, name="improvement", text=text, middle=0.5, limits=whole
    )


def _named(method: str, estimate: Estimate) -> str:
    return f"{method} ({estimate.value:.2f})"


def verdicts(rows: Sequence[Duel]) -> list[str]:
    """The duels in words, the lost ones first: they are what there is to improve."""
    named = {
        verdict: ", ".join(_named(d.method, d.train) for d in rows if d.verdict == verdict)
        for verdict in ("worse", "better", "undecided")
    }
    nobody = "none of the others"
    items = [
        f"On training loss {SUBJECT} is worse than: {named['worse'] or nobody}. "
        "(In brackets: the probability that it ends lower.)",
        f"On training loss {SUBJECT} is better than: {named['better'] or nobody}.",
    ]
    if named["undecided"]:
        items.append(
            f"On training loss {SUBJECT} is neither shown better nor worse compared with: "
            f"{named['undecided']}."
        )
    held_out = [_named(d.method, d.validation) for d in rows if d.validation.interval.high < 0.5]
    items.append(f"On validation loss {SUBJECT} is worse than: {', '.join(held_out) or nobody}.")
    return items
