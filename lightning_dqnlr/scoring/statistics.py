"""Statistics of scores (tasks, seeds), after Agarwal et al. 2021 (arXiv:2108.13264).

Scores are a (tasks, seeds) tensor, or one (seeds,) tensor per task where tasks have different
numbers of seeds. Lower is better throughout: the scores are regrets.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from statistics import NormalDist
from typing import NamedTuple

import torch
from torch import Tensor

Scores = Tensor | Sequence[Tensor]  # (T, S), or T times (S_t,)
Statistic = Callable[[Tensor], Tensor]  # (..., N) -> (...)

WITHIN = math.log(1.02)  # a loss at most 2% above the rival's
SAMPLES = 2000


class Interval(NamedTuple):
    """All numbers from `low` to `high`."""

    low: float
    high: float


class Estimate(NamedTuple):
    """A figure with its 95% interval."""

    value: float
    interval: Interval


class Summary(NamedTuple):
    """A method's regrets over all tasks and seeds."""

    iqm: float
    interval: Interval  # 95%, stratified bootstrap of the IQM
    median: float
    p90: float
    worst: float
    within: float  # share of runs at most 2% above the rival

    @property
    def estimate(self) -> Estimate:
        """The IQM with its interval."""
        return Estimate(self.iqm, self.interval)


def interquartile_mean(values: Tensor) -> float:
    """Mean of the middle half of the values, (N,); a quarter is cut at each end, rounded down."""
    return middle_mean(values.flatten()).item()


def middle_mean(values: Tensor) -> Tensor:
    """The interquartile mean over the last dimension, (..., N) -> (...)."""
    ordered = values.sort(-1).values
    cut = values.shape[-1] // 4
    return ordered[..., cut : values.shape[-1] - cut].mean(-1)


def stratified_bootstrap(
    scores: Scores,
    statistic: Statistic = middle_mean,
    *,
    samples: int = SAMPLES,
    seed: int = 0,
) -> Interval:
    """95% percentile interval of a statistic of all runs together, resampled within each task."""
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.cat([_resample(row, samples, generator) for row in scores], dim=-1)
    return _percentile_interval(statistic(drawn))


def summarize(scores: Scores, *, samples: int = SAMPLES) -> Summary:
    """All runs together: IQM with its interval, median, 90th percentile, worst, share within 2%."""
    flat = torch.cat([row.flatten() for row in scores]).double()
    return Summary(
        iqm=interquartile_mean(flat),
        interval=stratified_bootstrap(scores, samples=samples),
        median=flat.quantile(0.5).item(),
        p90=flat.quantile(0.9).item(),
        worst=flat.max().item(),
        within=(flat <= WITHIN).double().mean().item(),
    )


def probability_of_improvement(scores: Scores, rival: Scores) -> float:
    """Mean over tasks of P(X < Y) + P(X = Y) / 2, over all pairs of runs (their equation 2).

    X are the scores, and Y the rival's on the same tasks in the same order. Their numbers of seeds
    may differ.
    """
    rows = [_better(x, y) for x, y in zip(scores, rival, strict=True)]
    return torch.stack(rows).mean().item()


def improvement(scores: Scores, rival: Scores, *, over_tasks: bool = False) -> Estimate:
    """The probability of improvement with its interval; see `improvement_interval`."""
    interval = improvement_interval(scores, rival, over_tasks=over_tasks)
    return Estimate(probability_of_improvement(scores, rival), interval)


def improvement_interval(
    scores: Scores,
    rival: Scores,
    *,
    samples: int = SAMPLES,
    seed: int = 0,
    over_tasks: bool = False,
) -> Interval:
    """95% percentile interval of the probability of improvement.

    The runs of both sides are resampled within each task: what other seeds would give. With
    `over_tasks` the tasks are resampled, too: what other tasks like these would give.
    """
    generator = torch.Generator().manual_seed(seed)
    rows = [
        _better(_resample(x, samples, generator), _resample(y, samples, generator))
        for x, y in zip(scores, rival, strict=True)
    ]
    by_task = torch.stack(rows)
    if over_tasks:
        drawn = torch.randint(len(by_task), by_task.shape, generator=generator)
        by_task = by_task.gather(0, drawn)
    return _percentile_interval(by_task.mean(0))


