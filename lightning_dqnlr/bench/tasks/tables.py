"""A regression on generated numbers, by an architecture that no family draws."""

from __future__ import annotations

import math
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_dqnlr.bench.tasks.task import USUAL_LR, fixed_draws, own_task, squared_error
from lightning_dqnlr.tasks.data.examples import Examples, split_off_a_fifth
from lightning_dqnlr.tasks.task import Task

COLUMNS = 10


class GatedNetwork(nn.Module):
    """Residual gated linear units (Dauphin et al. 2017, arXiv:1612.08083) with LayerNorm."""

    def __init__(self, width: int = 32, depth: int = 3) -> None:
        super().__init__()
        self.into = nn.Linear(COLUMNS, width)
        self.out = nn.Linear(width, 1)
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(depth))
        self.gates = nn.ModuleList(nn.Linear(width, 2 * width) for _ in range(depth))

    def forward(self, rows: Tensor) -> Tensor:
        """Rows (N, COLUMNS) to targets (N, 1)."""
        hidden = self.into(rows)
        for norm, gate in zip(self.norms, self.gates, strict=True):
            hidden = hidden + F.glu(gate(norm(hidden)), 1)
        return torch.as_tensor(self.out(hidden))


def friedman(examples: int) -> Examples:
    """The first problem of Friedman 1991 (MARS, section 4.3), with noise of deviation 1.

    y = 10 sin(pi x1 x2) + 20 (x3 - 0.5)^2 + 10 x4 + 5 x5

    The ten columns are uniform in [0, 1], and five of them say nothing. Rows are returned in -1..1
    and targets in standard units; a fifth is held out.
    """
    draws = fixed_draws("gated regression")
    rows = torch.rand(examples, COLUMNS, generator=draws.generator)
    first, second, third, fourth, fifth, *_ = rows.unbind(1)
    waves = 10.0 * torch.sin(math.pi * first * second) + 20.0 * (third - 0.5).square()
    targets = waves + 10.0 * fourth + 5.0 * fifth + draws.normal(examples)
    targets = (targets - targets.mean()) / targets.std()
    return split_off_a_fifth(2.0 * rows - 1.0, targets.unsqueeze(1))


def gated_regression() -> Task:
    """Residual gated units on Friedman's function, plain SGD."""
    sgd = partial(torch.optim.SGD, lr=USUAL_LR["sgd"])
    data = friedman(1280)
    return own_task("gated regression", GatedNetwork, squared_error, sgd, data, horizon=800)
