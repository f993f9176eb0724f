"""The losses of runs: on a log scale, and which peaks of a grid survive a race by them."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from lightning_dqnlr.bench.runs.record import Record
from lightning_dqnlr.scoring.cosine import regret

TRAIN, VALIDATION = "train", "validation"
FEWEST = 3  # LRs that a race over a grid keeps, however far ahead the best is


def initial_loss(runs: Sequence[Record], which: str = TRAIN) -> float:
    """Mean loss before training, of the runs that came as far; NaN if none did."""
    losses = [run.initial_train if which == TRAIN else run.initial_validation for run in runs]
    known = [loss for loss in losses if math.isfinite(loss) and loss != 0]
    return sum(known) / len(known) if known else math.nan


def final_loss(run: Record, which: str = TRAIN) -> float:
    """The loss after training; NaN if the run diverged or raised."""
    loss = run.final_train if which == TRAIN else run.final_validation
    return math.nan if loss is None or run.failure is not None else loss


def log_losses(runs: Sequence[Record], initial: float, which: str = TRAIN) -> Tensor:
    """log((loss + e) / e) of each run, (S,) float64, with e = 1% of the initial loss.

    A loss below zero counts as zero. A diverged run counts as ten times the initial loss.
    """
    losses = torch.tensor([final_loss(run, which) for run in runs], dtype=torch.float64)
    return regret(losses, 0.0, initial)


def diverged(run: Record) -> bool:
    """Whether a run raised, lost its loss to infinity, or ended above where it started."""
    return not final_loss(run) <= run.initial_train


def survivors(runs: Sequence[Record], margin: float) -> frozenset[float | None]:
    """The LRs of a grid that may still become the best by the mean over seeds.

    An LR survives if log(loss + e) <= best + margin, or if it is among the best three (of equal
    ones the lower). The runs are of one task, method and seed, one per LR. The margin is in nats
    of training loss; 0.7 is a factor of two. A diverged run counts at ten times the initial loss.
    """
    initial = initial_loss(runs)
    losses = log_losses(runs, 1.0 if math.isnan(initial) else initial).tolist()
    ranked = sorted((loss, run.lr or 0.0, run.lr) for loss, run in zip(losses, runs, strict=True))
    return frozenset(
        lr
        for place, (loss, _, lr) in enumerate(ranked)
        if place < FEWEST or loss <= ranked[0][0] + margin
    )