def mean_gap(scores: Tensor, rival: Tensor) -> Estimate:
    """Mean of (S,) runs minus that of (R,) others, with Welch's 95% interval.

    For one task with few runs. A bootstrap of three calls equals different four times as often as
    it says, and one of five twice as often. With one run on a side the interval is everything.

    Example:
        >>> mean_gap(torch.tensor([1.0, 2.0]), torch.tensor([1.0])).interval
        Interval(low=-inf, high=inf)
    """
    gap = (scores.double().mean() - rival.double().mean()).item()
    if min(len(scores), len(rival)) < 2:
        return Estimate(gap, Interval(-math.inf, math.inf))
    parts = [row.double().var().item() / len(row) for row in (scores, rival)]
    freedom = [part**2 / (len(row) - 1) for part, row in zip(parts, (scores, rival), strict=True)]
    if not sum(freedom):
        return Estimate(gap, Interval(gap, gap))
    width = student_quantile(sum(parts) ** 2 / sum(freedom)) * math.sqrt(sum(parts))
    return Estimate(gap, Interval(gap - width, gap + width))


def student_quantile(freedom: float) -> float:
    """The 97.5% quantile of Student's t (Abramowitz & Stegun 1964, equation 26.7.5).

    It is 1% too low at 2 degrees of freedom, and nearer from 3 on. Below 2 nothing is known.

    Example:
        >>> round(student_quantile(8), 3), student_quantile(1.5)
        (2.306, inf)
    """
    if freedom < 2:
        return math.inf
    z = NormalDist().inv_cdf(0.975)
    terms = (
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
        (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92160,
    )
    return z + sum(term / freedom**power for power, term in enumerate(terms, 1))


def _resample(row: Tensor, samples: int, generator: torch.Generator) -> Tensor:
    """(S,) -> (samples, S), drawn with replacement."""
    return row[torch.randint(len(row), (samples, len(row)), generator=generator)]


def _better(x: Tensor, y: Tensor) -> Tensor:
    """P(X < Y) + P(X = Y) / 2 over the pairs of the last dimensions."""
    first = x.unsqueeze(-1)
    second = y.unsqueeze(-2)
    return ((first < second).double() + 0.5 * (first == second).double()).mean((-2, -1))


def _percentile_interval(values: Tensor) -> Interval:
    tail = (1 - 0.95) / 2
    ends = torch.tensor([tail, 1 - tail], dtype=torch.float64)
    return Interval(*values.double().quantile(ends).tolist())


LIMIT = 4.0  # the area is taken over tau in [1 / LIMIT, LIMIT]


def steps_to(steps: Sequence[float], losses: Sequence[float], target: float) -> float:
    """The first step at which a curve is at or below a target, linear between its points.

    It is at least 1 (a target met before training costs one step), and infinite if the target is
    never met. A NaN or an infinite loss reaches nothing.
    """
    last_step = 0.0
    last_loss = math.inf
    for step, loss in zip(steps, losses, strict=True):
        if loss <= target and not math.isfinite(last_loss):
            return max(1.0, step)
        if loss <= target:
            share = (last_loss - target) / (last_loss - loss)
            return max(1.0, last_step + share * (step - last_step))
        last_step = step
        last_loss = loss
    return math.inf


def fractions(ratios: Sequence[float], factors: Sequence[float]) -> list[float]:
    """rho(tau): the share of the ratios that are at most tau, for each tau in `factors`."""
    return [sum(ratio <= factor for ratio in ratios) / len(ratios) for factor in factors]


def area(ratios: Sequence[float], limit: float = LIMIT) -> float:
    """The mean of rho(tau) over log tau in [-log limit, log limit], exactly.

    A step function integrates in closed form: each ratio adds the part of the range above it. An
    area of 0 means never, or slower than `limit` times. 1/2 is as fast as the reference, and 1 is
    `limit` times faster everywhere.
    """
    width = 2 * math.log(limit)
    clipped = [min(max(ratio, 1 / limit), limit) for ratio in ratios]
    return sum((math.log(limit) - math.log(ratio)) / width for ratio in clipped) / len(ratios)
