"""The rival: a cosine schedule with warm-up whose peak was tuned by a grid search.

All peaks and seeds of a task train side by side as replicas. Runs that diverge count: a loss that
is not finite is replaced by `DIVERGED` times the initial loss.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from lightning_dqnlr.checks import Finite, Positive
from lightning_dqnlr.control.features import LOSS_FLOOR
from lightning_dqnlr.envs.environment import Engine, Losses
from lightning_dqnlr.envs.vector import ON_CPU
from lightning_dqnlr.tasks.task import Task

DIVERGED = 10.0
WARM_UP = 0.05
# Quarter decades, as 17 peaks over four decades have, but wide enough for badly scaled tasks.
PEAKS = tuple(10.0 ** (exponent / 4) for exponent in range(-24, 9))


class TunedCosine(NamedTuple):
    """The best peak by mean log loss over the seeds, and what it reached.

    The losses of a task that nobody can use are not finite; such a result is not kept on disk.
    """

    peak: Positive
    train_loss: Finite
    validation_loss: Finite
    initial_loss: Finite
    train_losses: tuple[Finite, ...]  # mean per peak


def warm_up_steps(horizon: int) -> int:
    """Steps of the warm-up: 5% of the run, and at least one."""
    return max(1, round(WARM_UP * horizon))


def cosine(step: int, horizon: int) -> float:
    """Share of the peak at a step: linear warm-up over 5% of the run, then a cosine to zero.

    The cosine is that of Loshchilov & Hutter 2017 (arXiv:1608.03983).
    """
    ramp = warm_up_steps(horizon)
    if step < ramp:
        return (step + 1) / ramp
    return 0.5 * (1 + math.cos(math.pi * (step - ramp) / max(1, horizon - ramp)))


def run_cosine(task: Task, peaks: Tensor, seeds: Sequence[int], engine: Engine = ON_CPU) -> Losses:
    """Trains one replica per (peak, seed) pair to the horizon."""
    return engine.follow(task, seeds, lambda step: peaks * cosine(step, task.horizon))


def tune_cosine(
    task: Task,
    *,
    peaks: Sequence[float] = PEAKS,
    seeds: Sequence[int] = (0, 1, 2),
    engine: Engine = ON_CPU,
) -> TunedCosine:
    """Grid search over the peak; the winner has the lowest mean of log(loss + e) over seeds."""
    grid = torch.tensor(peaks).repeat_interleave(len(seeds))
    start = engine.follow(task, seeds, lambda _: torch.zeros(len(seeds)), steps=0)
    initial_loss = start.train.mean().item()
    losses = run_cosine(task, grid, list(seeds) * len(peaks), engine)
    train = _finite(losses.train, initial_loss).view(len(peaks), -1)
    validation = _finite(losses.validation, initial_loss)
    mean = _geometric_mean(train, initial_loss)
    best = int(mean.argmin())
    held_out = _geometric_mean(validation.view(len(peaks), -1), initial_loss)
    return TunedCosine(
        peak=float(peaks[best]),
        train_loss=mean[best].item(),
        validation_loss=held_out[best].item(),
        initial_loss=initial_loss,
        train_losses=tuple(mean.tolist()),
    )


def regret(loss: Tensor, rival_loss: float, initial_loss: float) -> Tensor:
    """log((loss + e) / (rival_loss + e)) with e = 1% of the initial loss; diverged runs count."""
    floor = LOSS_FLOOR * abs(initial_loss)
    loss = _finite(loss, initial_loss).clamp_min(0.0)
    return ((loss + floor) / (max(rival_loss, 0.0) + floor)).log()


def _finite(loss: Tensor, initial_loss: float) -> Tensor:
    limit = DIVERGED * abs(initial_loss)
    return torch.nan_to_num(loss, limit, limit).clamp_max(limit)


def _geometric_mean(losses: Tensor, initial_loss: float) -> Tensor:
    floor = LOSS_FLOOR * abs(initial_loss)
    return (losses.clamp_min(0.0) + floor).log().mean(-1).exp() - floor
