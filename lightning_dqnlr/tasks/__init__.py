"""What meta-training trains on: tasks, their modules and data, and distributions over them."""

from lightning_dqnlr.tasks.families.basic import (
    DigitsCNNs,
    DigitsMLPs,
    NoisyQuadratics,
    TeacherMLPs,
)
from lightning_dqnlr.tasks.families.finetuning import FineTunedDigits
from lightning_dqnlr.tasks.families.images import (
    Autoencoders,
    CoordinateNetworks,
    PhotoCNNs,
    PhotoDenoisers,
)
from lightning_dqnlr.tasks.families.mixtures import Mixture, OwnTasks, SplitTasks
from lightning_dqnlr.tasks.families.sequences import SyntheticRNNs, TextRNNs, TextTransformers
from lightning_dqnlr.tasks.families.tables import (
    EmbeddingClassifiers,
    ImbalancedMLPs,
    MatrixFactorizations,
    NoisyLabelMLPs,
    TableMLPs,
)
from lightning_dqnlr.tasks.modules import QuadraticModule, SupervisedModule
from lightning_dqnlr.tasks.optimizers import OptimizerSpec
from lightning_dqnlr.tasks.task import Task, TaskFamily

__all__ = [
    "Autoencoders",
    "CoordinateNetworks",
    "DigitsCNNs",
    "DigitsMLPs",
    "EmbeddingClassifiers",
    "FineTunedDigits",
    "ImbalancedMLPs",
    "MatrixFactorizations",
    "Mixture",
    "NoisyLabelMLPs",
    "NoisyQuadratics",
    "OptimizerSpec",
    "OwnTasks",
    "PhotoCNNs",
    "PhotoDenoisers",
    "QuadraticModule",
    "SplitTasks",
    "SupervisedModule",
    "SyntheticRNNs",
    "TableMLPs",
    "Task",
    "TaskFamily",
    "TeacherMLPs",
    "TextRNNs",
    "TextTransformers",
]
