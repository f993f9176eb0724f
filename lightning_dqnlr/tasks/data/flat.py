"""Flat data for the inner loop: digits, tables, random teachers, and what can be wrong with labels.

Training sets hold a multiple of eight examples wherever they are cut to size here, so that an
epoch's last batch is never the single example on which BatchNorm fails.
"""

from functools import lru_cache
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor

from lightning_dqnlr.errors import ConfigurationError
from lightning_dqnlr.tasks.sampling import Draws

DIGITS_TRAIN = 1437
DIGITS_CLASSES = 10

Table = Literal["breast_cancer", "wine", "iris", "diabetes"]
TABLES: tuple[Table, ...] = get_args(Table)


class Examples(NamedTuple):
    """Tuples (inputs, targets) for training and validation; first dimension = examples."""

    train: tuple[Tensor, ...]
    validation: tuple[Tensor, ...]


def needs_scikit_learn(tasks: str) -> ConfigurationError:
    """Returns the error for tasks whose data cannot be loaded."""
    return ConfigurationError(
        f"the {tasks} tasks need scikit-learn, which is not installed; "
        'run: pip install "lightning-dqnlr[train]"'
    )


@lru_cache(maxsize=1)
def _shuffled_digits() -> tuple[Tensor, Tensor]:
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise needs_scikit_learn("digits") from error
    inputs, labels = load_digits(return_X_y=True)
    # The file is ordered by writer, so the fixed split must be shuffled.
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    # 0..16 is the file's range of grey values.
    images = torch.tensor(inputs, dtype=torch.float32) / 16.0
    return images[order], torch.tensor(labels, dtype=torch.int64)[order]


def digits(scale: float = 1.0) -> Examples:
    """Returns scikit-learn's 8x8 digits: 1437 examples to train on, 360 for validation.

    Args:
        scale: factor on the grey values, which lie in 0..1 for scale 1.

    Returns:
        Inputs float32 (N, 64) and labels int64 (N,), always in the same fixed split. The tensors
        are the caller's own.

    Raises:
        ConfigurationError: scikit-learn is not installed.
    """
    images, labels = _shuffled_digits()
    images, labels = images * scale, labels.clone()
    cut = DIGITS_TRAIN
    return Examples((images[:cut], labels[:cut]), (images[cut:], labels[cut:]))


@lru_cache(maxsize=len(TABLES))
def _table(name: Table) -> tuple[Tensor, Tensor]:
    try:
        from sklearn import datasets
    except ImportError as error:
        raise needs_scikit_learn("table") from error
    load = {
        "breast_cancer": datasets.load_breast_cancer,
        "wine": datasets.load_wine,
        "iris": datasets.load_iris,
        "diabetes": datasets.load_diabetes,
    }[name]
    inputs, targets = load(return_X_y=True)
    rows = torch.tensor(inputs, dtype=torch.float32)
    if name == "diabetes":
        return rows, _standardised(torch.tensor(targets, dtype=torch.float32)).unsqueeze(1)
    return rows, torch.tensor(targets, dtype=torch.int64)


