"""Tasks of the families that meta-training draws from, by seeds that it cannot draw.

Weights and inputs have their ordinary scales. In meta-training they vary over decades, but a user's
grid of learning rates is centred at what is usual, and so is every rival's here.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

from lightning import LightningModule

from lightning_dqnlr.errors import ConfigurationError
from lightning_dqnlr.tasks.families.random_tasks import ORDINARY, RandomTasks
from lightning_dqnlr.tasks.modules import TaskModule
from lightning_dqnlr.tasks.optimizers import OptimizerName
from lightning_dqnlr.tasks.task import Task


def build_at(lr: float, build: Callable[[int], LightningModule], seed: int) -> LightningModule:
    """The module that `build` makes of a seed, with a learning rate to begin with."""
    module = build(seed)
    if not isinstance(module, TaskModule):
        raise ConfigurationError(f"build gives {type(module).__name__}, not a TaskModule.")
    module.lr = lr
    return module


@dataclass(frozen=True)
class Sampled:
    """Builds the test task of a family and a seed, at one optimizer and length.

    Attributes:
        family: its class, which the task is drawn from.
        optimizer: the only one that may be drawn.
        horizon: of the run.
        seed: of the draw; split "test", which shares no random stream with training.
        lr: what the modules' `configure_optimizers` begins with.
    """

    family: type[RandomTasks]
    optimizer: OptimizerName
    horizon: int
    seed: int
    lr: float
    batch_size: int = 32
    known_horizon: bool = True

    def __call__(self) -> Task:
        family = self.family(
            **ORDINARY,
            optimizers=(self.optimizer,),
            min_horizon=self.horizon,
            max_horizon=self.horizon,
            batch_sizes=(self.batch_size,),
            known_horizon_probability=float(self.known_horizon),
        )
        task = family.sample(self.seed, "test")
        return replace(task, build=partial(build_at, self.lr, task.build))
