"""Epsilon-greedy exploration, for policies and for learners."""

from __future__ import annotations

import torch
from torch import Tensor


def epsilon_greedy(
    q_values: Tensor, epsilon: float | Tensor, generator: torch.Generator | None = None
) -> Tensor:
    """With probability epsilon an action drawn evenly from all, otherwise the greedy one.

    As many random numbers are drawn whatever epsilon is, so a schedule of epsilon does not change
    the randomness that follows.

    Args:
        q_values: (..., A). Ties go to the lowest index.
        epsilon: in [0, 1]; a tensor broadcastable to (...) gives each replica its own.
        generator: source of the randomness; drawn on its own device.

    Returns:
        (...) int64 actions on the device of q_values.
    """
    shape, device = q_values.shape[:-1], q_values.device
    source = device if generator is None else generator.device
    explores = torch.rand(shape, generator=generator, device=source).to(device) < epsilon
    anything = torch.randint(q_values.shape[-1], shape, generator=generator, device=source)
    return torch.where(explores, anything.to(device), q_values.argmax(dim=-1))
