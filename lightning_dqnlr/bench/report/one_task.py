"""What the report says first where there is one task: a user's own module, as a rule.

Its user asks three things. Is it worse, on which loss, and by more than chance? So there are losses
instead of regrets, and gaps with their intervals instead of statistics over tasks.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from statistics import fmean
from typing import NamedTuple

from lightning_dqnlr.bench.report.comparison import RIVAL, SUBJECT, Comparison, Entry
from lightning_dqnlr.bench.report.content import NOTHING, Bullets, Section, Table
from lightning_dqnlr.bench.report.duels import Duel, side
from lightning_dqnlr.bench.report.headline import median_loss
from lightning_dqnlr.bench.report.in_short import edges
from lightning_dqnlr.bench.report.sensitivity import loss_by_lr
from lightning_dqnlr.bench.runs.record import VALIDATION, diverged, final_loss
from lightning_dqnlr.scoring.statistics import Estimate

_LARGEST = 3.0  # ratios beyond it, or beyond its inverse, are shown as factors
_SAID = {"worse": "worse than", "better": "better than", "undecided": "neither against"}


def fits(comparison: Comparison) -> bool:
    """Whether there is one task, on which both the subject and the rival have finished runs."""
    both = {(task, name) for task in comparison.tasks for name in (SUBJECT, RIVAL)}
    failed = all(map(diverged, comparison.records))
    return len(comparison.tasks) == 1 and both <= comparison.entries.keys() and not failed


def opening(comparison: Comparison) -> Section:
    """The picture that the page opens with."""
    return Section("Loss by learning rate", loss_by_lr(comparison, comparison.tasks[0]))


def verdict_in_short(comparison: Comparison, duels: Sequence[Duel]) -> Section:
    """Better, worse or neither on each loss, with intervals; and what it costs."""
    return Section("In short", (Bullets(tuple(_statements(comparison, duels))),))


def _statements(comparison: Comparison, duels: Sequence[Duel]) -> Iterator[str]:
    entries = {method: entry for (_, method), entry in comparison.entries.items()}
    train = {duel.method: duel.gap for duel in duels if duel.gap is not None}
    held_out = {duel.method: duel.validation_gap for duel in duels if duel.validation_gap}
    for loss, gaps in (("training loss", train), ("validation loss", held_out)):
        if RIVAL in gaps:
            yield _against_the_rival(loss, gaps[RIVAL])
        yield from _against_the_others(loss, gaps)
    yield from _terms(entries)
    for text in edges(comparison):
        yield text + _beyond(comparison, entries[RIVAL])


def _beyond(comparison: Comparison, rival: Entry) -> str:
    """How to look beyond the edge of the grid; only a user's own task takes a centre."""
    own = comparison.splits[comparison.tasks[0]] == "your own"
    if not own or rival.edge is None:
        return ""
    return f" lr={rival.lr:.3g} puts the middle of the grids there."


def _against_the_rival(loss: str, gap: Estimate) -> str:
    verdict = side(gap)
    if verdict == "undecided":
        return (
            f"On {loss} {SUBJECT} is neither better nor worse than the tuned {RIVAL} for certain: "
            f"{_change(gap)}."
        )
    return f"On {loss} {SUBJECT} is {verdict} than the tuned {RIVAL}: {_change(gap)}."


def _against_the_others(loss: str, gaps: Mapping[str, Estimate]) -> Iterator[str]:
    parts = []
    for verdict, said in _SAID.items():
        figures = verdict == "worse"  # the table has those of the others
        named = [
            f"{name} ({_change(gap)})" if figures else name
            for name, gap in sorted(gaps.items(), key=lambda item: -item[1].value)
            if name != RIVAL and side(gap) == verdict
        ]
        parts += [f"{said} {', '.join(named)}"] if named else []
    if parts:
        yield f"Against the others on {loss} {SUBJECT} is {'; '.join(parts)}."


def _terms(entries: Mapping[str, Entry]) -> Iterator[str]:
    """What the figures mean, how sure they are, and what they cost."""
    mine, rival = entries[SUBJECT], entries[RIVAL]
    count = len(mine.runs)
    more = f"suite.seeds={max(5, 2 * count)} goes on with what is stored"
    if count == 1:
        yield f"One run of each method says nothing of chance: {more}."
    else:
        yield (
            f"The figures say how far {SUBJECT} ends above (+) or below (-) the other, with the "
            f"95% interval over {count} runs of each. More runs narrow it: {more}. Rates were "
            "chosen by training loss."
        )
    yield (
        f"A result of {SUBJECT} costs {_runs(mine.tries)}, one of the tuned {RIVAL} "
        f"{_runs(rival.tries)}."
    )
    for name, entry in ((SUBJECT, mine), (RIVAL, rival)):
        if lost := sum(map(diverged, entry.runs)):
            yield f"{lost} of {len(entry.runs)} runs of {name} diverged."


def _runs(count: int) -> str:
    return f"{count} run" if count == 1 else f"{count} runs"


def _change(gap: Estimate) -> str:
    """`+46% [+10%, +97%]`, or all as factors where one of them is large."""
    ends = [end for end in gap.interval if math.isfinite(end)]
    ratios = [math.exp(min(regret, 700.0)) for regret in (gap.value, *ends)]  # no float beyond
    small = all(1 / _LARGEST < ratio < _LARGEST for ratio in ratios)
    value, *shown = [f"{ratio - 1:+.0%}" if small else _factor(ratio) for ratio in ratios]
    return f"{value} [{', '.join(shown) or 'unknown'}]"


def _factor(ratio: float) -> str:
    return f"x{ratio:,.0f}" if ratio >= 10 else f"x{ratio:.2g}"


class _Row(NamedTuple):
    """A method of the table, with the subject's duel against it; none of its own."""

    method: str
    entry: Entry
    duel: Duel | None


_COLUMNS: dict[str, Callable[[_Row], str]] = {
    "method": lambda row: row.method,
    "learning rate": lambda row: _rate(row.entry),
    "training loss": lambda row: median_loss(map(final_loss, row.entry.runs)),
    f"{SUBJECT} against it": lambda row: _gap(row.duel and row.duel.gap),
    "validation loss": lambda row: median_loss(final_loss(r, VALIDATION) for r in row.entry.runs),
    f"{SUBJECT} against it, validation": lambda row: _gap(row.duel and row.duel.validation_gap),
    "runs per result": lambda row: str(row.entry.tries),
    "seconds per result": lambda row: f"{row.entry.seconds:.3g}",
}


def _rate(entry: Entry) -> str:
    edge = f" ({entry.edge})" if entry.edge else ""
    return NOTHING if entry.lr is None else f"{entry.lr:.3g}{edge}"


def _gap(gap: Estimate | None) -> str:
    return NOTHING if gap is None else _change(gap)


def losses(comparison: Comparison, duels: Sequence[Duel]) -> Section:
    """One row per method, the lowest training loss first."""
    task = comparison.tasks[0]
    against = {duel.method: duel for duel in duels}
    names = [name for name in comparison.methods if (task, name) in comparison.entries]
    names.sort(key=lambda name: comparison.mean_regret(task, name))
    rows = [_Row(name, comparison.entries[task, name], against.get(name)) for name in names]
    seeds = round(fmean(len(row.entry.runs) for row in rows))
    text = (
        f"Losses are medians over {seeds} seeds, at the learning rate of each method that has the "
        "lowest training loss. Runs and seconds of a result count the search for that rate. What "
        "is compared is the loss plus 1% of the initial one, so that what is memorised does not "
        "decide."
    )
    return Section("The losses", (text, Table.of(rows, _COLUMNS, (SUBJECT,))))
