"""Rewards for learning-rate control: what one interval of training was worth.

All functions are pure. `loss_change` is the reward of the classic recipe; `log_progress` pays the
same for each halving of the loss whatever the task's units; `group_relative` and
`group_final_score` remove what every behaviour would have earned on the task at hand, so that only
the choice of actions is paid.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_dqnlr.control.features import compressed_loss
from lightning_dqnlr.errors import ConfigurationError

_FAILED = 20.0  # compressed loss of a run without a finite loss: 5 million times the initial


def loss_change(
    previous_loss: Tensor, loss: Tensor, alpha_1: float = 1.0, alpha_2: float = 1.0
) -> Tensor:
    """Signed and plain decrease of the loss, `a1*sign(L_{t-1} - L_t) + a2*(L_{t-1} - L_t)`.

    Args:
        previous_loss: L_{t-1}, any shape, in the task's own units.
        loss: L_t, same shape.
        alpha_1: weight of the sign; an unchanged loss has sign 0.
        alpha_2: weight of the decrease.

    Returns:
        The reward, same shape; positive where the loss fell.
    """
    decrease = previous_loss - loss
    return alpha_1 * torch.sign(decrease) + alpha_2 * decrease


def log_progress(previous_loss: Tensor, loss: Tensor, initial_loss: Tensor) -> Tensor:
    """Decrease of the compressed loss, `y(L_{t-1}) - y(L_t)`.

    y(L) = log((L + e) / e) with e = 1% of the initial loss for L >= 0, continued as an odd function
    below zero (see `compressed_loss`). The rewards of a run sum to y(first) - y(last), so the
    undiscounted return is the benchmark's own score.

    Args:
        previous_loss: L_{t-1}, any shape.
        loss: L_t, same shape.
        initial_loss: L_0 of the run, broadcastable to that shape.

    Returns:
        The reward in nats, same shape; positive where the loss fell.
    """
    return compressed_loss(previous_loss, initial_loss) - compressed_loss(loss, initial_loss)


@dataclass(frozen=True)
class LogProgress:
    """`log_progress` as the reward of an environment."""

    def __call__(self, previous_loss: Tensor, loss: Tensor, initial_loss: Tensor) -> Tensor:
        """The reward in nats, of the shape of `loss`."""
        return log_progress(previous_loss, loss, initial_loss)


@dataclass(frozen=True)
class LossChange:
    """`loss_change` as the reward of an environment; the initial loss plays no part in it.

    Attributes:
        alpha_1: weight of the sign.
        alpha_2: weight of the decrease.
        limit: the reward is clipped to +- this (Mnih et al. 2015 clip to +-1). A raw loss that
            diverges reaches 1e30, whose squared temporal-difference error is infinite in float32
            and would turn every weight of the Q-network into NaN. `math.inf` never clips.

    Raises:
        ConfigurationError: limit is not positive.
    """

    alpha_1: float = 1.0
    alpha_2: float = 1.0
    limit: float = 10.0

    def __post_init__(self) -> None:
        if not self.limit > 0:
            raise ConfigurationError(f"limit must be positive; got {self.limit}.")

    def __call__(self, previous_loss: Tensor, loss: Tensor, initial_loss: Tensor) -> Tensor:
        """The reward, of the shape of `loss`."""
        reward = loss_change(previous_loss, loss, self.alpha_1, self.alpha_2)
        return reward.clamp(-self.limit, self.limit)


def group_relative(
    rewards: Tensor, valid: Tensor | None = None, *, min_spread: float = 0.05
) -> Tensor:
    """Rewards of one task's replicas relative to each other, in units of their spread.

    From each interval's reward subtract the mean of the replicas still running at that interval,
    then divide everything by the standard deviation (over replicas, biased) of the replicas' raw
    totals. One positive scale for all replicas leaves the ordering of behaviours alone and removes
    the task's difficulty (the group baseline of GRPO, Shao et al. 2024, arXiv:2402.03300, eq. 4).

    Args:
        rewards: (T, R), interval by replica, all of the same task. Finite wherever valid.
        valid: (T, R) bool, False on padding after a replica's end. Padding is neither counted nor
            read (it may hold NaN) and comes back as 0.
        min_spread: floor of the divisor, in the rewards' units: replicas that did equally well
            must not have their noise blown up to unit size.

    Returns:
        (T, R) rewards; each row's valid entries sum to 0.

    Raises:
        ConfigurationError: rewards are not (T, R), valid has another shape, min_spread <= 0.
    """
    _check_group(rewards, valid, min_spread)
    counted = torch.ones_like(rewards, dtype=torch.bool) if valid is None else valid.bool()
    kept = torch.where(counted, rewards, 0.0)
    running = counted.sum(dim=1, keepdim=True).clamp(min=1)
    relative = torch.where(counted, kept - kept.sum(dim=1, keepdim=True) / running, 0.0)
    return relative / _spread(kept.sum(dim=0), counted.any(dim=0)).clamp(min=min_spread)


def group_final_score(levels: Tensor, temperature: float, *, min_spread: float = 0.1) -> Tensor:
    """Scores the ends of one task's runs against the best of them: -log(tau + y_i - min_j y_j).

    The whole reward of an episode, paid at its end and standardised over the replicas. Progress
    alone hardly tells a run that is 5% above the best from one that is 20% above it, next to the
    many that are ten times above; the logarithm does. The score falls as the level rises, so the
    ordering of the runs is that of their losses.

    Args:
        levels: (R,) final compressed losses y; those that are not finite count as 20.
        temperature: tau > 0, the difference in level below which runs count as equally good.
        min_spread: floor of the divisor.

    Returns:
        (R,) scores of mean 0.

    Raises:
        ConfigurationError: levels are not (R,), or temperature <= 0.
    """
    if levels.dim() != 1 or not temperature > 0:
        raise ConfigurationError(
            f"levels must be (R,) and temperature positive; got shape {tuple(levels.shape)} and "
            f"{temperature}."
        )
    levels = levels.nan_to_num(_FAILED, _FAILED, _FAILED).clamp_max(_FAILED)
    score = -(temperature + levels - levels.min()).log()
    return (score - score.mean()) / score.std(correction=0).clamp_min(min_spread)


def _spread(totals: Tensor, took_part: Tensor) -> Tensor:
    """Biased standard deviation of `totals` (R,) over the replicas that took part."""
    count = took_part.sum().clamp(min=1)
    mean = totals.sum() / count  # the totals of absent replicas are 0
    return torch.where(took_part, (totals - mean).square(), 0.0).sum().div(count).sqrt()


def _check_group(rewards: Tensor, valid: Tensor | None, min_spread: float) -> None:
    if rewards.dim() != 2:
        raise ConfigurationError(
            f"rewards must be (T, R), intervals by replicas; got shape {tuple(rewards.shape)}."
        )
    if valid is not None and valid.shape != rewards.shape:
        raise ConfigurationError(
            f"valid must have the shape of rewards, {tuple(rewards.shape)}; "
            f"got {tuple(valid.shape)}."
        )
    if not min_spread > 0:
        raise ConfigurationError(f"min_spread must be positive; got {min_spread}.")
