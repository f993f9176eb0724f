"""How fast a loss is reached, as a performance profile.

Dolan & Moré 2002, "Benchmarking optimization software with performance profiles"
(arXiv:cs/0102001): the share of problems that a method solves within a factor tau of the time of
the reference. Here a problem is a (task, seed), the time is in optimizer steps or seconds, and
the reference is the tuned cosine rather than the best method, so that tau may be below one.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

LIMIT = 4.0  # the area is taken over tau in [1 / LIMIT, LIMIT]


def steps_to(steps: Sequence[float], losses: Sequence[float], target: float) -> float:
    """The first step at which a curve is at or below a target, linear between its points.

    Args:
        steps: of the points, ascending.
        losses: at these steps; a NaN or an infinite loss reaches nothing.
        target: the loss to reach.

    Returns:
        The step, at least 1 (a target met before training costs one step); infinite if never.
    """
    previous: tuple[float, float] | None = None
    for step, loss in zip(steps, losses, strict=True):
        if loss <= target:
            return max(1.0, _crossing(previous, (step, loss), target))
        previous = (step, loss) if math.isfinite(loss) else None
    return math.inf


def _crossing(
    before: tuple[float, float] | None, after: tuple[float, float], target: float
) -> float:
    if before is None:
        return after[0]
    share = (before[1] - target) / (before[1] - after[1])
    return before[0] + share * (after[0] - before[0])


def fractions(ratios: Sequence[float], factors: Sequence[float]) -> list[float]:
    """rho(tau): the share of the ratios that are at most tau, for each tau in `factors`."""
    return [sum(ratio <= factor for ratio in ratios) / len(ratios) for factor in factors]


def area(ratios: Sequence[float], limit: float = LIMIT) -> float:
    """The mean of rho(tau) over log tau in [-log limit, log limit], exactly.

    A step function integrates in closed form: each ratio adds the part of the range above it. So
    0 is never (or slower than `limit` times), 1/2 is as fast as the reference, 1 is `limit` times
    faster, everywhere.
    """
    width = 2 * math.log(limit)
    clipped = [min(max(ratio, 1 / limit), limit) for ratio in ratios]
    return sum((math.log(limit) - math.log(ratio)) / width for ratio in clipped) / len(ratios)
