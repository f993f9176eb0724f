"""The update rules of the inner loop: everything about an optimizer but its learning rate.

Two rules are here for what they do to a learning rate, not because people use them. The steps of
`RobbinsMonro` shrink by themselves, and those of `Signum` do not shrink with the gradient. A policy
for anyone's optimizer should have met both traits (docs/research/ has what came of it). Adagrad and
Lion have them, too, but stay out of training: the benchmark asks how the policy does with
optimizers that it never met.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.optim.optimizer import ParamsT

from lightning_dqnlr.checks import NotNegative, check_settings
from lightning_dqnlr.errors import ConfigurationError

OptimizerName = Literal[
    "sgd", "momentum", "nesterov", "adam", "adamw", "rmsprop", "signum", "robbins_monro"
]
# What families draw from unless they are told otherwise.
COMMON: tuple[OptimizerName, ...] = ("sgd", "momentum", "nesterov", "adam", "adamw", "rmsprop")


class Gradients(NamedTuple):
    """What one batch says of R replicas with P weights each."""

    gradient: Tensor  # (R, P)
    losses: Tensor  # (R,)


class OwnRule(torch.optim.Optimizer):
    """An update rule of ours.

    Weight decay is an L2 term in the gradient unless a group says "decoupled_weight_decay", as in
    `torch.optim`.
    """

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> Any:
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for parameter in (p for p in group["params"] if p.grad is not None):
                if group.get("decoupled_weight_decay"):
                    gradient = parameter.grad
                    parameter.mul_(1.0 - group["lr"] * group["weight_decay"])
                else:
                    gradient = parameter.grad.add(parameter, alpha=group["weight_decay"])
                direction = self.direction(gradient, self.state[parameter], group)
                parameter.add_(direction, alpha=-group["lr"])
        return loss

    def direction(self, gradient: Tensor, state: dict[str, Any], group: dict[str, Any]) -> Tensor:
        """The step per unit of learning rate, of the gradient's shape, downhill if positive."""
        raise NotImplementedError


class Signum(OwnRule):
    """The sign of the gradient's running mean (Bernstein et al. 2018, arXiv:1802.04434).

    m = beta m + (1 - beta) g; theta -= lr sign(m). Every step has the same size, however small
    the gradient.
    """

    def __init__(
        self, params: ParamsT, lr: float, momentum: float = 0.9, weight_decay: float = 0.0
    ) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    def direction(self, gradient: Tensor, state: dict[str, Any], group: dict[str, Any]) -> Tensor:
        if "momentum" not in state:
            state["momentum"] = torch.zeros_like(gradient)
        mean: Tensor = state["momentum"].lerp_(gradient, 1.0 - group["momentum"])
        return mean.sign()


class RobbinsMonro(OwnRule):
    """Gradient descent whose steps shrink by themselves (Robbins & Monro 1951).

    theta -= lr t^-power g at step t = 1, 2, ...: the rate that is set is not the rate that acts.
    """

    def __init__(
        self, params: ParamsT, lr: float, power: float = 0.5, weight_decay: float = 0.0
    ) -> None:
        super().__init__(params, {"lr": lr, "power": power, "weight_decay": weight_decay})

    def direction(self, gradient: Tensor, state: dict[str, Any], group: dict[str, Any]) -> Tensor:
        step: Tensor = state.setdefault("step", torch.tensor(0.0))
        step += 1.0
        return gradient * step.pow(-group["power"]).to(gradient)


@dataclass(frozen=True)
class OptimizerSpec:
    """Everything about an optimizer but its learning rate.

    Attributes:
        name: the update rule. "sgd" has no momentum; "rmsprop" has none either.
        weight_decay: decoupled for "adamw", an L2 term in the gradient for all others.
        momentum: heavy-ball or Nesterov momentum, the first beta of Adam and AdamW, or Signum's.
        beta2: second beta of Adam and AdamW, or RMSprop's smoothing constant.

    Raises:
        ConfigurationError: a field is outside its range.

    Example:
        >>> adamw = OptimizerSpec("adamw", weight_decay=0.01).build(net.parameters(), lr=1e-3)
    """

    name: OptimizerName
    weight_decay: NotNegative = 0.0
    momentum: Annotated[float, "[0, 1)"] = 0.9
    beta2: Annotated[float, "[0, 1)"] = 0.999

    def __post_init__(self) -> None:
        check_settings(self, "optimizer ")
        if self.name == "nesterov" and self.momentum == 0.0:
            raise ConfigurationError("nesterov needs momentum > 0; use name='sgd' without it.")

    def build(self, params: Iterable[nn.Parameter], lr: float) -> torch.optim.Optimizer:
        """Returns the optimizer over `params`; its update is linear in `lr`."""
        betas = (self.momentum, self.beta2)
        rules: dict[OptimizerName, Callable[..., torch.optim.Optimizer]] = {
            "sgd": torch.optim.SGD,
            "momentum": partial(torch.optim.SGD, momentum=self.momentum),
            "nesterov": partial(torch.optim.SGD, momentum=self.momentum, nesterov=True),
            "adam": partial(torch.optim.Adam, betas=betas),
            "adamw": partial(torch.optim.AdamW, betas=betas),
            "rmsprop": partial(torch.optim.RMSprop, alpha=self.beta2),
            "signum": partial(Signum, momentum=self.momentum),
            "robbins_monro": RobbinsMonro,
        }
        return rules[self.name](params, lr=lr, weight_decay=self.weight_decay)
