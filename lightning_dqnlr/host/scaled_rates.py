"""`ScaledRates`: a scheduler's learning rates, times a factor within each optimizer step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.utils.hooks import RemovableHandle

from lightning_dqnlr.host.group_rates import GroupRates
from lightning_dqnlr.host.options import ControlOptions

LIMIT = 8.0  # how far the factor may lead a schedule away from its path, either way


class ScaledRates(GroupRates):
    """Multiplies all groups' rates just before an optimizer step, and takes it back just after.

        rate of a group in a step = rate that its scheduler set * factor
        factor = policy's rate / reference

    `options` has the bounds that keep the factor between 1 / LIMIT and LIMIT.
    Between steps the groups hold what the scheduler set, so that its path stays its own.

    Args:
        optimizer: any `torch.optim` optimizer but LBFGS and Rprop.
        base: the groups' learning rates before the scheduler set them. The largest is the
            reference: a policy that stays there leaves the schedule as it is.

    Attributes:
        lr: what the reference group used in the last step; right after `set`, what it is going to
            use in the coming one.

    Raises:
        ConfigurationError: if no base rate is positive, or one is negative or infinite.
        UnsupportedTrainingError: for LBFGS and Rprop.

    Example:
        >>> optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.5)
        >>> rates = ScaledRates(optimizer, [1.0])  # the scheduler has halved it
        >>> rates.set(3.0)
        >>> rates.lr, optimizer.param_groups[0]["lr"]
        (1.5, 0.5)
    """

    def __init__(self, optimizer: torch.optim.Optimizer, base: Sequence[float]) -> None:
        super().__init__(optimizer, base)
        self._factor = 1.0
        self._scheduled: list[float | Tensor] = []  # the groups' rates while a step uses others
        self._used: list[float | Tensor] = []
        self._hooks: list[RemovableHandle] = []
        self._momentum: list[dict[str, Any]] = []  # the groups' own, as the scheduler cycles it

    def options(self, given: ControlOptions) -> ControlOptions:
        """The options of a control that begins at the reference and stays within the limits."""
        low, high = self.reference / LIMIT, self.reference * LIMIT
        return replace(given, start="optimizer", min_lr=low, max_lr=high)

    def watch_steps(self) -> None:
        """Has the optimizer use the factor in each step from now on."""
        self._hooks = [
            self._optimizer.register_step_pre_hook(self._scale),
            self._optimizer.register_step_post_hook(self._unscale),
        ]

    def close(self) -> None:
        """Takes the hooks off, and the factor too if a step was interrupted."""
        for hook in self._hooks:
            hook.remove()
        self._hooks.clear()
        self._unscale()

    def set(self, lr: float) -> None:
        """Takes the policy's rate, which the factor follows."""
        for group, momentum in zip(self._optimizer.param_groups, self._momentum, strict=False):
            group.update(momentum)
        self._factor = lr / self.reference
        first = self.base.index(self.reference)
        scheduled = self._scheduled or [g["lr"] for g in self._optimizer.param_groups]
        self.lr = float(scheduled[first]) * self._factor

    def hold(self) -> None:
        """Leaves the rates alone: others are free to set them.

        A restore of the circuit breaker, which may come before the next `set`, would bring the
        momentum of an earlier step back.
        """
        names = ("momentum", "betas")
        groups = self._optimizer.param_groups
        self._momentum = [{n: group[n] for n in names if n in group} for group in groups]

    def adopt_new_groups(self) -> None:
        """Takes in groups that have joined; the factor is theirs too."""
        new = self._optimizer.param_groups[len(self.base) :]
        self.base = [*self.base, *(min(float(group["lr"]), self.reference) for group in new)]

    def _scale(self, *_: Any) -> None:
        self._unscale()  # after a step that an exception ended
        for group in self._optimizer.param_groups:
            rate = group["lr"]
            if isinstance(rate, Tensor):
                self._scheduled.append(rate.clone())
                rate.mul_(self._factor)
                self._used.append(rate.clone())
            else:
                self._scheduled.append(rate)
                group["lr"] = rate * self._factor
                self._used.append(group["lr"])

    def _unscale(self, *_: Any) -> None:
        if not self._scheduled:
            return
        rates = zip(self._optimizer.param_groups, self._scheduled, self._used, strict=False)
        for group, scheduled, used in rates:
            if isinstance(group["lr"], Tensor):
                group["lr"].copy_(torch.as_tensor(scheduled))
            elif group["lr"] == used:  # or somebody has set it within the step
                group["lr"] = scheduled
        self.lr = float(self._used[self.base.index(self.reference)])
        self._scheduled.clear()
        self._used.clear()
