"""What people do who tune nothing: one AdamW and cosine for whatever they train."""

from __future__ import annotations

from dataclasses import dataclass

from torch.optim import AdamW, Optimizer

from lightning_dqnlr.bench.methods.plan import Plan, Setting
from lightning_dqnlr.bench.methods.schedules import FollowShape, warmup_cosine


@dataclass(frozen=True)
class FixedAdamW:
    """AdamW with torch's own defaults, warm-up and half a cosine, the same for all tasks.

    It takes the place of the task's optimizer, whatever that is; the user's rate is not read.

    Attributes:
        name: as reports show it.
        tuned: nobody searches for its peak.
        lr: the peak.
        weight_decay: decoupled from the gradient (Loshchilov & Hutter 2019, arXiv:1711.05101).
    """

    name: str = "fixed-adamw"
    tuned: bool = False
    lr: float = 1e-3
    weight_decay: float = 0.01

    def plan(self, setting: Setting) -> Plan:
        """Replaces the optimizer, and sets the rate before every step."""

        def replace(own: Optimizer) -> Optimizer:
            parameters = [p for group in own.param_groups for p in group["params"]]
            return AdamW(parameters, lr=self.lr, weight_decay=self.weight_decay)

        return Plan(
            optimizer=replace, callbacks=(FollowShape(warmup_cosine, setting.task.horizon),)
        )
