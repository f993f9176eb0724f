"""The circuit breaker: is an interval healthy, suspicious or to be undone, and what follows.

A run that climbs past stability rarely recovers by itself. A blown-up interval is therefore
undone: the host restores healthy weights and optimizer state, and the learning rate is cut. Nine
rules keep the breaker itself from doing harm:

1. The first few intervals are not judged by their losses. Their noise is not known yet, and the
   learning rate is near its start.
2. Only a healthy state is stored, and none that has lost a quarter of the run's progress. A run
   may be ruined slowly, each interval within the noise of the one before; it would otherwise be
   compared with its own ruin.
3. The restored state is the one before the state stored last. A loss belongs to the weights before
   an update, so no loss has shown yet what an interval's last update did.
4. After a restore the threshold rises to the restored state's own loss. The breaker cannot trip
   again at once.
5. The floor of the learning rate follows every cut down, so that the cut always acts.
6. A ceiling at half of the scale that blew up keeps a policy from climbing there again and again.
   The ceiling rises slowly.
7. The ceiling is lifted if the restored state turns out to be no better than what was undone. If
   noise cannot explain its loss, the data or the loss have changed, and the run is measured anew.
8. A rate that has proved healthy is not cut for a loss that turns NaN from one step to the next.
   That is the work of a batch.
9. A cause that outlives three cuts in a row is not the learning rate, and is not answered by more.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from lightning_dqnlr.control.features import compressed_loss, expanded_loss
from lightning_dqnlr.control.history import NO_CEILING, History
from lightning_dqnlr.control.scales import DEFAULT_NOISE
from lightning_dqnlr.control.telemetry import IntervalStats

# Whether intervals are undone; "finite" undoes those only in which something is not finite.
BreakerMode = bool | Literal["finite"]

CUT = math.log(4.0)
TRIP_MARGIN = math.log(2.0)
HEALTHY_MARGIN = 0.25
INITIAL_MARGIN = 0.5
LOST_SHARE = 0.25  # a run that has kept no more of its progress is lost
KEPT_SHARE = 0.75  # a state that has kept less of it is not stored
ORIGIN_INTERVALS = 4  # several, because the first loss may be that of a lucky batch
PEAK_ABOVE_CUT = math.log(16.0)
CEILING = math.log(0.5)  # relative to the scale that blew up; 16 decisions lead back to it
CEILING_RISE = math.log(2.0) / 16
PATIENCE = 4.0  # high intervals in a row; noise alone does not cause that many
RUIN_MARGIN = math.log(8.0)  # above the limit, of a step that is plainly ruined
RELAPSE = 16  # decisions within which a second trip is no accident
CUTS_IN_A_ROW = 4  # a cause that outlives so many is not the learning rate


class Verdict(NamedTuple):
    """Masks of shape `lead`: undo the interval, or store its end; neither: keep on, store nothing.

    `high` counts intervals in a row, this one included. One counts 1 if its mean loss was above the
    limit by more than its standard error. It counts 1/2 if it had only lost its progress. Of
    tripped intervals, `blamed` are those whose learning rate is to be cut, and `barred` those that
    leave a ceiling.
    """

    tripped: Tensor
    healthy: Tensor
    high: Tensor
    blamed: Tensor
    barred: Tensor


def judge(
    stats: IntervalStats,
    history: History,
    *,
    early: bool = False,
    alarm: Tensor | None = None,
    mode: BreakerMode = True,
) -> Verdict:
    """Compares the end of the interval with the last healthy state, in units of log loss.

    The reference is the last healthy state's loss; the origin is the largest loss of the first few
    intervals. In units of log loss

        limit = max(min(reference + log 2, origin + 1/2), reference + 1/4)

    The breaker trips in four cases:

    - The last quarter's loss is above the limit by four standard errors of its own noise.
    - The whole interval's loss is above it by one standard error, `PATIENCE` intervals in a row. A
      noisy loss may stay at five times its former value and yet within four standard errors.
    - A quarter or less is left of the progress from the origin to the lowest loss, in twice as many
      intervals. A destroyed network may settle there.
    - Anything in the interval is not finite.

    An interval is healthy if its end is no worse than the reference and the best so far, by smaller
    margins. The last quarter of a short interval is a single loss. The mean must therefore be below
    the limit as well, and keep three quarters of the progress.

    Args:
        stats: the interval that just ended.
        history: the history before it.
        early: whether it is one of the first `ORIGIN_INTERVALS`.
        alarm: mask of the runs that a host found ruined within the interval.
        mode: what is undone.
    """
    found = torch.zeros_like(stats.finite) if alarm is None else alarm
    if mode == "finite":
        tripped = found | ~stats.finite
        return _with_blame(stats, history, tripped, ~tripped, torch.zeros_like(history.high))
    bins = stats.losses.shape[-1]
    quarter = max(1, bins // 4)
    recent = compressed_loss(stats.losses[..., -quarter:].mean(-1), history.initial_loss)
    error = history.noise / math.sqrt(max(1.0, quarter * stats.steps / bins))
    whole = compressed_loss(stats.losses.mean(-1), history.initial_loss)
    # The initial loss, which it is compared with, is that of a single batch and noisy itself.
    whole_error = history.noise * math.sqrt(1 + 1 / stats.steps)
    limit = _limit(history)
    above = whole > limit + whole_error
    lost = whole > _level_with(history, LOST_SHARE, stats.steps)
    high = torch.where(above | lost, history.high + 0.5 + 0.5 * above, 0.0)
    tripped = (recent > limit + 4 * error) | (high >= PATIENCE)
    if early:
        high = torch.zeros_like(high)
        tripped = torch.zeros_like(tripped)
    tripped = (tripped | ~stats.finite | found) & bool(mode)
    good = torch.minimum(history.reference + HEALTHY_MARGIN, history.best + 2 * HEALTHY_MARGIN)
    kept = whole <= _level_with(history, KEPT_SHARE, stats.steps)
    healthy = (recent <= good + 2 * error) & ~above & kept
    return _with_blame(stats, history, tripped, healthy & ~tripped, high)


def alarm_level(history: History, restored: Tensor | None = None) -> Tensor:
    """The loss, as the host sees it, above which a step is plainly ruined.

    In units of log loss it is the limit of `judge`, plus log 8 and four deviations of a step.

    Args:
        history: of the run.
        restored: the first loss after a restore, which the reference is about to follow.
    """
    if restored is not None:
        own = compressed_loss(restored - history.offset, history.initial_loss)
        own = torch.where(own.isfinite(), own, history.reference)
        history = replace(history, reference=torch.maximum(history.reference, own))
    level = _limit(history) + RUIN_MARGIN + 4 * history.noise
    return expanded_loss(level, history.initial_loss) + history.offset


def _limit(history: History) -> Tensor:
    limit = torch.minimum(history.reference + TRIP_MARGIN, history.origin + INITIAL_MARGIN)
    return torch.maximum(limit, history.reference + HEALTHY_MARGIN)


def _level_with(history: History, share: float, steps: int) -> Tensor:
    """The compressed loss of a run that has kept this share of its progress, and an error.

    Args:
        history: of the run.
        share: of the way from the origin to the lowest loss.
        steps: over which the loss is averaged that is compared.
    """
    # A run that blew up is noisy, and that noise must not hide it.
    error = history.noise.clamp_max(DEFAULT_NOISE) / math.sqrt(steps)
    progress = (history.origin - history.low - 4 * error).clamp_min(0.0)
    return history.origin - share * progress + error


def _with_blame(
    stats: IntervalStats, history: History, tripped: Tensor, healthy: Tensor, high: Tensor
) -> Verdict:
    """The verdict, with what a trip says about the learning rate.

    A loss that turns NaN from one step to the next, at a rate that has proved healthy, is the work
    of a batch. A rate that had just been raised is cut, but leaves no ceiling unless it trips again
    soon. Trips in a row are the rate's, until cuts have not helped either.
    """
    level = compressed_loss(stats.losses, history.initial_loss[..., None])
    grew = ((level > _limit(history)[..., None]) & level.isfinite()).any(-1)
    sudden = ~stats.finite & ~grew
    raised = history.log_scale > history.peak_log_scale + 1e-3
    again = (history.streak >= 1) & (history.streak < CUTS_IN_A_ROW)
    blamed = tripped & (~sudden | raised | again)
    barred = tripped & (~sudden | (raised & (history.since_trip < RELAPSE)))
    return Verdict(tripped, healthy, high, blamed, barred)


def after_restore(stats: IntervalStats, history: History) -> History:
    """The history by which an interval is judged: the old one, unless a restore came before it.

    After a restore the restored state's own loss, the first of the interval, becomes the reference.
    The alarm was false if this loss is nearer to that of the undone interval than to the old
    reference. The old reference then came from a lucky batch or from a part of the data, or the
    data have changed. The ceiling is lifted. If noise cannot explain it, the loss is measured anew:
    what was best and lowest counts no more. The cut stays, since taking it back was no gain.
    """
    own = compressed_loss(stats.losses[..., 0], history.initial_loss)
    fresh = (history.restored > 0) & own.isfinite()
    false_alarm = fresh & (own > torch.lerp(history.reference, history.undone, 0.5))
    # Noise alone lifts no single loss so far: the restored state shows the rise as well.
    beyond = torch.maximum(_limit(history), history.reference + 4 * history.noise)
    shown = false_alarm & ((own > beyond) | (own > _level_with(history, LOST_SHARE, steps=1)))
    return replace(
        history,
        ceiling=torch.where(false_alarm, NO_CEILING, history.ceiling),
        reference=torch.where(fresh, torch.maximum(history.reference, own), history.reference),
        best=torch.where(fresh, torch.maximum(history.best, own), history.best),
        low=torch.where(shown, own, history.low),
        origin=torch.where(shown, torch.maximum(history.origin, own), history.origin),
    )


def cut(history: History, verdict: Verdict) -> History:
    """Divides the scale by four where it is to blame, and moves its floor and its ceiling.

    There log_scale falls by log 4. The peak, by which the floor is measured, becomes at most the
    new log_scale + log 16. A ceiling is the old log_scale - log 2.
    """
    h = history
    ceiling = torch.where(verdict.barred, h.log_scale + CEILING, h.ceiling + CEILING_RISE)
    log_scale = torch.where(verdict.blamed, h.log_scale - CUT, h.log_scale)
    peak = torch.where(
        verdict.blamed,
        torch.minimum(h.peak_log_scale, log_scale + PEAK_ABOVE_CUT),
        h.peak_log_scale,
    )
    return replace(
        h,
        log_scale=log_scale,
        peak_log_scale=peak,
        ceiling=ceiling,
    )
