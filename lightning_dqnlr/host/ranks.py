"""What the processes of a data-parallel run agree on."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


def mean_over_ranks(values: Tensor) -> Tensor:
    """The mean of a tensor over all processes; NaN where any of them has NaN."""
    return sum_over_ranks(values) / dist.get_world_size()


def sum_over_ranks(values: Tensor) -> Tensor:
    """The sum of a tensor over all processes; NaN where any of them has NaN."""
    total = values.clone()
    dist.all_reduce(total)
    return total


def of_all_ranks(state: dict[str, Any]) -> list[dict[str, Any]]:
    """Every process's own plain data, in the order of ranks.

    Args:
        state: builtins and small tensors.
    """
    states: list[dict[str, Any]] = [{} for _ in range(dist.get_world_size())]
    dist.all_gather_object(states, state)
    return states


def from_rank_zero(value: Tensor, device: torch.device) -> Tensor:
    """Rank 0's value, on the host.

    Args:
        value: of the same shape and type on every process.
        device: where the process group communicates (the device of the weights).
    """
    on_device = value.to(device)
    dist.broadcast(on_device, src=0)
    return on_device.cpu()


def several_ranks() -> bool:
    """Whether this is one of several processes of an initialised process group."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def world_size() -> int:
    """How many processes there are."""
    return dist.get_world_size() if several_ranks() else 1


def rank() -> int:
    """The number of this process."""
    return dist.get_rank() if several_ranks() else 0


def largest_over_ranks(value: float, device: torch.device) -> float:
    """The largest value over all processes.

    Args:
        value: of this process.
        device: where the process group communicates.
    """
    largest = torch.tensor(float(value), device=device)  # a count is an integer on some
    dist.all_reduce(largest, dist.ReduceOp.MAX)
    return float(largest.item())
