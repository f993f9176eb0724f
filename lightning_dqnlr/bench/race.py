"""The two rounds of a suite whose grids are raced: further seeds only for peaks that may win.

After F-Race (Birattari, Stuetzle, Paquete and Varrentrapp, "A racing algorithm for configuring
metaheuristics", GECCO 2002), with a fixed margin in place of its test, for which one seed is too
little.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from lightning_dqnlr.bench.comparison import survivors
from lightning_dqnlr.bench.store import Store
from lightning_dqnlr.bench.suite import PlannedRun

SHARE = 1 / 3  # of an undecided grid that stays, at most, as a rule; for estimates


class Rounds(NamedTuple):
    """A suite's runs as far as its races are decided.

    Attributes:
        wanted: to be made in any case: the first seed of every peak, the further seeds of peaks
            that stayed, and all runs of methods without a grid.
        undecided: the further seeds of grids whose first seed is not over.
    """

    wanted: list[PlannedRun]
    undecided: list[PlannedRun]


def rounds(runs: Sequence[PlannedRun], store: Store, margin: float | None) -> Rounds:
    """Tells which runs of a suite are to be made, in the order given.

    Args:
        runs: all of the suite.
        store: has the records of the first seed, as far as they are.
        margin: as for `survivors`; None if all peaks run with all seeds.

    Raises:
        ConfigurationError: the store's archive is damaged.
    """
    result = Rounds([], [])
    stay = {} if margin is None else _decided(runs, store, margin)
    for run in runs:
        grid = (run.task.name, run.method.name)
        if margin is None or not run.method.tuned or run.seed == 0:
            result.wanted.append(run)
        elif grid not in stay:
            result.undecided.append(run)
        elif run.lr in stay[grid]:
            result.wanted.append(run)
    return result


def _decided(
    runs: Sequence[PlannedRun], store: Store, margin: float
) -> dict[tuple[str, str], frozenset[float | None]]:
    """The peaks that stay, by task and method, where the first seed of all of them is over."""
    first: dict[tuple[str, str], list[PlannedRun]] = {}
    for run in runs:
        if run.method.tuned and run.seed == 0:
            first.setdefault((run.task.name, run.method.name), []).append(run)
    stay = {}
    for grid, peaks in first.items():
        records = [record for run in peaks if (record := store.get(run.key)) is not None]
        if len(records) == len(peaks):
            stay[grid] = survivors(records, margin)
    return stay
