"""The learning rates that parameter groups had before schedulers of torch set them.

A scheduler that is replaced has left its mark: its constructor sets the first rate of its path.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor


def undo(optimizer: torch.optim.Optimizer, schedulers: Sequence[Any]) -> None:
    """Gives the groups the learning rates and the momentum that they had before the schedulers.

    OneCycleLR and CyclicLR cycle the momentum, and begin with one of their own. The optimizer's
    default takes its place. A group's own momentum, if it had one, is known to nobody any more.

    Example:
        >>> optimizer = torch.optim.SGD([torch.zeros(1)], lr=0.5)
        >>> warm_up = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: step / 10)
        >>> undo(optimizer, [warm_up])
        >>> optimizer.param_groups[0]["lr"]
        0.5
    """
    if not schedulers:
        return
    rates = rates_before(optimizer, schedulers)
    for group, rate in zip(optimizer.param_groups, rates, strict=True):
        if isinstance(group["lr"], Tensor):
            group["lr"].fill_(rate)
        else:
            group["lr"] = rate
    if any(getattr(scheduler, "cycle_momentum", False) for scheduler in _parts(schedulers)):
        for group in optimizer.param_groups:
            if "betas" in group:
                group["betas"] = (optimizer.defaults["betas"][0], *group["betas"][1:])
            else:
                group["momentum"] = optimizer.defaults["momentum"]


def rates_before(optimizer: torch.optim.Optimizer, schedulers: Sequence[Any]) -> list[float]:
    """The groups' learning rates before the schedulers set them.

    A warm-up that begins at zero leaves zeros in the groups, so `initial_lr` counts. A rate that
    somebody has set since, such as a learning-rate finder, counts as it is.
    """
    now = [float(group["lr"]) for group in optimizer.param_groups]
    given = [[float(r) for r in s.get_last_lr()] for s in schedulers if hasattr(s, "get_last_lr")]
    if given and not any(now[: len(rates)] == rates for rates in given):
        return now
    return [float(group.get("initial_lr", group["lr"])) for group in optimizer.param_groups]


def _parts(schedulers: Iterable[Any]) -> Iterable[Any]:
    """Schedulers, and those that they are made of."""
    for scheduler in schedulers:
        yield scheduler
        yield from _parts(getattr(scheduler, "_schedulers", ()))
