"""A user's torch optimizer, stepping R replicas with a learning rate each.

The optimizer is the real one from `torch.optim`. It steps a zero tensor with lr = 1, which gives
the update per unit of learning rate. Each replica scales that by its own rate. The result is exact
for every optimizer whose update is linear in the learning rate, and needs no subtraction of nearby
numbers. Weight decay depends on the weights and is therefore added here. Torch's own formulas are
g + wd * theta (coupled) and theta *= 1 - lr * wd (decoupled, Loshchilov & Hutter 2019).
"""

from __future__ import annotations

from typing import Any

import torch
from lightning import LightningModule
from torch import Tensor, nn, optim

from lightning_dqnlr.errors import UnsupportedTrainingError
from lightning_dqnlr.host.earlier_rates import undo
from lightning_dqnlr.host.group_rates import GroupRates
from lightning_dqnlr.tasks.optimizers import RobbinsMonro, Signum

# Their updates are linear in the learning rate and elementwise, up to shared step counters.
LINEAR = (
    optim.SGD,
    optim.Adam,
    optim.AdamW,
    optim.RMSprop,
    optim.Adagrad,
    optim.Adadelta,
    optim.Adamax,
    optim.NAdam,
    optim.RAdam,
    Signum,
    RobbinsMonro,
)
# One kernel instead of one per operation, on the CPU too.
FUSED = (optim.SGD, optim.Adam, optim.AdamW, optim.Adagrad)
# Set anew for the replicas, or about how the very same update is computed.
_OWN = ("params", "lr", "initial_lr", "weight_decay")
_HOW = ("foreach", "fused", "capturable", "differentiable")


def configured_optimizer(module: LightningModule) -> optim.Optimizer:
    """The one optimizer that `configure_optimizers` gives, without what its schedulers have set.

    Raises:
        UnsupportedTrainingError: none, or several.
    """
    configured: Any = module.configure_optimizers()
    schedulers: list[Any] = []
    if isinstance(configured, list | tuple) and isinstance(configured[0], list):
        schedulers = configured[1] if isinstance(configured[1], list) else [configured[1]]
        configured = configured[0]
    if isinstance(configured, list | tuple) and len(configured) == 1:
        configured = configured[0]
    if isinstance(configured, dict):
        schedulers = [configured["lr_scheduler"]] if "lr_scheduler" in configured else []
        configured = configured["optimizer"]
    if not isinstance(configured, optim.Optimizer):
        raise UnsupportedTrainingError(
            f"{type(module).__name__}.configure_optimizers must give exactly one optimizer, whose "
            "learning rate the policy sets; return a single one."
        )
    undo(configured, [s["scheduler"] if isinstance(s, dict) else s for s in schedulers])
    return configured


class ReplicatedOptimizer:
    """Steps (R, P) weights, the optimizer's groups one after the other, a learning rate each.

    The groups' settings and the ratios between their learning rates are taken over.

    Raises:
        UnsupportedTrainingError: the optimizer is not known to be linear in its learning rate.
    """

    def __init__(self, optimizer: optim.Optimizer, weights: Tensor) -> None:
        kind = type(optimizer)
        if kind not in LINEAR or any(group.get("maximize") for group in optimizer.param_groups):
            known = ", ".join(known.__name__ for known in LINEAR)
            raise UnsupportedTrainingError(
                f"{kind.__name__} cannot step replicas side by side: only optimizers that "
                f"are known to be linear in the learning rate can ({known}; not with "
                "maximize=True). Use env=trainer."
            )
        rates = GroupRates(optimizer)
        stop = 0
        self._groups: list[_Group] = []
        units = []
        for group, base in zip(optimizer.param_groups, rates.base, strict=True):
            start = stop
            stop += sum(p.numel() for p in trained_parameters(group))
            unit = nn.Parameter(torch.zeros_like(weights[:, start:stop]))
            units.append(unit)
            # Releases of torch before the option had a class of its own for it.
            options = {"decoupled_weight_decay": kind is optim.AdamW, **group}
            self._groups.append(_Group(unit, slice(start, stop), base / rates.reference, options))
        fused = {"fused": True} if kind in FUSED else {}
        settings = [{**_settings(g.options, g.unit), **fused} for g in self._groups]
        self._optimizer = kind(settings, lr=1.0)

    @torch.no_grad()
    def step(self, weights: Tensor, gradient: Tensor, lr: Tensor) -> None:
        """Updates the weights (R, P) in place, with learning rates (R,)."""
        for group in self._groups:
            group.prepare(weights, gradient, lr)
        self._optimizer.step()
        for group in self._groups:
            group.finish(weights, lr)

    def state(self) -> dict[str, Tensor]:
        """The live tensors of the optimizer that hold one row per replica."""
        return {
            f"optimizer.{index}.{name}": value
            for index, group in enumerate(self._groups)
            for name, value in self._optimizer.state.get(group.unit, {}).items()
            if isinstance(value, Tensor) and value.shape == group.unit.shape
        }


class _Group:
    """One parameter group: columns of the weights, and the update per unit of learning rate."""

    def __init__(
        self, unit: nn.Parameter, columns: slice, ratio: float, options: dict[str, Any]
    ) -> None:
        self.unit = unit
        self.options = options
        self._columns = columns
        self._ratio = ratio
        self._decay = float(options.get("weight_decay", 0.0))
        self._decoupled = bool(options["decoupled_weight_decay"])

    def prepare(self, weights: Tensor, gradient: Tensor, lr: Tensor) -> None:
        own = weights[:, self._columns]
        gradient = gradient[:, self._columns]
        if self._decay and self._decoupled:
            own.mul_(1 - (lr * (self._ratio * self._decay)).unsqueeze(-1))
        elif self._decay:
            gradient = gradient.add(own, alpha=self._decay)
        self.unit.grad = gradient.contiguous()

    def finish(self, weights: Tensor, lr: Tensor) -> None:
        weights[:, self._columns].addcmul_(self.unit, (lr * self._ratio).unsqueeze(-1))
        self.unit.zero_()


def trained_parameters(group: dict[str, Any]) -> list[nn.Parameter]:
    """What an optimizer trains of one of its groups."""
    return [p for p in group["params"] if p.requires_grad and p.numel()]


def _settings(options: dict[str, Any], unit: nn.Parameter) -> dict[str, Any]:
    kept = {k: v for k, v in options.items() if k not in (*_OWN, *_HOW)}
    return {**kept, "params": [unit], "lr": 1.0, "weight_decay": 0.0}
