"""Lion, an optimizer that meta-training never meets."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn


class Lion(torch.optim.Optimizer):
    """The sign of an interpolated momentum (Chen et al. 2023, arXiv:2302.06675, algorithm 2).

    c = beta1 m + (1 - beta1) g; theta -= lr (sign(c) + weight_decay theta);
    m = beta2 m + (1 - beta2) g.

    Args:
        params: to train.
        lr: about a tenth of what Adam would have.
        betas: see above.
        weight_decay: decoupled.
    """

    def __init__(
        self,
        params: Iterable[nn.Parameter],
        lr: float = 1e-4,
        betas: tuple[float, float] = (0.9, 0.99),
        weight_decay: float = 0.0,
    ) -> None:
        defaults = {"lr": lr, "betas": betas, "weight_decay": weight_decay}
        # What torch's optimizers call it: for who takes the weight decay over.
        super().__init__(params, {**defaults, "decoupled_weight_decay": True})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> Any:
        """One update of all parameters that have gradients; returns the closure's loss."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            beta1, beta2 = group["betas"]
            for parameter in (p for p in group["params"] if p.grad is not None):
                state, gradient = self.state[parameter], parameter.grad
                momentum = state.setdefault("momentum", torch.zeros_like(parameter))
                parameter.mul_(1.0 - group["lr"] * group["weight_decay"])
                direction = momentum.lerp(gradient, 1.0 - beta1).sign()
                parameter.add_(direction, alpha=-group["lr"])
                momentum.lerp_(gradient, 1.0 - beta2)
        return loss
