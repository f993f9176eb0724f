"""What the default policy should reach, and what it does: one row per bar, from stored runs.

    python benchmarks/bars.py                     # from the records that ship with the repository
    python benchmarks/bars.py --records FOLDER

Regret is to the best of 17 cosine peaks, as `docs/benchmark-report.md` defines it. The cost of a
step is another measurement: `benchmarks/overhead.py`.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import median
from typing import NamedTuple

from lightning_dqnlr.bench.report.comparison import SUBJECT, Comparison
from lightning_dqnlr.bench.report.content import Table, with_interval
from lightning_dqnlr.bench.report.duels import duels
from lightning_dqnlr.bench.report.sensitivity import sensitivities
from lightning_dqnlr.bench.runs.archive import Archive
from lightning_dqnlr.bench.runs.record import TRAIN, VALIDATION, diverged
from lightning_dqnlr.bench.tasks import TASKS
from lightning_dqnlr.bench.tasks.task import APART
from lightning_dqnlr.scoring.statistics import Summary, summarize

CONTROLS = ("untrained", "state-blind", "mean-curve", "classic")
# Least probability of improvement over each rival.
RIVALS = {
    "wsd": 0.5,
    "schedule-free": 0.7,
    "schedule-free-default": 0.7,  # at the LR of its package: the bar does not say tuned
    "prodigy": 0.7,
    "d-adaptation": 0.7,
    "plateau": 0.7,
    "lr-finder": 0.7,
    "greedy": 0.7,
}
SPLITS = ("new optimizer", *APART)


class Criterion(NamedTuple):
    """One figure, the bar that it should pass, and whether it does."""

    figure: str
    bar: str
    measured: str
    met: bool


def bars(comparison: Comparison) -> Iterator[Criterion]:
    """Every bar that the records say something of."""
    tasks = comparison.common(SUBJECT)
    yield from _regrets(comparison, tasks)
    yield _lost(comparison)
    yield from _spread(comparison)
    yield from _improvements(comparison)
    yield from _splits(comparison)
    yield from _speed(comparison, tasks)
    yield from _controls(comparison)
    yield _memory(comparison, tasks)


def _regrets(comparison: Comparison, tasks: Sequence[str]) -> Iterator[Criterion]:
    for which, name in ((TRAIN, "training"), (VALIDATION, "validation")):
        found = summarize(comparison.scores(SUBJECT, tasks, which))
        met = found.iqm <= 0.0 and found.interval.high <= 0.03
        figure = f"IQM of regret, final {name} loss ({len(tasks)} tasks)"
        yield Criterion(figure, "<= 0.00, upper end <= 0.03", _interval(found), met)
    p90 = summarize(comparison.scores(SUBJECT, tasks), samples=1).p90
    yield Criterion("90th percentile of regret", "<= 0.10", f"{p90:.3f}", p90 <= 0.10)


def _lost(comparison: Comparison) -> Criterion:
    runs = [record for record in comparison.records if record.method == SUBJECT]
    lost = sum(map(diverged, runs))
    # Runs that differ by the user's LR alone end alike, so they count once.
    unlike = len({(r.task, r.seed, r.final_train, r.final_validation) for r in runs})
    figure = "runs that diverge or end above their starting loss"
    measured = f"{lost} of {len(runs):,}, of which {unlike:,} are unlike"
    return Criterion(figure, "0 of 1,000", measured, lost == 0 and unlike >= 1000)


def _spread(comparison: Comparison) -> Iterator[Criterion]:
    for row in sensitivities(comparison):
        if row.method == SUBJECT:
            measured = f"{row.worst:.1%} at worst, {row.tasks} tasks, {row.decades:.0f} decades"
            figure = "spread of final loss over six decades of the user's LR"
            yield Criterion(figure, "<= 2%", measured, row.worst <= 0.02 and row.decades >= 6)


def _improvements(comparison: Comparison) -> Iterator[Criterion]:
    found = {duel.method: duel for duel in duels(comparison)}
    for rival, least in RIVALS.items():
        if rival not in found:
            continue
        duel = found[rival]
        measured = f"{with_interval(duel.train, 2)}, {duel.tasks} tasks"
        figure = f"probability of improvement over {rival}"
        yield Criterion(figure, f">= {least}", measured, duel.train.value >= least)


def _splits(comparison: Comparison) -> Iterator[Criterion]:
    mine = comparison.common(SUBJECT, among=comparison.ranked)
    for split in SPLITS:
        tasks = [task for task in mine if comparison.splits[task] == split]
        if tasks:
            found = summarize(comparison.scores(SUBJECT, tasks))
            figure = f"IQM of regret, {split} ({len(tasks)} tasks)"
            yield Criterion(figure, "<= 0.05", _interval(found), found.iqm <= 0.05)


def _speed(comparison: Comparison, tasks: Sequence[str]) -> Iterator[Criterion]:
    middle = median(comparison.ratios(SUBJECT, tasks))
    figure = "steps to the tuned cosine's final validation loss, over its own"
    yield Criterion(figure, "median <= 1.0", f"{middle:.2f}", middle <= 1.0)
    fast = sum(median(comparison.ratios(SUBJECT, [task])) <= 1 / 1.2 for task in tasks)
    bar = "a third of the tasks"
    yield Criterion("1.2 times as fast", bar, f"{fast} of {len(tasks)}", 3 * fast >= len(tasks))


def _controls(comparison: Comparison) -> Iterator[Criterion]:
    for name in CONTROLS:
        both = comparison.common(SUBJECT, name)
        if both:
            own, other = (summarize(comparison.scores(m, both)) for m in (SUBJECT, name))
            met = own.interval.high < other.interval.low
            figure = f"{name}, IQM of regret ({len(both)} tasks)"
            yield Criterion(figure, "intervals do not overlap", _interval(other), met)


def _memory(comparison: Comparison, tasks: Sequence[str]) -> Criterion:
    """Weights and up to two moments are what the circuit breaker keeps, twice."""
    runs = [run for task in tasks for run in comparison.entries[task, SUBJECT].runs]
    extra = max(run.extra_bytes - 24 * run.parameters for run in runs) / 1e6
    figure = "memory beyond the circuit breaker's copies, at most"
    return Criterion(figure, "<= 1 MB", f"{max(0.0, extra):.2f} MB", extra <= 1.0)


def _interval(found: Summary) -> str:
    return f"{found.iqm:.3f} [{found.interval.low:.3f}, {found.interval.high:.3f}]"


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--records", type=Path, default=Path("benchmarks/records"))
    archive = Archive(parser.parse_args().records)
    records = [record for task in TASKS for record in archive.of(task.name).values()]
    rows = bars(Comparison(records, race_margin=0.7))
    cells = tuple((*row[:3], "yes" if row.met else "**no**") for row in rows)
    print(Table(("figure", "bar", "measured", "met"), cells).markdown())


if __name__ == "__main__":
    main()
