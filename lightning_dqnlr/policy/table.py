"""Q-values in a table: observations cut into bins, one free number for each bin and action."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from lightning_dqnlr.errors import ConfigurationError


class QTable(nn.Module):
    """A table that is looked up like a network; `table` is its only weight and starts at 0.

    Args:
        observation_size: F.
        num_actions: A.
        bins: for each chosen column of the observation, its ascending edges; k edges make k + 1
            bins, and a value on an edge belongs to the bin above. The other columns are not looked
            at. NaN counts as above the last edge.

    Attributes:
        table: (S, A), S the product of the numbers of bins.

    Raises:
        ConfigurationError: no column, one outside the observation, edges that do not ascend, no
            action.
    """

    table: Tensor

    def __init__(
        self, observation_size: int, num_actions: int, bins: Mapping[int, Sequence[float]]
    ) -> None:
        super().__init__()
        # Columns are strings where the bins come from JSON.
        self.bins = {int(column): tuple(map(float, edges)) for column, edges in bins.items()}
        _check_bins(self.bins, observation_size)
        if num_actions < 1:
            raise ConfigurationError(f"num_actions must be at least 1; got {num_actions}.")
        self.observation_size = observation_size
        self.num_actions = num_actions
        states = math.prod(len(edges) + 1 for edges in self.bins.values())
        self.register_buffer("table", torch.zeros(states, num_actions))
        for column, edges in self.bins.items():
            self.register_buffer(_name(column), torch.tensor(edges), persistent=False)

    def state_of(self, observation: Tensor) -> Tensor:
        """The state index (...) of an observation (..., F); the last column varies fastest."""
        state = torch.zeros(observation.shape[:-1], dtype=torch.long, device=observation.device)
        for column, edges in self.bins.items():
            values = observation[..., column].contiguous()
            state = state * (len(edges) + 1) + torch.bucketize(
                values, self.get_buffer(_name(column)), right=True
            )
        return state

    def forward(self, observation: Tensor) -> Tensor:
        """Q-values (..., A) of observations (..., F)."""
        return self.table[self.state_of(observation)]

    @property
    def config(self) -> dict[str, Any]:
        """The constructor's arguments as plain data: `QTable(**table.config)` rebuilds it."""
        return {
            "observation_size": self.observation_size,
            "num_actions": self.num_actions,
            "bins": {str(column): list(edges) for column, edges in self.bins.items()},
        }


def _name(column: int) -> str:
    return f"edges_{column}"


def _check_bins(bins: Mapping[int, Sequence[float]], observation_size: int) -> None:
    if not bins:
        raise ConfigurationError("bins is empty; name at least one column of the observation.")
    for column, edges in bins.items():
        if not 0 <= column < observation_size:
            raise ConfigurationError(
                f"bins: column {column} must lie in an observation of {observation_size}."
            )
        if not edges or not all(low < high for low, high in pairwise(edges)):
            raise ConfigurationError(f"bins[{column}] must ascend strictly; got {list(edges)}.")
