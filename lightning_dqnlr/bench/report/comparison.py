"""Records side by side: which runs stand for a method, and their regret to the tuned rival.

A method with runs that were given no LR stands for itself. A method that only ran over a grid of
LRs is tuned task by task. The LR with the lowest mean over seeds of log(training loss + e) stands
for it, and the whole grid is its cost. A method counts on a task only with every seed that the
rival has there.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from statistics import mean
from typing import Literal

from torch import Tensor

from lightning_dqnlr.bench.runs.record import (
    TRAIN,
    VALIDATION,
    Record,
    final_loss,
    initial_loss,
    log_losses,
    survivors,
)
from lightning_dqnlr.bench.tasks.task import APART
from lightning_dqnlr.errors import ConfigurationError
from lightning_dqnlr.scoring.statistics import steps_to

# The methods that the report is about.
SUBJECT = "dqnlr"  # the one to judge
RIVAL = "cosine"  # regrets are to this one at its best LR; profiles are relative to it
PLAIN = "constant"  # overhead is relative to this one
Runs = tuple[Record, ...]  # one per seed, in the order of the seeds


@dataclass(frozen=True)
class Entry:
    """One method on one task."""

    lr: float | None  # the chosen one; None if the method was given none
    runs: Runs  # at this LR
    tries: int  # runs that a result costs, those that chose the LR included
    seconds: float  # of these runs, mean over seeds
    unfinished: int  # LRs of the grid that lack a seed and so could not be chosen
    dropped: int  # LRs that lack seeds because the race over the grid ruled them out
    edge: Literal["lowest", "highest"] | None = None  # what the chosen LR is in its grid


class Comparison:
    """All methods on all tasks.

    Regret is log((loss + e) / (tuned rival's + e)), with e = 1% of the task's initial loss.

    Args:
        records: of any number of methods, tasks, LRs and seeds.
        race_margin: of the race that the grids were run as, see `survivors`; None for no race.
        apart: splits that ask a question of their own. No table over all tasks has them, and a
            method without any run there was not to run.

    Raises:
        ConfigurationError: if two records are of the same method, task, LR and seed, or a task is
            in two splits.

    Example:
        >>> comparison = Comparison(store.records())  # doctest: +SKIP
        >>> comparison.mean_regret("quadratic", "dqnlr")  # doctest: +SKIP
        0.012
    """

    def __init__(
        self,
        records: Iterable[Record],
        race_margin: float | None = None,
        apart: Collection[str] = frozenset(APART),
    ) -> None:
        self._race_margin = race_margin
        self._apart = frozenset(apart)
        self.records = sorted(records, key=lambda r: (r.split, r.task, r.method, r.lr or 0, r.seed))
        _check(self.records)
        self._runs: dict[tuple[str, str], list[Record]] = defaultdict(list)
        for record in self.records:
            self._runs[record.task, record.method].append(record)
        self.splits = {record.task: record.split for record in self.records}
        self.tasks = tuple(self.splits)
        first = [SUBJECT, RIVAL, PLAIN]
        names = sorted({record.method for record in self.records})
        self.methods = tuple(sorted(names, key=lambda n: first.index(n) if n in first else 3))

    @cached_property
    def entries(self) -> dict[tuple[str, str], Entry]:
        """By (task, method); only what is complete."""
        return {
            (task, method): entry
            for (task, method), runs in self._runs.items()
            if (entry := _entry(runs, self._seeds(task), self._race_margin)) is not None
        }

    @cached_property
    def ranked(self) -> tuple[str, ...]:
        """The tasks on which the rival is complete, so that there is a regret."""
        return tuple(task for task in self.tasks if (task, RIVAL) in self.entries)

    @cached_property
    def shared(self) -> tuple[str, ...]:
        """The ranked tasks of tables over all tasks; every ranked task where all stand apart."""
        shared = tuple(task for task in self.ranked if self.splits[task] not in self._apart)
        return shared or self.ranked

    @cached_property
    def standing_apart(self) -> tuple[str, ...]:
        """The splits of the ranked tasks that are not `shared`."""
        return tuple(sorted({self.splits[task] for task in {*self.ranked} - {*self.shared}}))

    def left_out(self, task: str, method: str) -> bool:
        """Whether a method was not to run on a task, rather than missing there."""
        return self.splits[task] in self._apart and (task, method) not in self._runs

    def _seeds(self, task: str) -> frozenset[int]:
        runs = self._runs.get((task, RIVAL)) or [
            record for record in self.records if record.task == task
        ]
        return frozenset(run.seed for run in runs)

    @cached_property
    def _initial(self) -> dict[tuple[str, str], float]:
        """Initial losses by (task, which), of the rival's runs if they came as far."""
        losses: dict[tuple[str, str], float] = {}
        for task in self.tasks:
            runs = [run for (of, _), group in self._runs.items() if of == task for run in group]
            own = self._runs.get((task, RIVAL), [])
            for which in (TRAIN, VALIDATION):
                known = (initial_loss(own, which), initial_loss(runs, which))
                # Where every run raised, any scale gives a regret of zero.
                losses[task, which] = next((x for x in known if not math.isnan(x)), 1.0)
        return losses

    def missing(self, method: str) -> tuple[str, ...]:
        """The ranked tasks on which a method is absent or incomplete, but was to run."""
        return tuple(
            task
            for task in self.ranked
            if (task, method) not in self.entries and not self.left_out(task, method)
        )

    def common(self, *methods: str, among: Sequence[str] | None = None) -> tuple[str, ...]:
        """The tasks (of `shared` if None) that all of these methods have."""
        tasks = self.shared if among is None else among
        return tuple(t for t in tasks if all((t, name) in self.entries for name in methods))

    def complete(self, tasks: Sequence[str] | None = None) -> tuple[str, ...]:
        """The methods that have every one of the tasks (of `shared` if None)."""
        tasks = self.shared if tasks is None else tasks
        return tuple(n for n in self.methods if len(self.common(n, among=tasks)) == len(tasks))

    def regrets(self, task: str, method: str, which: str = TRAIN) -> Tensor:
        """log((loss + e) / (tuned rival's + e)) per seed, (S,); the rival's is a geometric mean."""
        return self.regrets_of(self.entries[task, method].runs, which)

    def mean_regret(self, task: str, method: str, which: str = TRAIN) -> float:
        return self.regrets(task, method, which).mean().item()

    def regrets_of(self, runs: Sequence[Record], which: str = TRAIN) -> Tensor:
        """The same for any runs of one task, (S,)."""
        task = runs[0].task
        rival = self.entries[task, RIVAL].runs
        initial = self._initial[task, which]
        return log_losses(runs, initial, which) - log_losses(rival, initial, which).mean()

    def scores(self, method: str, tasks: Sequence[str], which: str = TRAIN) -> list[Tensor]:
        """The regrets on these tasks, (S_t,) each."""
        return [self.regrets(task, method, which) for task in tasks]

    def sweep(self, task: str, method: str) -> dict[float, Runs]:
        """Runs by the LR given, of the seeds that every LR has; empty below two LRs."""
        by_lr = _by_lr(self._runs.get((task, method), []))
        grid = {lr: runs for lr, runs in by_lr.items() if lr is not None}
        seeds = frozenset.intersection(*map(frozenset, grid.values())) if grid else frozenset()
        if len(grid) < 2 or not seeds:
            return {}
        return {lr: tuple(grid[lr][seed] for seed in sorted(seeds)) for lr in sorted(grid)}

    def ratios(self, method: str, tasks: Sequence[str], *, seconds: bool = False) -> list[float]:
        """Time to the tuned rival's final validation loss over the rival's own, per task and seed.

        The time is in steps, or in seconds of one run at an even pace over its steps.
        """
        entries = self.entries
        runs = [run for task in tasks for run in entries[task, method].runs]
        rivals = [run for task in tasks for run in entries[task, RIVAL].runs]
        return [_ratio(a, b, seconds) for a, b in zip(runs, rivals, strict=True)]


def _ratio(run: Record, rival: Record, seconds: bool) -> float:
    target = final_loss(rival, VALIDATION)
    time = _time_to(run, target)
    reference = _time_to(rival, target)
    if math.isinf(time) or math.isinf(reference):
        return math.inf
    if seconds:
        time *= run.seconds / run.horizon
        reference *= rival.seconds / rival.horizon
    return time / reference if reference > 0 else math.inf


def _time_to(run: Record, target: float) -> float:
    """Steps to a validation loss; the ends of the run belong to its curve."""
    points = {0: run.initial_validation, run.horizon: final_loss(run, VALIDATION)}
    for step, loss in zip(run.curve["step"], run.curve["validation"], strict=True):
        points.setdefault(step, math.nan if loss is None else loss)
    steps = sorted(points)
    return steps_to(steps, [points[step] for step in steps], target)


def _by_lr(runs: Iterable[Record]) -> dict[float | None, dict[int, Record]]:
    groups: dict[float | None, dict[int, Record]] = defaultdict(dict)
    for run in runs:
        groups[run.lr][run.seed] = run
    return dict(groups)


def _entry(
    runs: Sequence[Record], seeds: frozenset[int], race_margin: float | None
) -> Entry | None:
    groups = _by_lr(runs)
    if None in groups:
        groups = {None: groups[None]}
    finished = {
        lr: tuple(group[seed] for seed in sorted(seeds))
        for lr, group in groups.items()
        if seeds <= group.keys()
    }
    if not finished:
        return None
    initial = initial_loss(runs)
    initial = 1.0 if math.isnan(initial) else initial
    best = min(finished, key=lambda lr: log_losses(finished[lr], initial).mean().item())
    dropped = _dropped(groups, race_margin)
    return Entry(
        lr=best,
        runs=finished[best],
        tries=sum(max(run.tries for run in group.values()) for group in groups.values()),
        seconds=sum(mean(run.seconds for run in group.values()) for group in groups.values()),
        unfinished=len(groups.keys() - finished.keys() - dropped),
        dropped=len(dropped - finished.keys()),
        edge=_edge(best, groups),
    )


def _edge(
    best: float | None, given: Collection[float | None]
) -> Literal["lowest", "highest"] | None:
    grid = [lr for lr in given if lr is not None]
    if len(grid) < 2 or best not in (min(grid), max(grid)):
        return None
    return "lowest" if best == min(grid) else "highest"


def _dropped(
    groups: Mapping[float | None, Mapping[int, Record]], race_margin: float | None
) -> frozenset[float | None]:
    """The LRs that a race over the first seed rules out; none without a grid or a race."""
    first = [group[0] for group in groups.values() if 0 in group]
    if race_margin is None or not first:
        return frozenset()
    return frozenset(run.lr for run in first) - survivors(first, race_margin)


def _check(records: Sequence[Record]) -> None:
    seen: set[tuple[str, str, float | None, int]] = set()
    splits: dict[str, str] = {}
    for record in records:
        run = (record.task, record.method, record.lr, record.seed)
        if run in seen:
            raise ConfigurationError(
                f"records holds two runs of (task, method, lr, seed) = {run}, of different code or "
                "policies; pass those of one."
            )
        seen.add(run)
        if splits.setdefault(record.task, record.split) != record.split:
            raise ConfigurationError(
                f"records has task {record.task!r} in the splits {splits[record.task]!r} and "
                f"{record.split!r}; a task belongs to one."
            )
