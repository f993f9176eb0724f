"""The learning rates of an optimizer's parameter groups: one rate, fixed ratios."""

from __future__ import annotations

import logging

import torch
from torch import Tensor

from lightning_dqnlr.errors import ConfigurationError, UnsupportedTrainingError

_LOGGER = logging.getLogger("lightning_dqnlr")


class GroupRates:
    """Sets all groups at once; each keeps its ratio to the group with the largest rate.

    Args:
        optimizer: any `torch.optim` optimizer but LBFGS.

    Attributes:
        base: the groups' original learning rates.
        lr: the reference group's learning rate, as it was set here last.

    Raises:
        ConfigurationError: if no group has a positive learning rate, or one has None.
        UnsupportedTrainingError: for LBFGS.

    Example:
        >>> groups = [{"params": [torch.zeros(1)], "lr": lr} for lr in (0.4, 0.1)]
        >>> optimizer = torch.optim.SGD(groups)
        >>> GroupRates(optimizer).set(2.0)
        >>> [group["lr"] for group in optimizer.param_groups]
        [2.0, 0.5]
    """

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        if isinstance(optimizer, torch.optim.LBFGS):
            raise UnsupportedTrainingError(
                "optimizer: LBFGS evaluates the loss several times per step and has a line search "
                "of its own; use SGD, Adam, AdamW or another first-order optimizer."
            )
        self._optimizer = optimizer
        self._set = False
        self._warned = False
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
        self.lr = lr
        self._set = True
        for group, base in zip(self._optimizer.param_groups, self.base, strict=False):
            rate = lr * (base / self.reference)
            if isinstance(group["lr"], Tensor):
                group["lr"].fill_(rate)
            else:
                group["lr"] = rate

    def hold(self) -> None:
        """Sets the rates again if something else has changed the reference group's.

        The first time a warning says so. Rates that are tensors are not compared: they may be on a
        device, and reading them would make the host wait.
        """
        lr = self._optimizer.param_groups[self.base.index(self.reference)]["lr"]
        if not self._set or isinstance(lr, Tensor) or lr == self.lr:
            return
        if not self._warned:
            _LOGGER.warning(
                "something else set the learning rate to %.3g, where lightning-dqnlr had set %.3g: "
                "a warm-up in optimizer_step, a callback, or a scheduler that the loop steps. "
                "lightning-dqnlr sets its own rate again at every step; remove the other control.",
                lr,
                self.lr,
            )
        self._warned = True
        self.set(self.lr)

    def adopt_new_groups(self) -> None:
        """Takes in groups that have joined; their rates are relative to the current ones."""
        new = self._optimizer.param_groups[len(self.base) :]
        if new:
            scale = self.reference / max(self.lr, 1e-30)
            self.base = [*self.base, *(min(float(g["lr"]) * scale, self.reference) for g in new)]
