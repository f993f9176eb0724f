"""The benchmark's methods: every way to set the learning rate that is compared.

Results of one method depend on the modules it imports. Each kind of method therefore has a module
of its own. This module imports all of them and holds nothing but the list.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from lightning_dqnlr.bench.methods import policies as learned
from lightning_dqnlr.bench.methods import schedules
from lightning_dqnlr.bench.methods.feedback import GreedyLR, Hypergradient, LRFinder, Plateau
from lightning_dqnlr.bench.methods.packages import DAdaptation, Prodigy, ScheduleFree
from lightning_dqnlr.bench.methods.plan import Method
from lightning_dqnlr.errors import ConfigurationError
from lightning_dqnlr.scoring.cosine import cosine

METHODS: tuple[Method, ...] = (
    schedules.ScheduledLR("constant", schedules.constant),
    schedules.ScheduledLR("linear", schedules.linear),
    schedules.ScheduledLR("cosine", cosine),
    schedules.ScheduledLR("wsd", schedules.wsd),
    schedules.FixedAdamW(),
    schedules.OneCycle(),
    Plateau(),
    LRFinder(),
    GreedyLR(),
    Hypergradient(),
    Prodigy(),
    DAdaptation(),
    ScheduleFree(),
    ScheduleFree("schedule-free-default", tuned=False),
    learned.LearnedPolicy(),
    learned.LearnedPolicy("classic", "classic"),
    learned.LearnedPolicy("q_table", "q_table"),
    learned.Untrained(),
    learned.StateBlind(),
    learned.MeanCurveReplay(),
)


def with_policies(policies: Mapping[str, str | Path]) -> tuple[Method, ...]:
    """All methods, and further policies, each a method of its own.

    Args:
        policies: their folders by the names that reports shall show.

    Raises:
        ConfigurationError: a name is that of another method.
    """
    taken = sorted(policies.keys() & {method.name for method in METHODS})
    if taken:
        raise ConfigurationError(
            f"policies: {taken} are methods already; give your policies other names."
        )
    further = (learned.LearnedPolicy(name, str(folder)) for name, folder in policies.items())
    return (*METHODS, *further)
