"""Trials within a run: is twice the rate better even at once? Then the rate was too low.

Over a few intervals a lower rate looks better than it is, because it takes noise out of the loss. A
higher rate that lowers the loss faster all the same is therefore better for certain. A run finds
out by trying, in five rules:

1. A trial begins where the last `window` intervals had one rate and none was undone, in the first
   part of a run of known length: the decay pays out what a trial finds. Intervals of a few steps
   decide nothing, because a rate takes some ten steps to arrive in a momentum.
2. It multiplies the rate, and holds that against the policy for `window + 1` intervals. The first
   of them is left out of the comparison: it holds the jump.
3. It is undone at once where the loss lies above its beginning by more than noise explains, and
   where the circuit breaker trips. The breaker's own cut stays.
4. It is kept if the loss falls faster than before by more than its standard error. The next trial
   may follow at once. Else it is undone, and a pause follows, twice as long as after the last one.
5. The policy's own cuts end at the rate that was kept last: a policy that had held a lower rate
   would take it back. The decay passes below it. So does a cut of the breaker, which also ends it.

Everything is elementwise over leading dimensions. Nothing is read on the host.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lightning_dqnlr.control.history import History
from lightning_dqnlr.control.spec import ControllerSpec, TrialSpec

NO_FLOOR = -100.0  # a natural log of a learning rate, out of reach
_SAME = 1e-4  # of two log scales that differ by rounding alone

# What a decision did; see `Trials.news`.
BEGUN, GOING_ON, KEPT, UNDONE, KEPT_AND_BEGUN = 1, 2, 3, 4, 5


@dataclass
class Trials:
    """What is remembered of a run's trials; tensors have the shape `lead`, but for `levels`.

    Example:
        >>> Trials.zeros(TrialSpec(window=3), lead=(2,)).levels.shape
        torch.Size([2, 3])
    """

    levels: Tensor  # (*lead, window) compressed losses of the last intervals, the newest last
    offset: Tensor  # what the losses behind them are measured from
    scale: Tensor  # log scale of the last interval
    steady: Tensor  # intervals in a row at that scale, none of them undone
    age: Tensor  # intervals of the trial under way, the coming one included; 0 without one
    base: Tensor  # log scale that it goes back to
    start: Tensor  # level that it began at
    before: Tensor  # fall of the level per interval before it
    after: Tensor  # the same of late
    ratio: Tensor  # of the two falls, in the trial that ended last
    pause: Tensor  # decisions before another one may begin
    failures: Tensor  # in a row
    floor: Tensor  # log scale that was kept last, where the policy's cuts end
    news: Tensor  # what the last decision did, 0 for nothing
    action: Tensor  # int64, what the last decision took, for the trial or for the policy

    @classmethod
    def zeros(
        cls, spec: TrialSpec, lead: tuple[int, ...] = (), device: torch.device | str = "cpu"
    ) -> Trials:
        """Those of a run that has not begun."""
        values = {f.name: torch.zeros(lead, device=device) for f in fields(cls)}
        values["levels"] = torch.zeros((*lead, spec.window), device=device)
        values["floor"] += NO_FLOOR
        values["action"] = values["action"].long()
        return cls(**values)

    @classmethod
    def from_state(cls, state: Mapping[str, Tensor], device: torch.device | str) -> Trials:
        """The inverse of `state_dict`."""
        return cls(**{f.name: state[f.name].to(device) for f in fields(cls)})

    def state_dict(self) -> dict[str, Any]:
        """Tensors by name."""
        return {f.name: getattr(self, f.name).clone() for f in fields(self)}


class Moment(NamedTuple):
    """What a decision knows besides the history."""

    progress: float | None  # share of the run that is over; None if the horizon is unknown
    steps: int  # of the interval that just ended
    room: Tensor  # natural log of how far the scale may rise, shape `lead`


class Steered(NamedTuple):
    """What comes of a decision; all but `trials` of shape `lead`."""

    trials: Trials
    forced: Tensor  # bool, where the trial decides and the policy does not
    change: Tensor  # of the log scale, where it does


def steer(trials: Trials, history: History, moment: Moment, spec: ControllerSpec) -> Steered:
    """Judges the trial under way and begins the next, once per decision, before its action.

    With levels y of the last W intervals, s the standard error of one, and the fall per interval

        v = (y_1 - y_W) / (W - 1),  kept if v_after - v_before > margin * 2 s / (W - 1).

    Args:
        trials: what is remembered.
        history: with the interval in it that just ended.
        moment: of the decision.
        spec: of the controller; its `trials` are not None.

    Example:
        steered = steer(trials, history, Moment(0.2, steps=10, room=torch.tensor(1.0)), spec)
        change = torch.where(steered.forced, steered.change, change)
    """
    assert spec.trials is not None
    settings = spec.trials
    h = history
    seen = _look(trials, h)
    verdict = _judge(seen, trials, h, moment, settings)
    failed = verdict.failed
    kept = verdict.kept
    running = (trials.age > 0) & ~failed & ~kept
    pause = torch.where(kept, 0.0, (trials.pause - (trials.age == 0).float()).clamp_min(0.0))
    pause = torch.where(failed, settings.pause * 2.0**trials.failures, pause)
    begun = ~running & ~failed & (pause == 0) & _may_begin(seen, h, moment, settings)
    cut = (h.restored > 0) & (h.log_scale < trials.scale - _SAME)
    floor = torch.where(cut, NO_FLOOR, trials.floor)
    change = torch.where(failed, (trials.base - h.log_scale).clamp_max(0.0), 0.0)
    made = replace(
        seen,
        ratio=torch.where(failed | kept, seen.after / trials.before, trials.ratio),
        age=torch.where(begun, 1.0, torch.where(running, trials.age + 1, 0.0)),
        base=torch.where(begun, h.log_scale, trials.base),
        start=torch.where(begun, h.level, trials.start),
        before=torch.where(begun, seen.after, trials.before),
        pause=pause,
        failures=torch.where(kept, 0.0, trials.failures + failed),
        floor=torch.where(kept, h.log_scale, floor),
        news=begun * BEGUN + running * GOING_ON + kept * KEPT + failed * UNDONE + (kept & begun),
    )
    change = torch.where(begun, math.log(settings.factor), change)
    return Steered(made, running | begun | failed, change)


def _look(trials: Trials, h: History) -> Trials:
    """The trials with the interval in them that just ended."""
    levels = torch.cat([trials.levels[..., 1:], h.level[..., None]], dim=-1)
    same = (h.log_scale - trials.scale).abs() <= _SAME
    steady = torch.where(same, trials.steady + 1, 1.0)
    # Losses from another origin are not to be compared with those before.
    known = (h.restored == 0) & (h.offset == trials.offset)
    return replace(
        trials,
        levels=levels,
        offset=h.offset,
        scale=h.log_scale,
        steady=torch.where(known, steady, 0.0),
        after=(levels[..., 0] - levels[..., -1]) / (levels.shape[-1] - 1),
    )


class _Verdict(NamedTuple):
    failed: Tensor
    kept: Tensor


def _judge(
    seen: Trials, trials: Trials, h: History, moment: Moment, settings: TrialSpec
) -> _Verdict:
    """Whether the trial under way ends here, and how; bool of shape `lead`."""
    error = h.noise / math.sqrt(moment.steps)
    risen = h.level > trials.start + settings.abort * math.sqrt(2) * error
    ended = trials.age > settings.window
    gain = (seen.after - trials.before) * (settings.window - 1) / 2
    better = (gain > settings.margin * error) & (h.level < trials.start)
    lost = (seen.steady == 0) | risen | (ended & ~better)
    running = trials.age > 0
    return _Verdict(running & lost, running & ended & ~lost)


def _may_begin(seen: Trials, h: History, moment: Moment, settings: TrialSpec) -> Tensor:
    """Where a trial can be decided, and its rate be had; bool of shape `lead`."""
    progress = -1.0 if moment.progress is None else moment.progress
    due = settings.first <= progress <= settings.last
    if not due or moment.steps < settings.least_steps:
        return torch.zeros_like(h.level, dtype=torch.bool)
    steady = (seen.steady >= settings.window) & (h.streak == 0) & (h.stalled == 0)
    return steady & (moment.room >= math.log(settings.factor) - _SAME)
