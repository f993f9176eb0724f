"""Quantile regression DQN (Dabney et al. 2018, arXiv:1710.10044): whole distributions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from lightning_dqnlr.checks import Count, Positive
from lightning_dqnlr.control.spec import ControllerSpec
from lightning_dqnlr.policy.network import QuantileNetwork
from lightning_dqnlr.rl.dqn import DQNConfig, DQNLearner
from lightning_dqnlr.rl.learner import Update
from lightning_dqnlr.rl.replay import Transitions
from lightning_dqnlr.rl.td import bootstrapped


def quantile_target(
    r_t: Tensor, discount_t: Tensor, quantiles_t: Tensor, q_t_selector: Tensor
) -> Tensor:
    """Distributional target `r + discount * theta_j(s', argmax_a Q(s', a))` (eq. 11, algorithm 1).

    The arguments are those of `double_q_target`, with the quantiles (B, A, N) of the next
    observation's return in place of the target network's values. The selector holds their means,
    or for double Q-learning those of the online network's. Returns (B, N) targets, detached.
    """
    chosen = quantiles_of(quantiles_t, q_t_selector.argmax(dim=-1))
    r_t = r_t.unsqueeze(-1).expand_as(chosen)
    return bootstrapped(r_t, discount_t.unsqueeze(-1).expand_as(chosen), chosen)


def quantiles_of(quantiles: Tensor, action: Tensor) -> Tensor:
    """The quantiles (B, N) of one action each, (B,) int64, out of (B, A, N)."""
    index = action.view(-1, 1, 1).expand(-1, 1, quantiles.shape[-1])
    return quantiles.gather(-2, index).squeeze(-2)


def quantile_huber_loss(predicted: Tensor, target: Tensor, kappa: float) -> Tensor:
    """`sum_i mean_j |tau_i - 1{u_ij < 0}| L_kappa(u_ij) / kappa`, u_ij = target_j - predicted_i.

    Equations 9 and 10, summed as in algorithm 1; tau_i = (2i + 1) / 2N. Dividing by kappa, as in
    arXiv:1806.06923 (eq. 3), makes quantile regression's own loss the limit of a small kappa,
    without a change of units. Returns (B,) losses.

    Args:
        predicted: (B, N) quantiles; gradients flow through these only.
        target: (B, M) samples or quantiles of the target; detached here.
        kappa: where Huber's loss L turns linear, in units of the return. Errors below it are
            fitted by expectiles rather than by quantiles.
    """
    count = predicted.shape[-1]
    tau = ((torch.arange(count, device=predicted.device) + 0.5) / count).unsqueeze(-1)
    theta, sample = torch.broadcast_tensors(
        predicted.unsqueeze(-1), target.detach().unsqueeze(-2)
    )  # (B, N, M)
    huber = functional.huber_loss(theta, sample, reduction="none", delta=kappa)
    slope = torch.where(sample < theta.detach(), 1 - tau, tau)
    return (slope * huber / kappa).mean(dim=-1).sum(dim=-1)


@dataclass(frozen=True)
class QuantileConfig(DQNConfig):
    """Settings of quantile regression DQN; `loss` must stay "huber", which is what kappa bounds.

    Attributes:
        quantiles: N. An update costs N^2: with 21 about twice one of plain DQN, with 51 ten times.
        kappa: where Huber's loss turns linear. 1 in the paper, whose rewards are clipped to +-1.
            Here returns have a standard deviation of 1, so 1 would fit expectiles throughout.

    Raises:
        ConfigurationError: a value out of range; the message names the field.

    Example:
        >>> learner = QuantileConfig(quantiles=5).build(ControllerSpec())
        >>> learner.online.quantiles(torch.zeros(2, 42)).shape
        torch.Size([2, 7, 5])
    """

    loss: Literal["huber"] = "huber"
    quantiles: Count = 21
    kappa: Positive = 0.1

    def build(self, spec: ControllerSpec, device: torch.device | str = "cpu") -> QuantileLearner:
        sizes = (len(spec.features), len(spec.actions), self.quantiles)
        return QuantileLearner(QuantileNetwork(*sizes, self.hidden, self.dueling), self, device)


class QuantileLearner(DQNLearner):
    """A `DQNLearner` that fits quantiles; its errors are those of their means."""

    config: QuantileConfig
    online: QuantileNetwork
    target: QuantileNetwork

    def _loss(self, batch: Transitions, weights: Tensor | None) -> Update:
        target = self._target(batch)
        predicted = quantiles_of(self.online.quantiles(batch.observation), batch.action)
        losses = quantile_huber_loss(predicted, target, self.config.kappa)
        loss = losses.mean() if weights is None else (weights * losses).mean()
        return Update(loss, target.mean(dim=-1) - predicted.detach().mean(dim=-1))

    @torch.no_grad()
    def _target(self, batch: Transitions) -> Tensor:
        quantiles_t = self.target.quantiles(batch.next_observation)
        selector = quantiles_t.mean(dim=-1)
        if self.config.double:
            selector = self.online(batch.next_observation)
        return quantile_target(batch.reward, batch.discount, quantiles_t, selector)
