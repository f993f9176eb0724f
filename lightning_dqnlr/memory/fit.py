"""The next run's learning rate, by a Gaussian process over its logarithm.

A run that holds 2^x times the policy's own rate ends with a log loss of y. For the runs of a model,

    y(x) = c + m(x) + f(x) + noise,   f ~ GP(0, k),   k(x, x') = s^2 exp(-(x - x')^2 / 2 l^2),

with a level c of the model's own, of which nothing is assumed. The mean m and the constants were
measured on validation tasks (docs/memory.md). Runs of the same structure at another width or batch
size take part. Their kernel falls with the distance in log2 width and log2 batch.

This is Gaussian process regression (Rasmussen and Williams 2006, chapter 2). The criterion is
expected improvement (Jones et al. 1998).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

_LOWEST, _HIGHEST = -3.0, 3.0  # x that is tried
_STEP = 0.25  # between candidates
_LEVEL = 30.0  # standard deviation of a model's own level: nothing is known
_SPREAD, _LENGTH, _NOISE = 0.1, 1.2, 0.15  # s, l and a run's own noise, in log loss
_WIDTH_LENGTH, _BATCH_LENGTH = 2.0, 2.0  # in log2
_OPTIMUM, _CURVATURE = 0.5, 0.03  # m(x) = curvature * (x - optimum)^2
_SETTLED = 0.01  # an expected improvement that is not worth a run


class Point(NamedTuple):
    """What a run tells.

    Attributes:
        x: log2 of its learning rate over the policy's own.
        y: log of its loss.
        group: number of its model.
        width: log2 of that model's width over the present one's.
        batch: log2 of its batch size over the present one's.
        error: standard error of y by the run's own noise, which comes on top of the seeds'.
    """

    x: float
    y: float
    group: int = 0
    width: float = 0.0
    batch: float = 0.0
    error: float = 0.0


class Fit(NamedTuple):
    """What is believed of a model.

    Attributes:
        x: as in `Point`, of the candidates, (C,).
        mean, deviation: of the log loss at them, (C,).
        improvement: that is expected over the best run, (C,).
        best: index of the candidate with the lowest mean.
    """

    x: Tensor
    mean: Tensor
    deviation: Tensor
    improvement: Tensor
    best: int


def fit(points: Sequence[Point]) -> Fit:
    """Regression on runs, the present model's being group 0.

    Args:
        points: one for each run; there may be none of group 0.

    Example:
        >>> found = fit([Point(0.0, 1.0), Point(1.0, 0.8), Point(2.0, 0.9)])
        >>> 0.5 <= float(found.x[found.best]) <= 2.0
        True
    """
    candidates = torch.arange(_LOWEST, _HIGHEST + _STEP / 2, _STEP, dtype=torch.float64)
    if not points:
        prior = _mean(candidates)
        spread = torch.full_like(candidates, _SPREAD)
        return Fit(candidates, prior, spread, spread * 0, int(prior.argmin()))
    seen = _Columns.of(points)
    wanted = _Columns.of([Point(float(x), 0.0) for x in candidates])
    noise = _NOISE**2 + torch.tensor([p.error**2 for p in points], dtype=torch.float64)
    factor = torch.linalg.cholesky(_kernel(seen, seen) + noise.diag())
    rest = (seen.y - _mean(seen.x))[:, None]
    cross = _kernel(seen, wanted)
    mean = _mean(candidates) + (cross.T @ torch.cholesky_solve(rest, factor))[:, 0]
    explained = torch.linalg.solve_triangular(factor, cross, upper=False).square().sum(0)
    deviation = (_kernel(wanted, wanted).diag() - explained).clamp_min(1e-12).sqrt()
    reached = _reached(points, candidates, mean)
    improvement = _expected_improvement(mean, deviation, reached)
    return Fit(candidates, mean, deviation, improvement, int(mean.argmin()))


class Choice(NamedTuple):
    """Where to run next: x as in `Point`, and the reason in words."""

    x: float
    why: str


def next_run(found: Fit, low: float = -math.inf, high: float = math.inf) -> Choice:
    """The candidate of the largest expected improvement, or the best once none is worth a run.

    Args:
        found: the fit.
        low: smallest x that is allowed.
        high: largest x that is allowed.

    Example:
        >>> next_run(fit([Point(0.0, 1.0), Point(1.0, 0.5), Point(2.0, 1.0)])).x
        1.0
    """
    beyond = (found.x < low) | (found.x > high)
    index = int(found.improvement.masked_fill(beyond, -math.inf).argmax())
    best = int(found.mean.masked_fill(beyond, math.inf).argmin())
    gain = float(found.improvement[index])
    if bool(beyond.all()):
        return Choice(min(max(float(found.x[best]), low), high), "the bounds leave no other")
    if gain < _SETTLED:
        return Choice(float(found.x[best]), "settled: the lowest loss by the fit")
    return Choice(float(found.x[index]), f"expected to lower the loss by {gain:.1%}")


class _Columns(NamedTuple):
    x: Tensor
    y: Tensor
    group: Tensor
    width: Tensor
    batch: Tensor

    @classmethod
    def of(cls, points: Sequence[Point]) -> _Columns:
        names = cls._fields
        return cls(
            *(torch.tensor([getattr(p, n) for p in points], dtype=torch.float64) for n in names)
        )


def _mean(x: Tensor) -> Tensor:
    return _CURVATURE * (x - _OPTIMUM).square()


def _kernel(a: _Columns, b: _Columns) -> Tensor:
    def distance(name: str, length: float) -> Tensor:
        return (getattr(a, name)[:, None] - getattr(b, name)[None]).square() / (2 * length**2)

    near = distance("x", _LENGTH)
    near = near + distance("width", _WIDTH_LENGTH) + distance("batch", _BATCH_LENGTH)
    same = a.group[:, None] == b.group[None]
    return _SPREAD**2 * (-near).exp() + _LEVEL**2 * same


def _reached(points: Sequence[Point], candidates: Tensor, mean: Tensor) -> Tensor:
    """The lowest mean where the present model has been run; of all if it has not been."""
    tried = torch.tensor([p.x for p in points if p.group == 0], dtype=torch.float64)
    if not len(tried):
        return mean.min()
    nearest = (candidates[:, None] - tried[None]).abs().argmin(0)
    return mean[nearest].min()


def _expected_improvement(mean: Tensor, deviation: Tensor, reached: Tensor) -> Tensor:
    gain = (reached - mean) / deviation
    normal = torch.distributions.Normal(0.0, 1.0)
    density = torch.exp(-gain.square() / 2) / math.sqrt(2 * math.pi)
    return deviation * (gain * normal.cdf(gain) + density)
