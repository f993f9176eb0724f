"""`LRController`: telemetry -> observation, action -> learning rate. It never chooses actions.

The caller puts a policy between `observe` and `apply`. A Trainer, R exploring replicas, a Gymnasium
agent and scripted baselines therefore run through the same code. It works elementwise over leading
dimensions. What the policy met in meta-training is what it meets in a user's run.

The learning rate is `scale * decay(progress)`. The decay falls to zero at the end when the horizon
is known; it is 1 when the horizon is unknown. The actions multiply the scale. The scale starts
where the first update moves the weights by 1e-4 of their norm, and the policy climbs from there.
The user's learning rate therefore cannot hurt.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lightning_dqnlr.control.breaker import (
    ORIGIN_INTERVALS,
    BreakerMode,
    Verdict,
    after_restore,
    alarm_level,
    cut,
    judge,
)
from lightning_dqnlr.control.features import (
    Clock,
    all_features,
    compressed_loss,
    predicted_drop,
    step_noise,
)
from lightning_dqnlr.control.history import History
from lightning_dqnlr.control.probe import Probe
from lightning_dqnlr.control.scales import all_fixed, fix_scales, from_origin, lower_origin
from lightning_dqnlr.control.spec import ControllerSpec, check_limits
from lightning_dqnlr.control.telemetry import IntervalStats
from lightning_dqnlr.control.trials import Moment, Trials, steer

_TINY = 1e-30
_EXTREME = math.log(1e30)  # of a log scale; below and above it a rate could be zero or infinite
_LARGEST_START = math.log(300.0)  # of the first update, over `start_ratio`; see `_stalled_change`
_STALLED_RAISE = math.log(10.0)  # per decision
_UNLIMITED_AFTER = 12  # decisions; no wrapper gathers the gradients of so many steps
_LARGEST_CORRECTION = 1e6  # of a start at once
_COUNTERS = ("step", "decisions", "interval")
_AT_REST = 1e-6  # of the scale
_DROPS = 0.7  # decay per decision of what was gained and what was forecast

_START = 8  # decisions that are the policy's in any case


class Decision(NamedTuple):
    """What `observe` returns, all of leading shape `lead`.

    Before it applies an action, the host restores its last snapshot but one where `tripped`. It
    then takes a new snapshot where `healthy`. No loss has been seen yet of the last one's weights.
    """

    observation: Tensor  # (*lead, features)
    tripped: Tensor
    healthy: Tensor
    blamed: Tensor  # tripped, and the rate was cut


class LRController:
    """Learning-rate control of one run, or of R runs in lockstep.

    Call `safe_start` or `start` before the first step; then, every `interval` steps, `observe` and
    `apply`. `lr` is the learning rate of the coming steps, of shape `lead`.

    Args:
        spec: shared with the policy.
        horizon: optimizer steps of the whole run; None if unknown.
        lead: leading dimensions of every tensor.
        min_lr, max_lr: hard bounds of the learning rate.
        circuit_breaker: whether `observe` may ask for a restore; "finite" for a restore of what is
            not finite only.
        device: where the state lives.

    Attributes:
        start_multiplier: what a safe start is multiplied by, of shape `lead` or a number; for
            exploration from elsewhere.
        trials: of higher rates; None where the specification has none.
        peak: learning rate that a run under way holds until it decays, of shape `lead`; None to
            leave it to the policy. The start stays the policy's, and the circuit breaker cuts.

    Raises:
        ConfigurationError: for a non-positive horizon or bound, or min_lr > max_lr.

    Example:
        controller = LRController(policy.spec, horizon=1000)
        controller.safe_start(gradient_norm, weight_norm, probe, follows_gradient=False)
        ...  # controller.interval steps at controller.lr, fed to a Telemetry
        decision = controller.observe(telemetry.read(weights))
        controller.apply(policy.choose(decision.observation).action)
    """

    def __init__(
        self,
        spec: ControllerSpec,
        *,
        horizon: int | None,
        lead: tuple[int, ...] = (),
        min_lr: float | None = None,
        max_lr: float | None = None,
        circuit_breaker: BreakerMode = True,
        device: torch.device | str = "cpu",
    ) -> None:
        check_limits(horizon, min_lr, max_lr)
        self.spec = spec
        self.horizon = None if horizon is None else int(horizon)
        self.min_lr = min_lr
        self.max_lr = max_lr
        self.circuit_breaker = circuit_breaker
        self.history = History.zeros(lead, device)
        self.trials = None if spec.trials is None else Trials.zeros(spec.trials, lead, device)
        self.step = 0
        self.decisions = 0
        self.interval = 1
        self._steps = 1  # of the interval that ended last
        self.lr = torch.zeros(lead, device=device)
        self.start_multiplier: Tensor | float = 1.0
        self.peak: Tensor | None = None
        self._falls_from: int | None = None  # the step that `come_down` was called at
        self._rescale = False
        self._settled = False  # whether the start and what the run is measured by are fixed
        self._ratio = torch.zeros(lead, device=device)

    def safe_start(
        self, gradient_norm: Tensor, weight_norm: Tensor, probe: Probe, follows_gradient: bool
    ) -> Tensor:
        """Sets the first learning rate from the first gradient; returns it, shape `lead`.

        An update of SGD is lr * g. A step of the Adam kind has coordinates of about lr. For other
        optimizers than SGD the larger of the two guesses is taken, and the first measured update
        corrects it. A gradient of zero (a batch without a target) tells nothing about later ones:
        SGD then starts where the Adam kind does.

        Args:
            gradient_norm: of the whole first gradient, shape `lead`.
            weight_norm: of the weights, shape `lead`.
            probe: of the model.
            follows_gradient: whether the optimizer is SGD with or without momentum.
        """
        root = math.sqrt(probe.total)
        unit = torch.where(gradient_norm > 0, gradient_norm, root)
        if not follows_gradient:
            unit = unit.clamp_min(root)
        self._rescale = not follows_gradient
        weights = weight_norm.clamp_min(probe.weight_floor)
        lr = (self.spec.start_ratio * weights / unit).nan_to_num(1e-8).clamp(1e-12, 1e3)
        self.start(lr * self.start_multiplier)
        likely = unit if follows_gradient else root
        largest = (self.spec.start_ratio * weights / likely).nan_to_num(0.0).clamp_min(lr)
        self.history = replace(self.history, start_limit=largest.log() + _LARGEST_START)
        return self.lr

    def start(self, lr: Tensor) -> Tensor:
        """Sets the first learning rate to `lr`, shape `lead`; returns it within the bounds."""
        scale = lr.to(self.history.level).clamp_min(_TINY).log()
        self._start_at(scale, torch.ones_like(scale, dtype=torch.bool))
        self.history = replace(self.history, start_limit=scale + _LARGEST_START)
        return self._set_lr()

    @property
    def update_ratio(self) -> Tensor:
        """||dtheta|| / ||theta|| in the last interval, shape `lead`."""
        return self._ratio

    def observe(self, stats: IntervalStats, alarm: Tensor | None = None) -> Decision:
        """Takes in the interval that just ended, on the controller's device.

        Args:
            stats: of the interval.
            alarm: (*lead) bool, which runs a host found ruined while the interval went on.
        """
        self.step += stats.steps
        self._steps = stats.steps
        if not self._settled:
            self._settle(stats)
        self.history = lower_origin(from_origin(stats, self.history), self.history)
        stats = from_origin(stats, self.history)
        before = after_restore(stats, self.history)
        early = self.decisions < ORIGIN_INTERVALS
        verdict = judge(stats, before, early=early, alarm=alarm, mode=self.circuit_breaker)
        self._ratio = _update_ratio(stats)
        self.history = cut(_remember(before, stats, verdict, early), verdict)
        self.decisions += 1
        self.interval = self.spec.interval(self.step, self.horizon)
        clock = Clock(self.step, self.interval, self.horizon, self.decisions)
        features = all_features(stats, self.history, before, clock)
        observation = self.spec.features.select(features)
        return Decision(observation, verdict.tripped, verdict.healthy, verdict.blamed)

    def apply(self, action: Tensor) -> Tensor:
        """Turns actions, int64 of shape `lead`, into the learning rate of the coming interval.

        Where a trial is under way, `taken` tells what was done instead.
        """
        h = self.history
        change = self.spec.actions.log_multiplier(action)
        if self.holds_peak:
            change = self._towards_peak()
        # Right after a restore a raise would undo the cut.
        change = torch.where(h.since_trip < 2, change.clamp_max(0.0), change)
        if not self.may_cut:
            change = change.clamp_min(0.0)
        if self.at_rest:
            change = change.clamp_max(0.0)
        if bool((h.stalled > 0).any()):
            change = torch.where(h.stalled > 0, self._stalled_change(), change)
        allowed = torch.minimum(self._allowed_log_scale(), torch.maximum(h.ceiling, h.log_scale))
        floor = h.peak_log_scale + math.log(self.spec.scale_floor)
        if self.trials is not None and not self.holds_peak:
            change = self._try(self.trials, action, change, allowed)
            floor = torch.maximum(floor, self.trials.floor)
        log_scale = torch.maximum(h.log_scale + change, torch.minimum(floor, h.log_scale))
        self.history = replace(
            h,
            log_scale=torch.minimum(log_scale, allowed),
            last_action=change,
            previous_action=h.last_action,
            capped=(log_scale > allowed).to(h.level),
        )
        return self._set_lr()

    def taken(self, action: Tensor) -> Tensor:
        """What the last decision did of what it was told: the same, or an action of a trial."""
        return action if self.trials is None or self.holds_peak else self.trials.action

    def alarm_level(self, restored: Tensor | None = None) -> Tensor:
        """The loss, shape `lead`, above which a step is plainly ruined; infinite at first.

        Args:
            restored: the first loss after a restore, shape `lead`; the level is above it.
        """
        if self.decisions < ORIGIN_INTERVALS or self.circuit_breaker is not True:
            return torch.full_like(self.lr, torch.inf)
        return alarm_level(self.history, restored)

    def come_down(self, step: int, steps: int) -> None:
        """Ends the run `steps` steps after `step`, and lets the rate fall to zero until then.

        `begin_interval` follows.
        """
        self.horizon = step + steps
        self._falls_from = step

    def begin_interval(self, step: int, history: History | None = None) -> Tensor:
        """Begins an interval without a decision; returns its learning rate, shape `lead`.

        Args:
            step: the present one; the steps of an open interval are part of it.
            history: of the state that the host has put back; None for the present one.
        """
        self.step = step
        if history is not None:
            self.history = history
            if self.trials is not None:  # the one under way was of another state
                self.trials = replace(self.trials, age=torch.zeros_like(self.trials.age))
        self.interval = self.spec.interval(step, self.horizon)
        return self._set_lr()

    @property
    def at_rest(self) -> bool:
        """Whether a run that came down goes on after its end; it is to stay where it is."""
        return self._falls_from is not None and self.step >= (self.horizon or 0)

    @property
    def falling(self) -> bool:
        """Whether the decay has begun."""
        return self._decay() < 1.0

    @property
    def may_cut(self) -> bool:
        """Whether an action may lower the scale now; the circuit breaker always may."""
        if self._falls_from is not None:
            return self.spec.cuts_in_decay
        return self.spec.may_cut(self.step, self.interval, self.horizon)

    @property
    def holds_peak(self) -> bool:
        """Whether decisions are for `peak`, and no longer the policy's."""
        return self.peak is not None and self.decisions > _START

    def _towards_peak(self) -> Tensor:
        """The change of the scale that goes to the peak, as fast as an action may."""
        assert self.peak is not None
        extremes = [math.log(m) for m in self.spec.actions.multipliers]
        missing = self.peak.clamp_min(_TINY).log() - self.history.log_scale
        return missing.clamp(min(extremes), max(extremes))

    def _try(self, trials: Trials, action: Tensor, change: Tensor, allowed: Tensor) -> Tensor:
        """The change of the scale, where a trial decides its own."""
        room = allowed - self.history.log_scale
        if self.max_lr is not None:
            room = torch.minimum(room, math.log(self.max_lr) - self.lr.clamp_min(_TINY).log())
        progress = None if self.horizon is None else self.step / self.horizon
        steered = steer(trials, self.history, Moment(progress, self._steps, room), self.spec)
        own = self.spec.actions.nearest(steered.change)
        taken = torch.where(steered.forced, own, action)
        self.trials = replace(steered.trials, action=taken)
        return torch.where(steered.forced, steered.change, change)

    def _settle(self, stats: IntervalStats) -> None:
        """Fixes what the run is measured by, and corrects a start by the first updates seen."""
        self.history = fix_scales(stats, self.history)
        ratio = _update_ratio(stats)
        first = (self.history.moved == 0) & (ratio > 0) & ratio.isfinite()
        missing = self.spec.start_ratio / ratio.clamp_min(_TINY)
        if self._rescale:
            factor = missing.clamp(1.0, _LARGEST_CORRECTION)
            self._start_at(self.history.log_scale + factor.log(), first)
        moved = first & (missing <= _LARGEST_CORRECTION)
        self.history = replace(self.history, moved=torch.where(moved, 1.0, self.history.moved))
        self._settled = all_fixed(self.history) and bool((self.history.moved > 0).all())

    def _start_at(self, scale: Tensor, where: Tensor) -> None:
        h = self.history
        names = ("log_scale", "start_log_scale", "peak_log_scale")
        started = {name: torch.where(where, scale, getattr(h, name)) for name in names}
        self.history = replace(h, **started)

    def _allowed_log_scale(self) -> Tensor:
        """The largest scale that keeps the update within its cap, by the last interval's ratio.

        Right after a restore there is no cap. The ratio is then that of the weights that blew up.
        It would lower the rate by as many decades as these weights were away.
        """
        factor = self.spec.max_update_ratio / self._ratio.nan_to_num(1.0).clamp_min(_TINY)
        log_lr = self.lr.clamp_min(_TINY).log() + factor.clamp_max(1e12).log()
        allowed = log_lr - math.log(self._decay())
        return torch.where(self.history.restored > 0, torch.inf, allowed)

    def _stalled_change(self) -> Tensor:
        """The change of the scale where the last interval moved nothing: none, as a rule.

        A first update may be lost in rounding: under bfloat16, or if the loss has large units. The
        rate then rises until something moves. The first decisions do not raise it above 300 times
        what moves most optimizers, because one that gathers gradients moves nothing at first.
        """
        h = self.history
        limit = h.start_limit if self.decisions <= _UNLIMITED_AFTER else _EXTREME
        room = (limit - h.log_scale).clamp(0.0, _STALLED_RAISE)
        return torch.where(h.stalled > 1, room, 0.0)

    def _decay(self) -> float:
        if self._falls_from is None or self.horizon is None:
            return self.spec.decay_at(self.step, self.interval, self.horizon)
        left = self.horizon - (self.step + self.interval / 2)
        share = left / (self.horizon - self._falls_from)
        return _AT_REST if self.at_rest else min(1.0, max(share, 1 / (4 * self.spec.decisions)))

    def _set_lr(self) -> Tensor:
        log_scale = self.history.log_scale.clamp(-_EXTREME, _EXTREME)
        self.history = replace(self.history, log_scale=log_scale)
        lr = log_scale.exp() * self._decay()
        if self.min_lr is not None or self.max_lr is not None:
            lr = lr.clamp(self.min_lr, self.max_lr)
            # The scale stays where the bound put it; otherwise it would run on, out of reach.
            self.history = replace(self.history, log_scale=(lr / self._decay()).log())
        self.lr = lr
        return lr

    def state_dict(self) -> dict[str, Any]:
        tried = {} if self.trials is None else {"trials": self.trials.state_dict()}
        return {
            **tried,
            "history": self.history.state_dict(),
            "lr": self.lr.clone(),
            "ratio": self._ratio.clone(),
            "counters": [getattr(self, name) for name in _COUNTERS],
            "horizon": self.horizon,
            "falls_from": self._falls_from,
            "rescale": self._rescale,
            "peak": self.peak,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores what `state_dict` returned; the horizon becomes the saved one.

        Raises:
            ConfigurationError: if the state is of a version that remembered less.
        """
        device = self.lr.device
        self.history = History.from_state(state["history"], device)
        self.lr = state["lr"].to(device)
        self._ratio = state["ratio"].to(device)
        for name, count in zip(_COUNTERS, state["counters"], strict=True):
            setattr(self, name, count)
        self.horizon = state["horizon"]
        self._falls_from = state.get("falls_from")  # older versions had none
        self._rescale = state["rescale"]
        self.peak = state.get("peak")  # older versions had none
        self._settled = False  # looked at anew
        if self.trials is not None:
            self.trials = Trials.from_state(state["trials"], device)


def _update_ratio(stats: IntervalStats) -> Tensor:
    return stats.update_norm / stats.weight_norm.clamp_min(_TINY)


def _undone_level(s: IntervalStats, h: History) -> Tensor:
    """Compressed loss of an interval; infinite if anything in it was not finite."""
    level = compressed_loss(s.losses.mean(-1), h.initial_loss)
    return torch.where(s.finite & level.isfinite(), level, torch.inf)


def _remember(h: History, s: IntervalStats, verdict: Verdict, early: bool) -> History:
    """The history with the interval in it; a tripped interval leaves the loss terms alone."""
    tripped = verdict.tripped
    pulled = s.gradient_norm > 0
    still = ~pulled | (s.update_norm == 0)
    loss = torch.where(tripped, h.loss, s.losses.mean(-1))
    level = torch.where(tripped, h.reference, compressed_loss(loss, h.initial_loss))
    ok = ~tripped
    raised = ok & (early | (h.since_trip < ORIGIN_INTERVALS))
    origin = torch.where(raised, torch.maximum(h.origin, level), h.origin)
    low = origin if early else torch.where(ok, torch.minimum(h.low, level), h.low)
    seen = ok & pulled
    # Variances average without bias; few bins tell little, so they move the average little.
    rate = s.losses.shape[-1] / 32
    measured = step_noise(s.losses, h.level, h.initial_loss, s.steps).square()
    variance = (1 - rate) * h.noise.square() + rate * measured
    drop = h.level - level
    forecast = predicted_drop(s, loss, h.initial_loss) * s.steps
    return replace(
        h,
        loss=loss,
        level=level,
        fast=0.5 * h.fast + 0.5 * level,
        slow=0.85 * h.slow + 0.15 * level,
        best=torch.where(ok, torch.minimum(h.best, level), h.best),
        noise=torch.where(ok, variance.sqrt(), h.noise),
        log_gradient=torch.where(seen, s.gradient_norm.log(), h.log_gradient),
        path=torch.where(ok, h.path + s.steps * s.update_norm.square(), h.path),
        peak_log_scale=torch.where(
            verdict.healthy, torch.maximum(h.peak_log_scale, h.log_scale), h.peak_log_scale
        ),
        reference=torch.where(verdict.healthy, level, h.reference),
        origin=origin,
        low=low,
        since_trip=torch.where(tripped, torch.zeros_like(h.trips), h.since_trip + 1),
        trips=h.trips + tripped,
        restored=tripped.to(h.level),
        streak=torch.where(verdict.healthy, 0.0, h.streak + (tripped & ~s.finite)),
        undone=torch.where(tripped, _undone_level(s, h), h.undone),
        stalled=(still & ok) * (1.0 + (pulled & (h.moved == 0))),
        high=torch.where(ok, verdict.high, 0.0),
        drop=torch.where(ok, torch.lerp(drop, h.drop, _DROPS), 0.0).nan_to_num(0.0),
        forecast=torch.where(ok, torch.lerp(forecast, h.forecast, _DROPS), 0.0).nan_to_num(0.0),
    )
