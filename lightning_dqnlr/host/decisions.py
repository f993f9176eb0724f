"""The trace of a run: one plain record per decision, with its reason in words."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from torch import Tensor

from lightning_dqnlr.control.controller import LRController
from lightning_dqnlr.control.telemetry import IntervalStats
from lightning_dqnlr.control.trials import BEGUN, GOING_ON, KEPT, KEPT_AND_BEGUN, UNDONE, Trials

DecisionRecord = dict[str, Any]
Listener = Callable[[DecisionRecord, IntervalStats], None]

_LOGGER = logging.getLogger("lightning_dqnlr")
_LONG_STREAK = 20
DECAY_BEGINS = "the decay begins early"
# What a record's "trial" says.
TRIAL_NEWS = {
    0: "",
    BEGUN: "begun",
    GOING_ON: "going on",
    KEPT: "kept",
    UNDONE: "undone",
    KEPT_AND_BEGUN: "kept, begun",
}


class AppliedDecision(NamedTuple):
    """One decision and what came of it."""

    stats: IntervalStats  # of the interval that ended
    action: int  # index of the multiplier chosen
    q_values: Tensor  # (actions,)
    used_lr: float  # learning rate of the interval that ended
    next_lr: float  # learning rate of the interval to come
    applied: float  # change of the scale, natural log
    tripped: bool  # whether the interval was undone
    restored_step: int | None  # the step that the circuit breaker went back to
    cut: bool  # whether the trip was blamed on the learning rate


class DecisionLog:
    """Keeps one plain record per decision, and warns of undone intervals.

    Args:
        controller: whose decisions they are.
        climbing: whether the run begins at the safe start.

    Attributes:
        trace: the records.
        listeners: are told of each new record, with the statistics behind it.

    Example of a record, with the reason in words::

        {"step": 6, "steps": 2, "loss": 0.7, "lr": 1e-4, "next_lr": 2e-4, "action": 5,
        "update_ratio": 0.01, "reason": "raise x2: Q +0.1 over keep", ...}
    """

    def __init__(self, controller: LRController, *, climbing: bool) -> None:
        self.trace: list[DecisionRecord] = []
        self.listeners: list[Listener] = []
        self._controller = controller
        self._climbing = climbing  # nothing but raises so far, from the safe start
        self._note = ""  # for the next record
        self._trips = 0  # intervals in a row that blew up
        self._pulled = False  # whether the last interval had a gradient
        self._stood = False  # whether it has been said that nothing moves

    def add(self, made: AppliedDecision) -> None:
        """Puts a decision on record, after it has been applied."""
        multiplier = self._multipliers[made.action]
        self._climbing = self._climbing and multiplier > 1 and made.restored_step is None
        news = (self._note, self._trip(made), self._trial())
        parts = (*news, self._choice(made), self._limit(made))
        self._note = ""
        record: DecisionRecord = {
            "step": self._controller.step,
            "steps": made.stats.steps,
            "loss": float(made.stats.losses.mean()),
            "lr": made.used_lr,
            "next_lr": made.next_lr,
            "multiplier": multiplier,
            "action": made.action,
            "q_values": made.q_values.tolist(),
            "update_ratio": float(made.stats.max_update_ratio),
            "tripped": made.tripped,
            "reason": "; ".join(part for part in parts if part),
            **self._trial_entry(),
        }
        self.trace.append(record)
        self._pulled = bool(made.stats.gradient_norm > 0)
        self._warn(record, finite=bool(made.stats.finite))
        for listener in self.listeners:
            listener(record, made.stats)

    def note(self, words: str) -> None:
        """Has the next record's reason begin with words on what happened in between."""
        self._note = words

    @property
    def _multipliers(self) -> tuple[float, ...]:
        return self._controller.spec.actions.multipliers

    def _trip(self, made: AppliedDecision) -> str:
        finite = bool(made.stats.finite)
        what = "loss blew up" if finite else "loss not finite"
        if made.restored_step is not None:
            then = ", LR cut to a quarter" if made.cut else ""
            return f"{what}: restored step {made.restored_step}{then}"
        return "" if finite else f"{what}, circuit breaker off"

    @property
    def _news(self) -> int:
        """What the decision did about a trial, 0 for nothing."""
        trials = self._controller.trials
        return 0 if trials is None else int(trials.news)

    def _trial_entry(self) -> dict[str, str]:
        """Where a run tries rates, its records say where."""
        return {} if self._controller.trials is None else {"trial": TRIAL_NEWS[self._news]}

    def _trial(self) -> str:
        news = self._news
        trials = self._controller.trials
        if trials is None or self._controller.spec.trials is None or not news:
            return ""
        factor = f"x{self._controller.spec.trials.factor:g}"
        words = {
            BEGUN: f"tries {factor}",
            GOING_ON: f"tries {factor}, interval {int(trials.age)}",
            KEPT: f"{factor} kept: {_speed(trials)}",
            UNDONE: f"{factor} undone: {self._why_undone(trials)}",
            KEPT_AND_BEGUN: f"{factor} kept: {_speed(trials)}; tries {factor} again",
        }
        return words[news]

    def _why_undone(self, trials: Trials) -> str:
        risen = bool(self._controller.history.level >= trials.start)
        return "loss rises" if risen else _speed(trials)

    def _choice(self, made: AppliedDecision) -> str:
        if self._news not in (0, KEPT):
            return ""
        peak = self._controller.peak
        if peak is not None and self._controller.holds_peak:
            return f"memory: holds {float(peak):.3g}"
        multiplier = self._multipliers[made.action]
        q_values = made.q_values.tolist()
        if made.action != int(made.q_values.argmax()):
            return f"exploring: x{multiplier:g}"
        keep = self._controller.spec.actions.keep
        if made.action == keep:
            return self._keeping(q_values, keep)
        verb = "raise" if multiplier > 1 else "cut"
        gain = f"{verb} x{multiplier:g}: Q {q_values[made.action] - q_values[keep]:+.2g} over keep"
        return f"climbing from the safe start: {gain}" if self._climbing else gain

    def _keeping(self, q_values: list[float], keep: int) -> str:
        rest = [i for i in range(len(q_values)) if i != keep]
        if not rest:
            return "keep"
        rival = max(rest, key=lambda i: q_values[i])
        advantage = q_values[keep] - q_values[rival]
        return f"keep: Q {advantage:+.2g} over x{self._multipliers[rival]:g}"

    def _limit(self, made: AppliedDecision) -> str:
        """What kept the action from having its full effect."""
        for name in ("min_lr", "max_lr"):
            bound = getattr(self._controller, name)
            if bound is not None and math.isclose(self._controller.lr, bound, rel_tol=1e-6):
                return f"held at {name}"
        if bool(self._controller.history.stalled > 0):
            return "no update and no gradient to go by"
        if bool(self._controller.history.capped > 0):
            return "limited by the update cap, or by the ceiling that a trip leaves"
        if self._controller.holds_peak:
            return ""
        excess = made.applied - math.log(self._multipliers[made.action])
        if excess < -1e-3:
            return "held back right after a restore"
        if excess > 1e-3:
            return self._floor()
        return ""

    def _floor(self) -> str:
        """What an action's cut ended at."""
        if not self._controller.may_cut:
            return "no cuts while the decay falls"
        trials = self._controller.trials
        tried = trials is not None and self._controller.history.log_scale - 1e-3 <= trials.floor
        return "held at the rate that a trial found" if tried else "held at the scale's floor"

    def _warn(self, record: DecisionRecord, *, finite: bool) -> None:
        """Warns of a trip, and without a circuit breaker of the first loss that is not finite."""
        self._warn_of_standstill()
        if not record["tripped"] and finite:
            self._trips = 0
            return
        self._trips += 1
        if record["tripped"] or self._trips == 1:
            _LOGGER.warning("step %d: %s", record["step"], record["reason"])
        if record["tripped"] and self._trips == _LONG_STREAK:
            _LOGGER.warning(
                "%d intervals in a row blew up although the learning rate is down to %.3g. The "
                "cause is probably not the learning rate but the data or the loss.",
                self._trips,
                record["next_lr"],
            )

    def _warn_of_standstill(self) -> None:
        """Says once that updates of a run that has moved before are exactly zero."""
        history = self._controller.history
        pulled = bool((history.stalled > 0) & (history.moved > 0)) and self._pulled
        if pulled and not self._stood:
            _LOGGER.warning(
                "step %d: the optimizer gets gradients and moves no weight, so the learning rate "
                "is held. It may round its updates away, or hold NaN in its state.",
                self._controller.step,
            )
        self._stood = self._stood or pulled

    def state_dict(self) -> dict[str, Any]:
        """Builtins."""
        trace = [dict(record) for record in self.trace]
        state = {"trace": trace, "climbing": self._climbing, "trips": self._trips}
        return {**state, "note": self._note}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restores what `state_dict` returned."""
        self.trace[:] = [dict(record) for record in state["trace"]]
        self._climbing = state["climbing"]
        self._trips = state["trips"]
        self._note = state.get("note", "")  # older versions had none


def _speed(trials: Trials) -> str:
    """How the loss falls in a trial, against before it."""
    ratio = float(trials.ratio)
    return f"loss falls {ratio:.2g} times as fast" if 0 < ratio < math.inf else "loss falls"
