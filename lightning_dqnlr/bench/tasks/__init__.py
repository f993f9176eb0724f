"""The benchmark's tasks, none of which meta-training ever sees, in five splits.

- "new seeds": test tasks of the families of `lightning_dqnlr.tasks`.
- "new families": data or architectures that none of the families draws.
- "new optimizer": update rules that none of them knows.
- "longer runs": up to ten times the 4,000 steps that meta-training draws at most.
- "unknown horizon": a policy is not told the length of the run.
"""

from __future__ import annotations

from functools import partial

from lightning_dqnlr.bench.tasks.images import (
    diffusion,
    fine_tuned_digits,
    mixer_noisy_labels,
    residual_digits,
    residual_digits_nadam,
    variational_autoencoder,
    vision_transformer,
)
from lightning_dqnlr.bench.tasks.known import Sampled
from lightning_dqnlr.bench.tasks.sequences import (
    chaotic_series,
    language_model,
    syntax_tagger,
    word_model,
    word_vectors,
)
from lightning_dqnlr.bench.tasks.tables import gated_regression
from lightning_dqnlr.bench.tasks.task import UNKNOWN_HORIZON, USUAL_LR, BenchSplit, BenchTask
from lightning_dqnlr.tasks.families.basic import (
    DigitsCNNs,
    DigitsMLPs,
    NoisyQuadratics,
    TeacherMLPs,
)
from lightning_dqnlr.tasks.families.images import Autoencoders
from lightning_dqnlr.tasks.families.random_tasks import RandomTasks
from lightning_dqnlr.tasks.families.sequences import SyntheticRNNs, TextTransformers
from lightning_dqnlr.tasks.families.tables import MatrixFactorizations, NoisyLabelMLPs
from lightning_dqnlr.tasks.optimizers import OptimizerName

# The longest run of `tasks=broad`, in steps, and what most networks there see at most.
LONGEST_QUADRATIC = 4000
LONGEST_NETWORK = 1000


def _known(
    name: str,
    family: type[RandomTasks],
    optimizer: OptimizerName,
    horizon: int,
    *,
    seed: int = 0,
    batch_size: int = 32,
    split: BenchSplit = "new seeds",
    seconds: float = 2.0,
    higher: float = 1.0,
    known_horizon: bool = True,
) -> BenchTask:
    lr = USUAL_LR[optimizer]
    build = Sampled(
        family, optimizer, horizon, seed, lr, batch_size=batch_size, known_horizon=known_horizon
    )
    return BenchTask(name, split, build, lr, seconds, centre=higher * lr)


# On three tasks the cosine's best peak was the highest of the grid around the usual LR. The rivals
# were not tuned there, so these grids are centred a decade higher.
HIGHER = 10.0

_long = partial(_known, split="longer runs")
_untold = partial(_known, split=UNKNOWN_HORIZON, known_horizon=False)

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
    BenchTask("residual digits", "new families", residual_digits, USUAL_LR["momentum"]),
    BenchTask("vision transformer", "new families", vision_transformer, USUAL_LR["adamw"]),
    BenchTask("mixer noisy labels", "new families", mixer_noisy_labels, USUAL_LR["sgd"]),
    BenchTask("variational autoencoder", "new families", variational_autoencoder, USUAL_LR["adam"]),
    BenchTask("diffusion", "new families", diffusion, USUAL_LR["adamw"]),
    BenchTask("fine-tuned encoder", "new families", fine_tuned_digits, USUAL_LR["momentum"]),
    BenchTask("gated regression", "new families", gated_regression, USUAL_LR["sgd"]),
    BenchTask("syntax tagger", "new families", syntax_tagger, USUAL_LR["adam"]),
    BenchTask("chaotic series", "new families", chaotic_series, USUAL_LR["momentum"]),
    BenchTask(
        "language model",
        "new families",
        partial(language_model, "language model", 600),
        USUAL_LR["adamw"],
        seconds=5.0,
    ),
    BenchTask("NAdam residual digits", "new optimizer", residual_digits_nadam, USUAL_LR["nadam"]),
    BenchTask("Adagrad word vectors", "new optimizer", word_vectors, USUAL_LR["adagrad"]),
    BenchTask(
        "Lion word LSTM",
        "new optimizer",
        word_model,
        USUAL_LR["lion"],
        centre=HIGHER * USUAL_LR["lion"],
    ),
    _long(
        "long quadratic", NoisyQuadratics, "momentum", 10 * LONGEST_QUADRATIC, seed=7, seconds=35.0
    ),
    _long("long digits MLP", DigitsMLPs, "momentum", 10 * LONGEST_NETWORK, seed=1, seconds=15.0),
    _long("long teacher MLP", TeacherMLPs, "adamw", 5 * LONGEST_NETWORK, seed=6, seconds=8.0),
    BenchTask(
        "long language model",
        "longer runs",
        partial(language_model, "long language model", 3 * LONGEST_NETWORK),
        USUAL_LR["adamw"],
        seconds=22.0,
    ),
    _untold("untold digits MLP", DigitsMLPs, "adam", 600, seed=2),
    _untold("untold teacher MLP", TeacherMLPs, "momentum", 800, seed=2),
    BenchTask(
        "untold vision transformer",
        UNKNOWN_HORIZON,
        partial(vision_transformer, "untold vision transformer", False),
        USUAL_LR["adamw"],
    ),
)
