"""The circuit breaker's judgement of an interval: healthy, suspicious, or to be undone.

A run that climbs past stability rarely finds back, so a blown-up interval is undone: the host
restores the last healthy weights and optimizer state, and the learning rate is cut. Three rules
keep the breaker itself from doing harm. Only a healthy state is ever stored. After a restore the
threshold is raised to the restored state's own loss, so that it cannot trip at once again. The
floor of the learning rate follows every cut down, so that the cut always acts.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from lightning_dqnlr.control.features import History, compressed_loss
from lightning_dqnlr.control.telemetry import IntervalStats

CUT = math.log(4.0)
TRIP_MARGIN = math.log(2.0)
HEALTHY_MARGIN = 0.25
INITIAL_MARGIN = 0.5
DEFAULT_NOISE = 0.25


class Verdict(NamedTuple):
    """Two disjoint masks of shape `lead`; neither means suspicious: keep on, store nothing."""

    tripped: Tensor
    healthy: Tensor


def judge(stats: IntervalStats, history: History) -> Verdict:
    """Compares the end of the interval with the last healthy state, in units of log loss.

    Trips when the last quarter's compressed loss is above the reference (or above the initial
    loss) by the margin plus four standard errors of its own noise, or when anything in the interval
    was not finite. Healthy means no worse than the reference and the best so far by the smaller
    margins.

    Args:
        stats: the interval that just ended.
        history: the history before it.
    """
    bins = stats.losses.shape[-1]
    quarter = max(1, bins // 4)
    recent = compressed_loss(stats.losses[..., -quarter:].mean(-1), history.initial_loss)
    error = history.noise / math.sqrt(max(1.0, quarter * stats.steps / bins))
    start = compressed_loss(history.initial_loss, history.initial_loss)
    limit = torch.minimum(history.reference + TRIP_MARGIN, start + INITIAL_MARGIN)
    limit = torch.maximum(limit, history.reference + HEALTHY_MARGIN) + 4 * error
    good = torch.minimum(history.reference + HEALTHY_MARGIN, history.best + 2 * HEALTHY_MARGIN)
    tripped = ~stats.finite | (recent > limit)
    return Verdict(tripped, ~tripped & (recent <= good + 2 * error))
