"""What a run's decisions are remembered by: the rates, the Q-values, and the reason in words."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from torch import Tensor

from lightning_dqnlr.control.controller import LRController
from lightning_dqnlr.control.telemetry import IntervalStats

Record = dict[str, Any]

_LOGGER = logging.getLogger("lightning_dqnlr")
_LONG_STREAK = 20


class Outcome(NamedTuple):
    """What came of one decision."""

    action: int
    q_values: Tensor  # (actions,)
    used: float  # the learning rate of the interval that ended
    lr: float  # that of the one to come
    applied: float  # change of the scale, natural log
    tripped: bool
    restored_step: int | None  # where the circuit breaker went back to


class Recorder:
    """Keeps one plain record per decision, and warns of undone intervals.

    Args:
        controller: whose decisions they are.
        climbing: whether the run begins at the safe start.

    Attributes:
        trace: the records.
    """

    def __init__(self, controller: LRController, *, climbing: bool) -> None:
        self.trace: list[Record] = []
        self._controller = controller
        self._climbing = climbing
        self._trips = TripLog()

    def add(self, stats: IntervalStats, outcome: Outcome) -> None:
        """Puts a decision on record, after it has been applied."""
        multipliers = self._controller.spec.actions.multipliers
        action, q_values = outcome.action, outcome.q_values.tolist()
        seen = self._circumstances(stats, outcome)
        record: Record = {
            "step": self._controller.step,
            "loss": float(stats.losses.mean()),
            "lr": outcome.used,
            "next_lr": outcome.lr,
            "multiplier": multipliers[action],
            "action": action,
            "q_values": q_values,
            "tripped": outcome.tripped,
            "reason": explain(action, q_values, multipliers, seen),
        }
        self.trace.append(record)
        self._trips.note(record, seen)

    def _circumstances(self, stats: IntervalStats, outcome: Outcome) -> Circumstances:
        controller, restored = self._controller, outcome.restored_step
        wanted = math.log(controller.spec.actions.multipliers[outcome.action])
        self._climbing = self._climbing and wanted > 0 and restored is None
        return Circumstances(
            climbing=self._climbing,
            explored=outcome.action != int(outcome.q_values.argmax()),
            finite=bool(stats.finite),
            restored_step=restored,
            wanted=wanted,
            applied=outcome.applied,
            capped=bool(controller.history.capped > 0),
            may_cut=controller.may_cut,
            bound=self._bound(outcome.lr),
        )

    def _bound(self, lr: float) -> str | None:
        for name in ("min_lr", "max_lr"):
            value = getattr(self._controller, name)
            if value is not None and math.isclose(lr, value, rel_tol=1e-6):
                return name
        return None

    def state_dict(self) -> dict[str, Any]:
        """Builtins."""
        trace = [dict(record) for record in self.trace]
        return {"trace": trace, "climbing": self._climbing, "trips": self._trips.streak}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restores what `state_dict` returned."""
        self.trace[:] = [dict(record) for record in state["trace"]]
        self._climbing, self._trips.streak = state["climbing"], state["trips"]


class Circumstances(NamedTuple):
    """What is known about a decision besides the action itself."""

    climbing: bool  # nothing but raises so far, from the safe start
    explored: bool  # the action is not the greedy one (epsilon > 0)
    finite: bool  # no loss, gradient or weight of the interval was NaN or infinite
    restored_step: int | None  # where the circuit breaker went back to
    wanted: float  # natural log of the multiplier chosen
    applied: float  # the change of the scale that came of it, natural log
    capped: bool  # the update cap limited it, or the ceiling that a trip leaves
    may_cut: bool  # the built-in decay has not begun, which forbids cuts
    bound: str | None  # "min_lr" or "max_lr" where that limited the learning rate


def explain(
    action: int, q_values: Sequence[float], multipliers: Sequence[float], seen: Circumstances
) -> str:
    """The reason of one decision in words.

    Args:
        action: index of the multiplier chosen.
        q_values: one per multiplier.
        multipliers: the action table.
        seen: the circumstances.
    """
    parts = [_trip(seen), _choice(action, q_values, multipliers, seen), _limit(seen)]
    return "; ".join(part for part in parts if part)


def _trip(seen: Circumstances) -> str:
    what = "loss blew up" if seen.finite else "loss not finite"
    if seen.restored_step is not None:
        return f"{what}: restored step {seen.restored_step}, LR cut to a quarter"
    return "" if seen.finite else f"{what}, circuit breaker off"


def _choice(
    action: int, q_values: Sequence[float], multipliers: Sequence[float], seen: Circumstances
) -> str:
    multiplier, keep = multipliers[action], multipliers.index(1.0)
    if seen.explored:
        return f"exploring: x{multiplier:g}"
    if action == keep:
        rest = [i for i in range(len(q_values)) if i != keep]
        rival = max(rest, key=lambda i: q_values[i], default=keep)
        if rival == keep:
            return "keep"
        return f"keep: Q {q_values[keep] - q_values[rival]:+.2g} over x{multipliers[rival]:g}"
    verb = "raise" if multiplier > 1 else "cut"
    gain = f"{verb} x{multiplier:g}: Q {q_values[action] - q_values[keep]:+.2g} over keep"
    return f"climbing from the safe start: {gain}" if seen.climbing else gain


def _limit(seen: Circumstances) -> str:
    if seen.bound is not None:
        return f"held at {seen.bound}"
    if seen.capped:
        return "limited by the update cap, or by the ceiling that a trip leaves"
    if seen.applied < seen.wanted - 1e-3:
        return "held back right after a restore"
    if seen.applied > seen.wanted + 1e-3:
        return "held at the scale's floor" if seen.may_cut else "no cuts while the decay falls"
    return ""


class TripLog:
    """Warns of every undone interval, and once more when they do not end. Never stops a run.

    Attributes:
        streak: intervals in a row that blew up.
    """

    def __init__(self) -> None:
        self.streak = 0

    def note(self, record: Record, seen: Circumstances) -> None:
        """Takes in a decision; warns of a trip, or (no breaker) of the first non-finite loss."""
        if not record["tripped"] and seen.finite:
            self.streak = 0
            return
        self.streak += 1
        if record["tripped"] or self.streak == 1:
            _LOGGER.warning("step %d: %s", record["step"], record["reason"])
        if record["tripped"] and self.streak == _LONG_STREAK:
            _LOGGER.warning(
                "%d intervals in a row blew up although the learning rate is down to %.3g; the "
                "cause is probably not the learning rate but the data or the loss.",
                self.streak,
                record["next_lr"],
            )
