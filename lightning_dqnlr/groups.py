"""The learning rates of an optimizer's parameter groups: one rate, fixed ratios."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_dqnlr.errors import ConfigurationError, UnsupportedTrainingError


class GroupRates:
    """Sets all groups at once; each keeps its ratio to the group with the largest rate.

    Args:
        optimizer: any `torch.optim` optimizer but LBFGS.

    Attributes:
        base: the groups' original learning rates.
        lr: the reference group's learning rate now.

    Raises:
        ConfigurationError: if no group has a positive learning rate, or one has None.
        UnsupportedTrainingError: for LBFGS.
    """

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        if isinstance(optimizer, torch.optim.LBFGS):
            raise UnsupportedTrainingError(
                "optimizer: LBFGS evaluates the loss several times per step and has a line search "
                "of its own; use SGD, Adam, AdamW or another first-order optimizer."
            )
        self._optimizer = optimizer
        self._set = False
        unset = [i for i, group in enumerate(optimizer.param_groups) if group["lr"] is None]
        if unset:
            raise ConfigurationError(
                f"optimizer has lr=None in parameter groups {unset}: it chooses its own learning "
                "rate. Give it a number and switch that off (Adafactor: relative_step=False)."
            )
        self.base = [float(group["lr"]) for group in optimizer.param_groups]
        if not self.reference > 0:
            raise ConfigurationError(
                f"optimizer has learning rates {self.base}; at least one must be positive, because "
                "the ratios between the parameter groups are kept."
            )
        self.lr = self.reference

    @property
    def reference(self) -> float:
        """The largest original learning rate."""
        return max(self.base, default=0.0)

    def set(self, lr: float) -> None:
        """Gives the reference group this learning rate and the others their share of it."""
        self.lr, self._set = lr, True
        for group, base in zip(self._optimizer.param_groups, self.base, strict=False):
            rate = lr * (base / self.reference)
            if isinstance(group["lr"], Tensor):
                group["lr"].fill_(rate)
            else:
                group["lr"] = rate

    def check(self) -> None:
        """Looks whether the reference group still has the rate that was set.

        Rates that are tensors are not looked at: they may be on a device.

        Raises:
            UnsupportedTrainingError: if it has another.
        """
        reference = self.base.index(self.reference)
        lr = self._optimizer.param_groups[reference]["lr"]
        if self._set and not isinstance(lr, Tensor) and lr != self.lr:
            raise UnsupportedTrainingError(
                f"something else set the learning rate of parameter group {reference} to {lr:.6g}, "
                f"where lightning-dqnlr had set {self.lr:.6g}: a warm-up in optimizer_step, a "
                "callback, or a scheduler that the loop steps. Remove it; a safe start and the "
                "decay are built in."
            )

    def adopt_new_groups(self) -> None:
        """Takes in groups that have joined, their rates being relative to the current ones."""
        new = self._optimizer.param_groups[len(self.base) :]
        if new:
            scale = self.reference / max(self.lr, 1e-30)
            self.base = [*self.base, *(min(float(g["lr"]) * scale, self.reference) for g in new)]
