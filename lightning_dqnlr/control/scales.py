"""What losses and gradients are measured by: fixed by the first of them that say something.

Progress is measured in logarithms of the loss, which needs an origin. Zero is the natural one of
most losses, and not of all: a constant may be added, a correlation begins at zero and falls, a log
likelihood is of either sign. To first order the weights can explain a loss of

    |g| |w|

by the first gradient g and the weights w (of a homogeneous network it is the loss times the degree,
by Euler's theorem). A first loss that is negative or `UNEXPLAINED` times larger is measured from an
`offset` instead, so that it begins at that value. So is a loss that falls below its origin later.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from lightning_dqnlr.control.features import compressed_loss, expanded_loss, slope
from lightning_dqnlr.control.history import UNSEEN, History
from lightning_dqnlr.control.telemetry import IntervalStats

DEFAULT_NOISE = 0.25
UNEXPLAINED = 50.0  # the tasks of meta-training reach 30
_LEVELS = ("level", "fast", "slow", "best", "reference", "origin", "low")


def from_origin(stats: IntervalStats, history: History) -> IntervalStats:
    """The same statistics, with losses measured from the history's offset."""
    return stats._replace(losses=stats.losses - history.offset[..., None])


def fix_scales(stats: IntervalStats, history: History) -> History:
    """Fixes what is not fixed yet, by the first loss and gradient that are not zero.

    Args:
        stats: the interval that just ended, with losses as they are.
        history: the history before it.
    """
    return _fix_gradient_scale(stats, _fix_loss_scale(stats, history))


def all_fixed(history: History) -> bool:
    """Whether losses and gradients of all runs have something to be measured by."""
    h = history
    return bool(((h.initial_loss != 0) & (h.first_log_gradient != UNSEEN)).all())


def _fix_loss_scale(stats: IntervalStats, h: History) -> History:
    unfixed = h.initial_loss == 0
    losses = stats.losses.nan_to_num(0.0, 0.0, 0.0)
    first = losses.gather(-1, losses.abs().argmax(-1, keepdim=True)).squeeze(-1)
    explained = _explained(stats)
    foreign = unfixed & (explained > 0) & ((first < 0) | (first > UNEXPLAINED * explained))
    offset = torch.where(foreign, first - explained, h.offset)
    initial = first - offset
    level = compressed_loss(initial, initial)
    fixed = {
        "offset": offset,
        "initial_loss": initial,
        "loss": initial,
        "noise": torch.full_like(level, DEFAULT_NOISE),
        **dict.fromkeys(_LEVELS, level),
    }
    return replace(h, **{k: torch.where(unfixed, v, getattr(h, k)) for k, v in fixed.items()})


def _fix_gradient_scale(stats: IntervalStats, h: History) -> History:
    norm = stats.gradient_norm
    unfixed = (h.first_log_gradient == UNSEEN) & (norm > 0) & norm.isfinite()
    first = torch.where(unfixed, norm.log(), h.first_log_gradient)
    log_gradient = torch.where(unfixed, first, h.log_gradient)
    return replace(h, first_log_gradient=first, log_gradient=log_gradient)


def lower_origin(stats: IntervalStats, history: History) -> History:
    """Moves the origin of losses that have fallen below it, and all that was measured from it.

    Afterwards the interval's mean loss is what its gradient explains, or as far above the origin as
    it was below.

    Args:
        stats: the interval that just ended, with losses from the origin so far.
        history: the history before it.
    """
    h = history
    mean = stats.losses.mean(-1)
    below = (mean < 0) & (h.initial_loss > 0) & stats.finite
    if not bool(below.any()):
        return h
    shift = torch.where(below, torch.maximum(_explained(stats), mean.abs()) - mean, 0.0)
    initial = h.initial_loss + shift
    names = (*_LEVELS, "undone")
    raised = {name: expanded_loss(getattr(h, name), h.initial_loss) + shift for name in names}
    levels = {name: compressed_loss(loss, initial) for name, loss in raised.items()}
    # Small differences of the compressed loss shrink as its slope grows.
    scale = slope(h.loss, h.initial_loss) / slope(h.loss + shift, initial)
    moved = {
        **levels,
        "offset": h.offset - shift,
        "initial_loss": initial,
        "loss": h.loss + shift,
        **{name: getattr(h, name) * scale for name in ("noise", "drop", "forecast")},
    }
    return replace(h, **{k: torch.where(below, v, getattr(h, k)) for k, v in moved.items()})


def _explained(stats: IntervalStats) -> Tensor:
    """|g| |w|, 0 where either is not finite."""
    return (stats.gradient_norm * stats.weight_norm).nan_to_num(0.0, 0.0, 0.0)
