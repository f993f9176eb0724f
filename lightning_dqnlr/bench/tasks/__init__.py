"""The benchmark's tasks, none of which meta-training ever sees, in five splits.

- "new seeds": test tasks of the families of `lightning_dqnlr.tasks`.
- "new families": data or architectures that none of the families draws.
- "new optimizer": update rules that none of them knows.
- "longer runs": up to ten times the 4,000 steps that meta-training draws at most.
- "unknown horizon": a policy is not told the length of the run.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from lightning import LightningModule

from lightning_dqnlr.bench.tasks import images, sequences
from lightning_dqnlr.bench.tasks.tables import gated_regression
from lightning_dqnlr.bench.tasks.task import UNKNOWN_HORIZON, USUAL_LR, BenchSplit, BenchTask
from lightning_dqnlr.errors import ConfigurationError
from lightning_dqnlr.tasks.families.basic import (
    DigitsCNNs,
    DigitsMLPs,
    NoisyQuadratics,
    TeacherMLPs,
)
from lightning_dqnlr.tasks.families.images import Autoencoders
from lightning_dqnlr.tasks.families.random_tasks import ORDINARY, RandomTasks
from lightning_dqnlr.tasks.families.sequences import SyntheticRNNs, TextTransformers
from lightning_dqnlr.tasks.families.tables import MatrixFactorizations, NoisyLabelMLPs
from lightning_dqnlr.tasks.modules import TaskModule
from lightning_dqnlr.tasks.optimizers import OptimizerName
from lightning_dqnlr.tasks.task import Task

# The longest run of `tasks=broad`, in steps, and what most networks there see at most.
LONGEST_QUADRATIC = 4000
LONGEST_NETWORK = 1000


def build_at(lr: float, build: Callable[[int], LightningModule], seed: int) -> LightningModule:
    """The module that `build` makes of a seed, with a learning rate to begin with."""
    module = build(seed)
    if not isinstance(module, TaskModule):
        raise ConfigurationError(f"build gives {type(module).__name__}, not a TaskModule.")
    module.lr = lr
    return module


@dataclass(frozen=True)
class Sampled:
    """Builds the test task of a family and a seed, at one optimizer, its usual LR, and one length.

    Weights and inputs have their ordinary scales. In meta-training they vary over decades, but a
    user's grid of learning rates is centred at what is usual, and so is every rival's here.

    Attributes:
        family: its class, which the task is drawn from.
        optimizer: the only one that may be drawn.
        horizon: of the run.
        seed: of the draw; split "test", which shares no random stream with training.
    """

    family: type[RandomTasks]
    optimizer: OptimizerName
    horizon: int
    seed: int = 0
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
        return replace(task, build=partial(build_at, USUAL_LR[self.optimizer], task.build))


def _known(
    name: str,
    family: type[RandomTasks],
    optimizer: OptimizerName,
    horizon: int,
    *,
    split: BenchSplit = "new seeds",
    seconds: float = 2.0,
    higher: float = 1.0,
    **settings: Any,
) -> BenchTask:
    lr = USUAL_LR[optimizer]
    build = Sampled(family, optimizer, horizon, **settings)
    return BenchTask(name, split, build, lr, seconds, centre=higher * lr)


def _own(
    name: str,
    build: Callable[[], Task],
    optimizer: str,
    split: BenchSplit = "new families",
    **settings: Any,
) -> BenchTask:
    return BenchTask(name, split, build, USUAL_LR[optimizer], **settings)


# The cosine's best peak was the highest of the grid around the usual LR on three tasks. The rivals
# were not tuned there, so these grids are centred a decade higher.
HIGHER = 10.0

_long = partial(_known, split="longer runs")
_untold = partial(_known, split=UNKNOWN_HORIZON, known_horizon=False)
_reader = sequences.language_model
_LION_CENTRE = HIGHER * USUAL_LR["lion"]

TASKS: tuple[BenchTask, ...] = (
    _known("quadratic", NoisyQuadratics, "sgd", 1000),
    _known("digits MLP", DigitsMLPs, "adam", 600),
    _known("teacher MLP", TeacherMLPs, "momentum", 800),
    _known("digits CNN", DigitsCNNs, "adamw", 400, higher=HIGHER),
    _known("noisy labels MLP", NoisyLabelMLPs, "sgd", 800),
    _known("autoencoder", Autoencoders, "adam", 500, batch_size=16, higher=HIGHER),
    _known("matrix factorization", MatrixFactorizations, "rmsprop", 800),
    _known("synthetic RNN", SyntheticRNNs, "adam", 400, batch_size=16),
    _known("source code transformer", TextTransformers, "adamw", 500, batch_size=8),
    _own("residual digits", images.residual_digits, "momentum"),
    _own("vision transformer", images.vision_transformer, "adamw"),
    _own("mixer noisy labels", images.mixer_noisy_labels, "sgd"),
    _own("variational autoencoder", images.variational_autoencoder, "adam"),
    _own("diffusion", images.diffusion, "adamw"),
    _own("fine-tuned encoder", images.fine_tuned_digits, "momentum"),
    _own("gated regression", gated_regression, "sgd"),
    _own("syntax tagger", sequences.syntax_tagger, "adam"),
    _own("chaotic series", sequences.chaotic_series, "momentum"),
    _own("language model", partial(_reader, "language model", 600), "adamw", seconds=5.0),
    _own("NAdam residual digits", images.residual_digits_nadam, "nadam", "new optimizer"),
    _own("Adagrad word vectors", sequences.word_vectors, "adagrad", "new optimizer"),
    _own("Lion word LSTM", sequences.word_model, "lion", "new optimizer", centre=_LION_CENTRE),
    _long(
        "long quadratic", NoisyQuadratics, "momentum", 10 * LONGEST_QUADRATIC, seed=7, seconds=35.0
    ),
    _long("long digits MLP", DigitsMLPs, "momentum", 10 * LONGEST_NETWORK, seed=1, seconds=15.0),
    _long("long teacher MLP", TeacherMLPs, "adamw", 5 * LONGEST_NETWORK, seed=6, seconds=8.0),
    _own(
        "long language model",
        partial(_reader, "long language model", 3 * LONGEST_NETWORK),
        "adamw",
        "longer runs",
        seconds=22.0,
    ),
    _untold("untold digits MLP", DigitsMLPs, "adam", 600, seed=2),
    _untold("untold teacher MLP", TeacherMLPs, "momentum", 800, seed=2),
    _own(
        "untold vision transformer",
        partial(images.vision_transformer, "untold vision transformer", False),
        "adamw",
        UNKNOWN_HORIZON,
    ),
)
