"""Fixed schedules: a shape over the run times a peak that somebody has to tune."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch.optim import AdamW, Optimizer
from torch.optim.lr_scheduler import LRScheduler, OneCycleLR

from lightning_dqnlr.bench.methods.plan import Plan, Setting
from lightning_dqnlr.envs.trainer_run import Schedule
from lightning_dqnlr.scoring.cosine import cosine, warm_up_steps

COOL_DOWN = 0.2
Shape = Callable[[int, int], float]


def constant(step: int, horizon: int) -> float:
    """Share of the peak at a step: always the whole."""
    return 1.0


def linear(step: int, horizon: int) -> float:
    """Warm-up over 5% of the run, then a straight line that reaches zero at its end.

    The decay is that of Defazio et al. 2023 (arXiv:2310.07831).
    """
    ramp = warm_up_steps(horizon)
    return min((step + 1) / ramp, (horizon - step) / max(1, horizon - ramp))


def wsd(step: int, horizon: int) -> float:
    """Warm-up over 5%, stable, and the last 20% straight to zero (Hu et al. 2024, WSD).

    See arXiv:2404.06395 and, for the linear end, Hägele et al. 2024 (arXiv:2405.18392).
    """
    decay = max(1, round(COOL_DOWN * horizon))
    return min(1.0, (step + 1) / warm_up_steps(horizon), (horizon - step) / decay)


@dataclass(frozen=True)
class ScheduledLR:
    """A shape over the run times a peak.

    Attributes:
        shape: (step from 0, horizon) -> share of the peak.
    """

    name: str
    shape: Shape
    tuned: bool = True

    def plan(self, setting: Setting) -> Plan:
        return Plan(lr=setting.lr, callbacks=(FollowShape(self.shape, setting.task.horizon),))


class FollowShape(Schedule):
    """Sets the learning rate of every step to a share of the optimizer's own."""

    def __init__(self, shape: Shape, horizon: int) -> None:
        super().__init__(lambda step: self.rates.reference * shape(step, horizon))


@dataclass(frozen=True)
class FixedAdamW:
    """What people do who tune nothing: one AdamW, warm-up and half a cosine for all tasks.

    It takes the place of the task's optimizer, whatever that is; the user's rate is not read. Rate
    and decoupled weight decay are torch's own defaults (arXiv:1711.05101).
    """

    name: str = "fixed-adamw"
    tuned: bool = False
    lr: float = 1e-3
    weight_decay: float = 0.01

    def plan(self, setting: Setting) -> Plan:
        def replace(own: Optimizer) -> Optimizer:
            parameters = [p for group in own.param_groups for p in group["params"]]
            return AdamW(parameters, lr=self.lr, weight_decay=self.weight_decay)

        follow = FollowShape(cosine, setting.task.horizon)
        return Plan(optimizer=replace, callbacks=(follow,))


@dataclass(frozen=True)
class OneCycle:
    """Torch's one-cycle policy with its own defaults (Smith & Topin 2018, arXiv:1708.07120).

    The momentum is cycled as well, as torch does by default, but only where the optimizer has
    one: otherwise the cycle would bring momentum to plain SGD.
    """

    name: str = "onecycle"
    tuned: bool = True

    def plan(self, setting: Setting) -> Plan:
        steps = setting.task.horizon

        def scheduler(optimizer: Optimizer) -> LRScheduler:
            groups = optimizer.param_groups
            peaks = [float(group["lr"]) for group in groups]
            momentum = all("betas" in group or group.get("momentum", 0.0) > 0.0 for group in groups)
            return OneCycleLR(optimizer, peaks, total_steps=steps, cycle_momentum=momentum)

        return Plan(lr=setting.lr, scheduler=scheduler)
