"""Demonstrations: a simple rule that seeds the replay with good and bad peaks alike."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from lightning_dqnlr.envs.vector import VectorLREnv


def demonstrate(env: VectorLREnv, ratio: Tensor) -> Tensor:
    """The actions of a rule that looks for a peak by the update ratio alone.

    Steers the ratio of update to weights to a target of each replica's own during the first
    sixteenth of the run (at least 12 decisions), then keeps the scale. Without a known horizon,
    where no decay is built in, it goes on steering, to the target times a cosine of the true
    progress: a demonstration may know what the policy cannot.

    Args:
        env: between two decisions.
        ratio: (R,) target of ||dtheta|| / ||theta|| at the peak.

    Returns:
        (R,) int64 actions.
    """
    controller, actions = env.controller, env.controller.spec.actions
    progress = controller.step / env.task.horizon
    steers = not env.task.known_horizon or controller.decisions < 12 or progress < 1 / 16
    wanted = ratio.log() + math.log(0.5 * (1 + math.cos(math.pi * min(progress, 0.99))))
    change = wanted - controller.update_ratio.clamp_min(1e-12).log()
    table = actions.log_multiplier(torch.arange(len(actions), device=ratio.device))
    nearest = (change.unsqueeze(-1) - table).abs().argmin(-1)
    return nearest if steers else torch.full_like(nearest, actions.keep)


def draw_demonstrators(
    replicas: int,
    share: float,
    ratios: tuple[float, float],
    generator: torch.Generator,
    device: torch.device | str,
) -> tuple[Tensor, Tensor]:
    """Target ratios, log-uniform, and which of the replicas demonstrate, both (R,)."""
    low, high = (math.log(bound) for bound in ratios)
    ratio = (low + (high - low) * torch.rand(replicas, generator=generator)).exp()
    shows = torch.rand(replicas, generator=generator) < share
    return ratio.to(device), shows.to(device)
