"""Statistics of regrets (tasks, seeds), after Agarwal et al. 2021 (arXiv:2108.13264)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

Statistic = Callable[[Tensor], float]


def interquartile_mean(values: Tensor) -> float:
    """Mean of the middle half of the values, (N,); a quarter is cut at each end, rounded down."""
    ordered = values.flatten().sort().values
    cut = len(ordered) // 4
    return ordered[cut : len(ordered) - cut].mean().item()


def stratified_bootstrap(
    scores: Tensor,
    statistic: Statistic = interquartile_mean,
    *,
    samples: int = 2000,
    confidence: float = 0.95,
    seed: int = 0,
) -> tuple[float, float]:
    """Percentile interval of a statistic; runs are resampled within each task.

    Args:
        scores: (tasks, seeds).
        statistic: of any such matrix.
        samples: bootstrap replicates.
        confidence: mass between the two ends.
        seed: of the resampling.
    """
    generator = torch.Generator().manual_seed(seed)
    tasks, runs = scores.shape
    values = torch.empty(samples, dtype=torch.float64)
    for i in range(samples):
        index = torch.randint(runs, (tasks, runs), generator=generator)
        values[i] = statistic(scores.gather(1, index))
    tail = (1 - confidence) / 2
    low, high = values.quantile(torch.tensor([tail, 1 - tail], dtype=torch.float64)).tolist()
    return low, high