def table(name: Table, draws: Draws) -> Examples:
    """Returns one of scikit-learn's tables, its columns standardised, a fifth of its rows held out.

    Args:
        name: "breast_cancer" (569 rows, 30 columns, 2 classes), "wine" (178, 13, 3 classes),
            "iris" (150, 4, 3 classes), or "diabetes" (442, 10, regression on one target).
        draws: decides which rows are held out.

    Returns:
        Inputs (N, columns) float32; labels (N,) int64, or standardised targets (N, 1) float32.

    Raises:
        ConfigurationError: scikit-learn is not installed.
    """
    inputs, targets = _table(name)
    order = torch.randperm(len(inputs), generator=draws.generator)
    inputs, targets = _standardised(inputs)[order], targets[order]
    cut = multiple_of_eight(len(inputs) * 4 // 5)
    return Examples((inputs[:cut], targets[:cut]), (inputs[cut:], targets[cut:]))


def _standardised(columns: Tensor) -> Tensor:
    return (columns - columns.mean(0)) / columns.std(0)


def multiple_of_eight(count: int) -> int:
    """Returns the largest multiple of eight up to `count`."""
    return count - count % 8


def imbalance(labels: Tensor, ratio: float, classes: int, draws: Draws) -> Tensor:
    """Returns indices of examples whose class sizes fall geometrically, as in "long-tailed" data.

    The k-th of C classes, in random order, keeps a share ratio^(-k / (C - 1)) of its examples
    (Cui et al. 2019, arXiv:1901.05555, section 5.1).

    Args:
        labels: (N,) int64.
        ratio: of the most frequent class to the rarest, if they began equally frequent.
        classes: C.
        draws: decides the order of the classes and which examples stay.

    Returns:
        Indices int64, a multiple of eight of them, in random order.
    """
    rank = torch.randperm(classes, generator=draws.generator)
    share = ratio ** -(rank / max(1, classes - 1))
    kept = (torch.rand(len(labels), generator=draws.generator) < share[labels]).nonzero()[:, 0]
    kept = kept[torch.randperm(len(kept), generator=draws.generator)]
    return kept[: multiple_of_eight(len(kept))]


def corrupt_labels(labels: Tensor, fraction: float, classes: int, draws: Draws) -> Tensor:
    """Returns labels of which a random `fraction` was drawn anew, uniformly over the classes."""
    chosen = torch.rand(len(labels), generator=draws.generator) < fraction
    random_labels = torch.randint(classes, labels.shape, generator=draws.generator)
    return torch.where(chosen, random_labels, labels)


def gaussian_inputs(examples: int, dimension: int, draws: Draws) -> Tensor:
    """Draws inputs (examples, dimension) with a random covariance of mean variance 1.

    The covariance's condition number is log-uniform on 1..100, its axes are randomly rotated.
    """
    condition = draws.log_uniform(1.0, 100.0)
    exponents = torch.rand(dimension, generator=draws.generator)
    variances = condition**-exponents
    deviations = (variances / variances.mean()).sqrt()
    return (draws.normal(examples, dimension) * deviations) @ draws.rotation(dimension)


def teacher_outputs(inputs: Tensor, outputs: int, draws: Draws) -> Tensor:
    """Labels inputs (N, D) with a random MLP; each of the outputs has mean 0 and variance 1."""
    width, depth = draws.log_integer(8, 64), draws.integer(1, 3)
    activation = draws.choice((torch.relu, torch.tanh, torch.sin))
    hidden = inputs
    for _ in range(depth):
        fan_in = hidden.shape[1]
        weight = draws.normal(fan_in, width) * (2.0 / fan_in) ** 0.5
        hidden = activation(hidden @ weight + 0.5 * draws.normal(width))
    targets = hidden @ draws.normal(width, outputs)
    return (targets - targets.mean(0)) / targets.std(0).clamp_min(1e-6)


def teacher_data(
    kind: Literal["regression", "classification"],
    *,
    examples: int,
    dimension: int,
    outputs: int,
    noise: float,
    draws: Draws,
) -> Examples:
    """Draws a teacher, inputs, and the teacher's targets.

    Args:
        kind: "regression" on the teacher's outputs, or "classification" by their argmax.
        examples: number of training examples; a quarter as many are added for validation.
        dimension: input size D.
        outputs: number of regression targets or of classes.
        noise: standard deviation of the noise on regression targets (whose own is 1), or the
            fraction of labels redrawn at random. Validation targets stay clean.
        draws: the only source of randomness.

    Returns:
        Inputs (N, D) float32; targets (N, outputs) float32, or labels (N,) int64.
    """
    inputs = gaussian_inputs(examples + examples // 4, dimension, draws)
    targets = teacher_outputs(inputs, outputs, draws)
    if kind == "classification":
        targets = targets.argmax(1)
        noisy = corrupt_labels(targets, noise, outputs, draws)
    else:
        noisy = targets + noise * draws.normal(*targets.shape)
    return Examples((inputs[:examples], noisy[:examples]), (inputs[examples:], targets[examples:]))
