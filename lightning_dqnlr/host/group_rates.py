"""The learning rates of an optimizer's parameter groups: one rate, fixed ratios."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence

import torch
from torch import Tensor

from lightning_dqnlr.errors import ConfigurationError, UnsupportedTrainingError

_UNCONTROLLED: dict[type[torch.optim.Optimizer], str] = {
    torch.optim.LBFGS: "evaluates the loss several times per step and has a line search of its own",
    torch.optim.Rprop: "reads its learning rate once, before the first step",
}
_LOGGER = logging.getLogger("lightning_dqnlr")


class GroupRates:
    """Sets all groups at once; each keeps its ratio to the group with the largest rate.

    Args:
        optimizer: any `torch.optim` optimizer but LBFGS and Rprop.
        base: the groups' original learning rates; None for those that they have now.

    Attributes:
        base: the groups' original learning rates.
        lr: the reference group's learning rate, as it was set here last.

    Raises:
        ConfigurationError: if no group has a positive learning rate, or one has None, a negative
            or an infinite one.
        UnsupportedTrainingError: for LBFGS and Rprop.

    Example:
        >>> groups = [{"params": [torch.zeros(1)], "lr": lr} for lr in (0.4, 0.1)]
        >>> optimizer = torch.optim.SGD(groups)
        >>> GroupRates(optimizer).set(2.0)
        >>> [group["lr"] for group in optimizer.param_groups]
        [2.0, 0.5]
    """

    def __init__(
        self, optimizer: torch.optim.Optimizer, base: Sequence[float] | None = None
    ) -> None:
        for kind, why in _UNCONTROLLED.items():
            if isinstance(optimizer, kind):
                raise UnsupportedTrainingError(
                    f"optimizer: {kind.__name__} {why}; use SGD, Adam, AdamW or another optimizer "
                    "that multiplies each step by its learning rate."
                )
        self._optimizer = optimizer
        self._given: list[float] = []  # as they were set here last
        self._warned = False
        rates = [group["lr"] for group in optimizer.param_groups] if base is None else base
        unset = [i for i, rate in enumerate(rates) if rate is None]
        if unset:
            raise ConfigurationError(
                f"optimizer has lr=None in parameter groups {unset}: it chooses its own learning "
                "rate. Give it a number and switch that off (Adafactor: relative_step=False)."
            )
        self.base = [float(rate) for rate in rates]
        if not all(0 <= rate < math.inf for rate in self.base):
            raise ConfigurationError(
                f"optimizer has learning rates {self.base}; none may be negative, infinite or NaN."
            )
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
        for group, base in zip(self._optimizer.param_groups, self.base, strict=False):
            rate = lr * (base / self.reference)
            if isinstance(group["lr"], Tensor):
                group["lr"].fill_(rate)
            else:
                group["lr"] = rate
        self._given = self._found()

    def hold(self) -> None:
        """Sets the rates again if something else has changed one of them.

        The ratio of a group to the reference group is the user's, and a new one is adopted up to
        1. The reference group's rate is overruled; the first time a warning says so. Rates that
        are tensors on a device are not compared, because reading them would make the host wait.
        """
        found = self._found()[: len(self._given)]
        if found == self._given:
            return
        first = self.base.index(self.reference)
        reference = self.reference
        for i, (rate, given) in enumerate(zip(found, self._given, strict=True)):
            usable = 0 <= rate < math.inf and 0 < found[first] < math.inf
            if i == first or rate == given or not usable:
                continue
            base = min(rate / found[first], 1.0) * reference
            if not math.isclose(base, self.base[i], rel_tol=1e-6):
                self.base[i] = base
        if found[first] != self._given[first]:
            self._warn(found[first])
        self.set(self.lr)

    def _found(self) -> list[float]:
        """The rates in the groups; 0 for a tensor on a device."""
        rates = (group["lr"] for group in self._optimizer.param_groups[: len(self.base)])
        return [0.0 if isinstance(r, Tensor) and not r.is_cpu else float(r) for r in rates]

    def _warn(self, found: float) -> None:
        if not self._warned:
            _LOGGER.warning(
                "something else set the learning rate to %.3g, where lightning-dqnlr had set %.3g. "
                "It may be a warm-up in optimizer_step, a callback, or a scheduler in the loop. "
                "lightning-dqnlr sets its own rate again at every step; remove the other control.",
                found,
                self.lr,
            )
        self._warned = True

    def adopt_new_groups(self) -> None:
        """Takes in groups that have joined; their rates are relative to the current ones."""
        new = self._optimizer.param_groups[len(self.base) :]
        if new:
            scale = self.reference / max(self.lr, 1e-30)
            self.base = [*self.base, *(min(float(g["lr"]) * scale, self.reference) for g in new)]
