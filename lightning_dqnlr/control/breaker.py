"""The circuit breaker: is an interval healthy, suspicious or to be undone, and what follows.

A run that climbs past stability rarely finds back, so a blown-up interval is undone: the host
restores healthy weights and optimizer state, and the learning rate is cut. Seven rules keep the
breaker itself from doing harm. The first few intervals are not judged by their losses, because
their noise is not known yet and the learning rate is near its start. Only a healthy state is ever
stored, and none that has lost a quarter of the run's progress: a run that is ruined slowly, each
interval within the noise of the one before, would else be compared with its own ruin. What is
restored is the state before the one stored last, because losses are those before each update, and
nobody has seen yet what an interval's last update did. After a restore the threshold is raised to
the restored state's own loss, so that it cannot trip at once again. The floor of the learning rate
follows every cut down, so that the cut always acts. A ceiling at half of the scale that blew up,
which rises slowly, keeps a policy from climbing there again and again. And the ceiling is lifted
if the restored state turns out to be no better than what was undone.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from lightning_dqnlr.control.features import compressed_loss
from lightning_dqnlr.control.history import NO_CEILING, History
from lightning_dqnlr.control.telemetry import IntervalStats

CUT = math.log(4.0)
TRIP_MARGIN = math.log(2.0)
HEALTHY_MARGIN = 0.25
INITIAL_MARGIN = 0.5
LOST_SHARE = 0.25  # a run that has kept no more of its progress has lost its way
KEPT_SHARE = 0.75  # and one that has kept less is on its way there: not a state to go back to
ORIGIN_INTERVALS = 4  # what a run is measured by: the first loss may be that of a lucky batch
DEFAULT_NOISE = 0.25
PEAK_ABOVE_CUT = math.log(16.0)
CEILING = math.log(0.5)  # of the scale that blew up, which it reaches again in 16 decisions
CEILING_RISE = math.log(2.0) / 16
PATIENCE = 4.0  # intervals in a row that are high: noise does not do that


class Verdict(NamedTuple):
    """Masks of shape `lead`.

    Attributes:
        tripped: undo the interval.
        healthy: store its end. Never together with `tripped`; neither: keep on, store nothing.
        high: in a row, this one included, intervals whose mean loss was above the limit by more
            than its standard error, and half of those that had only lost their progress.
    """

    tripped: Tensor
    healthy: Tensor
    high: Tensor


def judge(stats: IntervalStats, history: History, early: bool = False) -> Verdict:
    """Compares the end of the interval with the last healthy state, in units of log loss.

    The limit is the reference (the last healthy state's loss) plus a factor of two, or the origin
    (the largest loss of the first few intervals) plus a smaller one. Trips when the last quarter's
    loss is above it by four standard errors of its own noise, when the whole interval's was by one
    in `PATIENCE` intervals in a row (a noisy loss may stay a factor of five above where it was and
    yet within four standard errors of it), when a quarter or less was left of the way from the
    origin to the lowest loss in twice as many (a destroyed network may settle there), or when
    anything in the interval was not finite. Healthy means no worse at the end than the reference
    and the best so far by the smaller margins, and on the whole neither above the limit nor a
    quarter of the progress behind: of a short interval the last quarter is a single loss.

    Args:
        stats: the interval that just ended.
        history: the history before it.
        early: whether it is one of the first `ORIGIN_INTERVALS`.
    """
    bins = stats.losses.shape[-1]
    quarter = max(1, bins // 4)
    recent = compressed_loss(stats.losses[..., -quarter:].mean(-1), history.initial_loss)
    error = history.noise / math.sqrt(max(1.0, quarter * stats.steps / bins))
    whole = compressed_loss(stats.losses.mean(-1), history.initial_loss)
    # What it is compared with has noise of its own: the initial loss is that of a single batch.
    whole_error = history.noise * math.sqrt(1 + 1 / stats.steps)
    limit = torch.minimum(history.reference + TRIP_MARGIN, history.origin + INITIAL_MARGIN)
    limit = torch.maximum(limit, history.reference + HEALTHY_MARGIN)
    above = whole > limit + whole_error
    # A run that blew up makes noise of its own, behind which it must not hide.
    lost_error = history.noise.clamp_max(DEFAULT_NOISE) / math.sqrt(stats.steps)
    progress = (history.origin - history.low - 4 * lost_error).clamp_min(0.0)
    lost = whole > history.origin - LOST_SHARE * progress + lost_error
    high = torch.where(above | lost, history.high + 0.5 + 0.5 * above, 0.0)
    tripped = (recent > limit + 4 * error) | (high >= PATIENCE)
    if early:
        high, tripped = torch.zeros_like(high), torch.zeros_like(tripped)
    tripped = tripped | ~stats.finite
    good = torch.minimum(history.reference + HEALTHY_MARGIN, history.best + 2 * HEALTHY_MARGIN)
    kept = whole <= history.origin - KEPT_SHARE * progress + lost_error
    healthy = (recent <= good + 2 * error) & ~above & kept
    return Verdict(tripped, ~tripped & healthy, high)


def after_restore(stats: IntervalStats, history: History) -> History:
    """The history by which an interval is judged: the old one, unless a restore came before it.

    Then the restored state's own loss becomes the reference. If it is nearer to the loss of the
    interval that was undone than to the old reference, this one was too low (that of a lucky
    batch, or of a part of the data) and the alarm false: the ceiling is lifted.

    Args:
        stats: the interval that just ended; its first loss is that of the restored weights.
        history: the history before it.
    """
    own = compressed_loss(stats.losses[..., 0], history.initial_loss)
    fresh = (history.restored > 0) & own.isfinite()
    false_alarm = fresh & (own > torch.lerp(history.reference, history.undone, 0.5))
    return replace(
        history,
        ceiling=torch.where(false_alarm, NO_CEILING, history.ceiling),
        reference=torch.where(fresh, torch.maximum(history.reference, own), history.reference),
        best=torch.where(fresh, torch.maximum(history.best, own), history.best),
    )


def cut(history: History, tripped: Tensor) -> History:
    """Cuts the scale where the breaker tripped, with its floor and its ceiling."""
    h = history
    ceiling = torch.where(tripped, h.log_scale + CEILING, h.ceiling + CEILING_RISE)
    log_scale = torch.where(tripped, h.log_scale - CUT, h.log_scale)
    peak = torch.where(
        tripped, torch.minimum(h.peak_log_scale, log_scale + PEAK_ABOVE_CUT), h.peak_log_scale
    )
    return replace(h, log_scale=log_scale, peak_log_scale=peak, ceiling=ceiling)
