"""What the report comes to in a few sentences, and what it lacks."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Sequence

from lightning_dqnlr.bench.report.comparison import PLAIN, RIVAL, SUBJECT, Comparison
from lightning_dqnlr.bench.report.content import Block, Bullets, Section, Table, listed
from lightning_dqnlr.bench.report.duels import Duel, verdicts
from lightning_dqnlr.bench.report.headline import headline, headline_row
from lightning_dqnlr.bench.report.losing import LostTask
from lightning_dqnlr.bench.runs.record import diverged
from lightning_dqnlr.bench.runs.versions import SUPERSEDED
from lightning_dqnlr.scoring.statistics import Interval


def in_short(comparison: Comparison, rows: Sequence[Duel], lost: Sequence[LostTask]) -> Section:
    return Section("In short", (Bullets(tuple(_statements(comparison, rows, lost))),))


def _statements(
    comparison: Comparison, rows: Sequence[Duel], lost: Sequence[LostTask]
) -> Iterator[str]:
    if not comparison.ranked:
        yield f"No regret can be computed: {RIVAL!r} has no task with all of its seeds."
    if comparison.records and all(map(diverged, comparison.records)):
        yield "Every run failed or diverged: all regrets are of equally failed runs."
    mine = comparison.common(SUBJECT) if comparison.ranked else ()
    if not mine:
        yield f"{SUBJECT!r} has no finished task to count: nothing can be said of it."
        return
    yield _against_the_rival(comparison, mine)
    yield from verdicts(rows)
    yield from edges(comparison)
    if comparison.standing_apart:
        named = ", ".join(comparison.standing_apart)
        yield f"Not in here, because they ask a question of their own: {named}."
    finished = len(comparison.common(SUBJECT, among=comparison.ranked))
    yield (
        f"Some method ends more than 2% below it on {len(lost)} of {finished} tasks; the section "
        "on where it loses has them."
    )


def edges(comparison: Comparison) -> Iterator[str]:
    """The best LRs that are the lowest or highest of their grids, in one sentence."""
    several = len(comparison.tasks) > 1
    entries = comparison.entries.items()
    found = [
        f"{method}{f' on {task}' * several} ({entry.lr:.3g}, the {entry.edge})"
        for (task, method), entry in sorted(entries, key=lambda item: item[0][1] != RIVAL)
        if entry.edge is not None and task in comparison.ranked
    ]
    if found:
        yield (
            f"The best learning rate is the edge of its grid for {listed(found, 6)}. A better one "
            "may lie beyond, so these methods may do better than shown."
        )


def _against_the_rival(comparison: Comparison, tasks: Sequence[str]) -> str:
    row = headline_row(comparison, SUBJECT, tasks)
    excess = Interval(*(math.exp(end) - 1 for end in row.train.interval))
    tries = sum(comparison.entries[task, RIVAL].tries for task in tasks) / len(tasks)
    return (
        f"{SUBJECT} ends {_distance(row.train.iqm)} the tuned {RIVAL}'s training loss "
        f"(interquartile mean over {len(tasks)} tasks; 95% interval {excess.low:+.1%} to "
        f"{excess.high:+.1%}) and "
        f"{_distance(row.validation.iqm)} its validation loss. A result costs {row.tries:.0f} "
        f"{'run' if row.tries == 1 else 'runs'}, one of the tuned {RIVAL} {tries:.0f}. "
        f"{row.diverged:.1%} of {SUBJECT}'s runs diverged."
    )


def _distance(regret: float) -> str:
    excess = math.exp(regret) - 1
    return f"{abs(excess):.1%} {'above' if excess > 0 else 'below'}"


def what_is_missing(comparison: Comparison, planned: Collection[str]) -> Section:
    items = tuple(_gaps(comparison, planned))
    text = "Methods are averaged only over tasks that all of them have."
    blocks = (text, Bullets(items), *_beside(comparison)) if items else ()
    return Section("What is missing", blocks)


def _gaps(comparison: Comparison, planned: Collection[str]) -> Iterator[str]:
    for part, words in SUPERSEDED.items():
        old = [
            method
            for method in comparison.methods
            if any(part in r.version.split() for r in comparison.records if r.method == method)
        ]
        if old:
            yield f"{', '.join(old)}: {words}"
    absent = [task for task in planned if task not in comparison.tasks]
    if absent:
        yield f"{', '.join(absent)}: no runs at all, so no table counts these tasks."
    for role in (SUBJECT, RIVAL, PLAIN):
        if role not in comparison.methods:
            yield f"{role}: no runs at all."
    unranked = [task for task in comparison.tasks if task not in comparison.ranked]
    if unranked:
        yield f"{', '.join(unranked)}: no LR of {RIVAL} has all seeds, so there is no regret."
    for method in comparison.methods:
        lacking = comparison.missing(method)
        if lacking:
            yield f"{method}: missing or incomplete on {', '.join(lacking)}."
    for (task, method), entry in sorted(comparison.entries.items()):
        if entry.unfinished:
            yield (
                f"{method} on {task}: {entry.unfinished} LRs of its grid lack a seed and could "
                "not be chosen."
            )
        if method == RIVAL and all(map(diverged, entry.runs)):
            yield f"{task}: the tuned {method} itself diverged; regrets there say little."


def _beside(comparison: Comparison) -> Iterator[Block]:
    """Incomplete methods next to the rival and the subject on just the tasks they have."""
    for method in comparison.methods:
        have = comparison.common(method)
        if 0 < len(have) < len(comparison.shared):
            shown = {SUBJECT, RIVAL, method}
            table = headline(comparison, have)
            yield f"{method} on the {len(have)} tasks it has:"
            rows = tuple(row for row in table.rows if row[0] in shown)
            yield Table(table.header, rows, table.marked)
