"""The benchmark's methods: every way to set the learning rate that is compared.

Results of one method depend on the modules it imports; therefore each kind has a module of its
own, and this one, which imports all, holds nothing but the list.
"""

from __future__ import annotations

from pathlib import Path

from lightning_dqnlr.bench.methods_feedback import GreedyLR, Hypergradient, LRFinder, Plateau
from lightning_dqnlr.bench.methods_packages import DAdaptation, Prodigy, ScheduleFree
from lightning_dqnlr.bench.methods_plan import Method
from lightning_dqnlr.bench.methods_policies import (
    LearnedPolicy,
    MeanCurveReplay,
    StateBlind,
    Untrained,
)
from lightning_dqnlr.bench.methods_schedules import (
    OneCycle,
    ScheduledLR,
    constant,
    linear,
    warmup_cosine,
    wsd,
)
from lightning_dqnlr.policy.policy import RECORD

METHODS: tuple[Method, ...] = (
    ScheduledLR("constant", constant),
    ScheduledLR("linear", linear),
    ScheduledLR("cosine", warmup_cosine),
    ScheduledLR("wsd", wsd),
    OneCycle(),
    Plateau(),
    LRFinder(),
    GreedyLR(),
    Hypergradient(),
    Prodigy(),
    DAdaptation(),
    ScheduleFree(),
    LearnedPolicy(),
    Untrained(),
    StateBlind(),
    MeanCurveReplay(),
)


def with_policies(
    classic: str | Path | None = None, q_table: str | Path | None = None
) -> tuple[Method, ...]:
    """All methods, with those of policies that are not shipped where their folders hold one.

    Args:
        classic: folder of a policy on the classic features.
        q_table: folder of a tabular Q-learning policy.
    """
    folders = {"classic": classic, "q-table": q_table}
    found = (
        LearnedPolicy(name, str(folder))
        for name, folder in folders.items()
        if folder is not None and (Path(folder) / RECORD).is_file()
    )
    return (*METHODS, *found)
