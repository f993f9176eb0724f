"""Quadratics, MLPs and CNNs: the families that the first bundled policy was trained on.

Their optimizers and lengths are narrower than the other families', so that the tasks behind the
published figures stay what they were.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch

from lightning_dqnlr.tasks.data.examples import Examples, corrupt_labels
from lightning_dqnlr.tasks.data.scikit_learn import DIGITS_CLASSES, digits
from lightning_dqnlr.tasks.data.synthetic import teacher_data
from lightning_dqnlr.tasks.families.random_tasks import BatchSizes, Problem, RandomTasks, supervised
from lightning_dqnlr.tasks.modules import Loss, QuadraticBuilder
from lightning_dqnlr.tasks.networks.mlp_cnn import CNNNorm
from lightning_dqnlr.tasks.optimizers import OptimizerName
from lightning_dqnlr.tasks.sampling import Draws, Split

DIGIT_NORMS: tuple[CNNNorm, ...] = ("none", "none", "batch", "group")


@dataclass(frozen=True)
class BundledTasks(RandomTasks):
    """What the families of the first bundled policy share."""

    optimizers: Sequence[OptimizerName] = ("sgd", "momentum", "nesterov", "adam", "adamw")
    max_horizon: int = 2000


class NoisyQuadratics(BundledTasks):
    """Quadratics in 32..512 dimensions, conditioned 1..1e4, with noisy mini-batch gradients.

    loss = mean over the batch's centres c of 0.5 (theta - c)^T Q diag(h) Q^T (theta - c)
    """

    name = "noisy_quadratics"

    def problem(self, split: Split, draws: Draws) -> Problem:
        dimension = draws.log_integer(32, 512)
        steepest = draws.log_uniform(0.1, 10.0)
        condition = draws.log_uniform(1.0, 1e4)
        rotated = draws.chance(0.5)
        noise = draws.log_uniform(0.01, 3.0)
        input_scale = self.draw_input_scale(draws)
        initial_scale = self.draw_initial_scale(draws)
        examples = self.draw_examples(draws)
        exponents = torch.rand(dimension, generator=draws.generator)
        exponents[0] = 0.0
        exponents[-1] = 1.0
        builder = partial(
            QuadraticBuilder,
            curvature=steepest * condition**-exponents,
            # A dense rotation is stacked once per replica, so it stays small.
            rotation=draws.rotation(dimension) if rotated and dimension <= 128 else None,
            initial_scale=initial_scale,
        )
        optimum = draws.normal(dimension)
        noisy = optimum + noise * draws.normal(examples + examples // 4, dimension)
        centres = input_scale * noisy
        return Problem(builder, Examples((centres[:examples],), (centres[examples:],)))


class DigitsMLPs(BundledTasks):
    """Random MLPs that classify the digits; half of the tasks have up to 20% random labels.

    >>> DigitsMLPs(optimizers=["adam"]).sample(seed=0).optimizer
    'adam'
    """

    name = "digits_mlps"

    def problem(self, split: Split, draws: Draws) -> Problem:
        data = digits(self.draw_input_scale(draws))
        labels = data.targets.train
        fraction = draws.chance(0.5) * draws.uniform(0.0, 0.2)
        if fraction:
            labels = corrupt_labels(labels, fraction, DIGITS_CLASSES, draws)
        network = self.draw_mlp(data.inputs.train.shape[1], DIGITS_CLASSES, draws)
        return supervised(network, "cross_entropy", data.with_targets(labels))


class TeacherMLPs(BundledTasks):
    """Random MLPs that learn from random teachers, by regression or by classification.

    targets = teacher(inputs) + noise, or labels = argmax teacher(inputs) with some drawn anew
    """

    name = "teacher_mlps"

    def problem(self, split: Split, draws: Draws) -> Problem:
        regression = draws.chance(0.5)
        dimension = draws.log_integer(4, 64)
        examples = self.draw_examples(draws)
        outputs = draws.integer(1, 4) if regression else draws.integer(2, 10)
        input_scale = self.draw_input_scale(draws)
        network = self.draw_mlp(dimension, outputs, draws)
        data = teacher_data(
            "regression" if regression else "classification",
            examples=examples,
            dimension=dimension,
            outputs=outputs,
            noise=draws.log_uniform(0.01, 0.5) if regression else draws.uniform(0.0, 0.2),
            draws=draws,
        )
        loss: Loss = "mse" if regression else "cross_entropy"
        return supervised(network, loss, data.scaled(input_scale))


@dataclass(frozen=True)
class DigitsCNNs(BundledTasks):
    """Random small convolutional networks that classify the digits as 8x8 images.

    >>> DigitsCNNs().sample(seed=0).train_data[0].shape
    torch.Size([1437, 1, 8, 8])
    """

    batch_sizes: BatchSizes = (8, 16, 32)
    name = "digits_cnns"

    def problem(self, split: Split, draws: Draws) -> Problem:
        data = digits(self.draw_input_scale(draws), (1, 8, 8))
        network = self.draw_cnn(1, DIGITS_CLASSES, DIGIT_NORMS, draws)
        return supervised(network, "cross_entropy", data)
