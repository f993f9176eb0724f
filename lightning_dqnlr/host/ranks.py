"""What the processes of a data-parallel run agree on."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor


def mean_over_ranks(values: Tensor) -> Tensor:
    """The mean of a tensor over all processes; NaN where any of them has NaN."""
    total = values.clone()
    dist.all_reduce(total)
    return total / dist.get_world_size()


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


def largest_over_ranks(value: float, device: torch.device) -> float:
    """The largest value over all processes.

    Args:
        value: of this process.
        device: where the process group communicates.
    """
    largest = torch.tensor(value, device=device)
    dist.all_reduce(largest, dist.ReduceOp.MAX)
    return float(largest.item())
