"""Rivals from their authors' own packages: Prodigy, D-Adaptation, Schedule-Free.

Each takes the place of the task's optimizer. The variant is SGD's where the task trains with SGD
and the package has one, otherwise Adam's. It takes over the weight decay, the kind of the decay and
Adam's betas. The packages come with the extra `bench` and are loaded when first needed.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable
from contextlib import redirect_stdout
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import torch
from torch.optim import SGD, AdamW, Optimizer

from lightning_dqnlr.bench.methods.plan import Plan, Setting
from lightning_dqnlr.bench.methods.schedules import FollowShape
from lightning_dqnlr.errors import needs_package
from lightning_dqnlr.host.group_rates import GroupRates
from lightning_dqnlr.scoring.cosine import warm_up_steps

_ADAMS = ("weight_decay", "betas", "eps")


def half_cosine(step: int, horizon: int) -> float:
    """`CosineAnnealingLR` over the whole run and without warm-up."""
    return 0.5 * (1 + math.cos(math.pi * step / horizon))


def effective_lr(optimizer: Optimizer) -> float:
    """The largest learning rate of the step just made, found by the optimizer itself or not."""
    return max(_group_lr(group) for group in optimizer.param_groups)


def _group_lr(group: dict[str, Any]) -> float:
    if "scheduled_lr" in group:  # Schedule-Free, with its warm-up
        return float(group["scheduled_lr"])
    # D-Adaptation of SGD divides by the first gradient's norm.
    return float(group["lr"]) * float(group.get("d", 1.0)) / float(group.get("g0_norm", 1.0))


@dataclass(frozen=True)
class Prodigy:
    """Prodigy (Mishchenko & Defazio 2024, arXiv:2306.06101) with the cosine its authors advise.

    It is Adam with a rate of its own; the user's is not read, nor are ratios between parameter
    groups, which it does not support.
    """

    name: str = "prodigy"
    tuned: bool = False

    def plan(self, setting: Setting) -> Plan:
        package = _package("prodigyopt", self.name)

        def prodigy(own: Optimizer) -> Optimizer:
            return package.Prodigy(_groups(own, *_ADAMS), lr=1.0, decouple=_decoupled(own))

        return _with_own_rate(setting, prodigy)


@dataclass(frozen=True)
class DAdaptation:
    """D-Adaptation (Defazio & Mishchenko 2023, arXiv:2301.07733), with the same cosine.

    `DAdaptSGD` with the task's momentum (it has no Nesterov variant), or `DAdaptAdam`. The user's
    rate is not read, nor are ratios between parameter groups, which it does not support.
    """

    name: str = "d-adaptation"
    tuned: bool = False

    def plan(self, setting: Setting) -> Plan:
        package = _package("dadaptation", self.name)

        def d_adapt(own: Optimizer) -> Optimizer:
            if isinstance(own, SGD):
                return package.DAdaptSGD(_groups(own, "weight_decay", "momentum"), lr=1.0)
            return package.DAdaptAdam(_groups(own, *_ADAMS), lr=1.0, decouple=_decoupled(own))

        return _with_own_rate(setting, d_adapt)


def _with_own_rate(setting: Setting, make: Callable[[Optimizer], Optimizer]) -> Plan:
    """Trains with what `make` makes; its factor of 1 on its own rate falls along half a cosine."""

    def replace(own: Optimizer) -> Optimizer:
        with redirect_stdout(io.StringIO()):  # the packages announce their weight decay
            return make(own)

    follow = FollowShape(half_cosine, setting.task.horizon)
    return Plan(optimizer=replace, callbacks=(follow,), lr_of=effective_lr)


@dataclass(frozen=True)
class ScheduleFree:
    """Schedule-Free SGD or AdamW (Defazio et al. 2024, arXiv:2405.15682).

    It has a warm-up over 5% of the run, as its authors advise. Its momentum (the first beta) is the
    place between iterate and average where the gradient is taken; it keeps the package's 0.9. It
    is evaluated at the average. Without a learning rate it takes the package's own, 1 for SGD and
    0.0025 for AdamW.
    """

    name: str = "schedule-free"
    tuned: bool = True

    def plan(self, setting: Setting) -> Plan:
        package = _package("schedulefree", self.name)
        warm_up = warm_up_steps(setting.task.horizon)

        def schedule_free(own: Optimizer) -> Optimizer:
            sgd = isinstance(own, SGD)
            if setting.lr is None:
                GroupRates(own).set(1.0 if sgd else 0.0025)
            if sgd:
                groups = _groups(own, "lr", "weight_decay")
                made = package.SGDScheduleFree(groups, warmup_steps=warm_up)
            else:
                betas = (0.9, own.param_groups[0].get("betas", (0.9, 0.999))[1])
                groups = _groups(own, "lr", "weight_decay", "eps")
                made = package.AdamWScheduleFree(groups, betas=betas, warmup_steps=warm_up)
            made.train()  # the mode in which it can step
            return made

        return Plan(setting.lr, optimizer=schedule_free, lr_of=effective_lr)


def _package(name: str, method: str) -> Any:
    with needs_package(f"method {method!r}", f"the package {name}", "bench"):
        return import_module(name)


def _groups(own: Optimizer, *kept: str) -> list[dict[str, Any]]:
    """The parameter groups with the settings that the other optimizer has as well."""

    def plain(value: Any) -> Any:
        return value.item() if isinstance(value, torch.Tensor) else value

    return [
        {"params": group["params"], **{k: plain(group[k]) for k in kept if k in group}}
        for group in own.param_groups
    ]


def _decoupled(own: Optimizer) -> bool:
    flags = [bool(group.get("decoupled_weight_decay", False)) for group in own.param_groups]
    return isinstance(own, AdamW) or all(flags)
