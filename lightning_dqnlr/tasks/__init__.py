"""What meta-training trains on: tasks, their modules and data, and distributions over them."""

from lightning_dqnlr.tasks.families import (
    DigitsCNNs,
    DigitsMLPs,
    NoisyQuadratics,
    TeacherMLPs,
)
from lightning_dqnlr.tasks.mixtures import Mixture, SplitTasks
from lightning_dqnlr.tasks.modules import QuadraticModule, SupervisedModule
from lightning_dqnlr.tasks.own import OwnTasks
from lightning_dqnlr.tasks.task import OptimizerSpec, Task, TaskFamily

__all__ = [
    "DigitsCNNs",
    "DigitsMLPs",
    "Mixture",
    "NoisyQuadratics",
    "OptimizerSpec",
    "OwnTasks",
    "QuadraticModule",
    "SplitTasks",
    "SupervisedModule",
    "Task",
    "TaskFamily",
    "TeacherMLPs",
]
