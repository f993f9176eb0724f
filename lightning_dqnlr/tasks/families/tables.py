"""Flat data with MLPs, and tokens with embeddings: tables, bad labels, documents, ratings."""

from typing import ClassVar, Literal

import torch

from lightning_dqnlr.tasks.data.flat import (
    DIGITS_CLASSES,
    TABLES,
    Examples,
    corrupt_labels,
    digits,
    imbalance,
    table,
    teacher_data,
)
from lightning_dqnlr.tasks.data.synthetic import documents, ratings
from lightning_dqnlr.tasks.data.text import file_of_window
from lightning_dqnlr.tasks.families.random_tasks import (
    ACTIVATIONS,
    Problem,
    RandomTasks,
    bounded_scale,
    draw_examples,
)
from lightning_dqnlr.tasks.modules import Loss, SupervisedBuilder
from lightning_dqnlr.tasks.networks.mlp_cnn import MLPNorm, MLPSpec
from lightning_dqnlr.tasks.networks.sequences import BagSpec, FactorizationSpec
from lightning_dqnlr.tasks.optimizers import OptimizerSpec
from lightning_dqnlr.tasks.sampling import Draws, Split

REGRESSIONS: tuple[Loss, ...] = ("mse", "huber")


class TableMLPs(RandomTasks):
    """Random MLPs on scikit-learn's tables; some classifications have up to 20% random labels."""

    name: ClassVar[str] = "table_mlps"

    def problem(self, task: str, split: Split, optimizer: OptimizerSpec, draws: Draws) -> Problem:
        which = draws.choice(TABLES)
        (inputs, targets), (held_out, held_out_targets) = table(which, draws)
        regression = which == "diabetes"
        outputs = 1 if regression else int(targets.max()) + 1
        noisy, fraction = draws.chance(0.3), draws.uniform(0.0, 0.2)
        if noisy and not regression:
            targets = corrupt_labels(targets, fraction, outputs, draws)
        scale = self.draw_input_scale(draws)
        network = self.draw_mlp(inputs.shape[1], outputs, draws)
        loss = draws.choice(REGRESSIONS) if regression else "cross_entropy"
        return Problem(
            SupervisedBuilder(task, network, loss, optimizer),
            Examples((inputs * scale, targets), (held_out * scale, held_out_targets)),
        )


class ImbalancedMLPs(RandomTasks):
    """Random MLPs on digits or on a teacher's classes, the rarest 5 to 100 times as rare.

    Validation examples are as frequent as they were.
    """

    name: ClassVar[str] = "imbalanced_mlps"

    def problem(self, task: str, split: Split, optimizer: OptimizerSpec, draws: Draws) -> Problem:
        (inputs, labels), validation, classes = _draw_classification(
            self.draw_input_scale(draws), draws
        )
        kept = imbalance(labels, draws.log_uniform(5.0, 100.0), classes, draws)
        network = self.draw_mlp(inputs.shape[1], classes, draws)
        build = SupervisedBuilder(task, network, "cross_entropy", optimizer)
        return Problem(build, Examples((inputs[kept], labels[kept]), validation))


class NoisyLabelMLPs(RandomTasks):
    """Random MLPs on digits or on a teacher's classes, of which 20% to 60% were drawn anew.

    Validation labels are clean.
    """

    name: ClassVar[str] = "noisy_label_mlps"

    def problem(self, task: str, split: Split, optimizer: OptimizerSpec, draws: Draws) -> Problem:
        (inputs, labels), validation, classes = _draw_classification(
            self.draw_input_scale(draws), draws
        )
        labels = corrupt_labels(labels, draws.uniform(0.2, 0.6), classes, draws)
        network = self.draw_mlp(inputs.shape[1], classes, draws)
        build = SupervisedBuilder(task, network, "cross_entropy", optimizer)
        return Problem(build, Examples((inputs, labels), validation))


class EmbeddingClassifiers(RandomTasks):
    """Embeddings of bags of words: generated documents, or windows of the standard library's files.

    Most words are rare, so that most rows of the embedding rarely have a gradient.
    """

    name: ClassVar[str] = "embedding_classifiers"

    def problem(self, task: str, split: Split, optimizer: OptimizerSpec, draws: Draws) -> Problem:
        real = draws.chance(0.5)
        classes, length = draws.integer(2, 6), draws.choice((16, 32, 64))
        vocabulary, width = draws.log_integer(64, 512), draws.log_integer(8, 32)
        examples = draw_examples(draws)
        norm: MLPNorm = draws.choice(("none", "batch", "layer"), (2.0, 1.0, 1.0))
        scale, depth = self.draw_initial_scale(draws), draws.integer(1, 2)
        mlp = MLPSpec(
            inputs=width,
            outputs=classes,
            width=draws.log_integer(8, 64),
            depth=depth,
            activation=draws.choice(ACTIVATIONS),
            norm=norm,
            initial_scale=bounded_scale(scale, depth + 2) if norm == "none" else scale,
        )
        if real:
            data = file_of_window(split, classes, length, vocabulary, examples, draws)
        else:
            data = documents(classes, vocabulary, length, examples, draws)
        network = BagSpec(vocabulary, mlp)
        return Problem(SupervisedBuilder(task, network, "cross_entropy", optimizer), data)


class MatrixFactorizations(RandomTasks):
    """Completes a noisy low-rank matrix, by a product of a rank that may be too small or large."""

    name: ClassVar[str] = "matrix_factorizations"

    def problem(self, task: str, split: Split, optimizer: OptimizerSpec, draws: Draws) -> Problem:
        users, items = draws.log_integer(48, 256), draws.log_integer(48, 256)
        rank, true_rank = draws.log_integer(4, 16), draws.log_integer(2, 16)
        noise, examples = draws.log_uniform(0.01, 0.5), draw_examples(draws)
        network = FactorizationSpec(
            users, items, rank, bounded_scale(self.draw_initial_scale(draws), 2)
        )
        loss = draws.choice(REGRESSIONS)
        data = ratings(users, items, true_rank, noise, examples, draws)
        return Problem(SupervisedBuilder(task, network, loss, optimizer), data)


def _draw_classification(
    scale: float, draws: Draws
) -> tuple[tuple[torch.Tensor, ...], tuple[torch.Tensor, ...], int]:
    """Training data, validation data, and the number of classes."""
    source: Literal["digits", "teacher"] = draws.choice(("digits", "teacher"))
    if source == "digits":
        return *digits(scale), DIGITS_CLASSES
    classes, dimension = draws.integer(2, 10), draws.log_integer(4, 64)
    examples = 8 * draws.log_integer(128, 256)
    train, (held_out, held_out_labels) = teacher_data(
        "classification",
        examples=examples,
        dimension=dimension,
        outputs=classes,
        noise=0.0,
        draws=draws,
    )
    return (train[0] * scale, train[1]), (held_out * scale, held_out_labels), classes
