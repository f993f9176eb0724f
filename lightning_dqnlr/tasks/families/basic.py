"""Quadratics, MLPs and CNNs: the families that the bundled policy was trained and measured on.

Their optimizers and lengths are narrower than the other families', so that the tasks behind the
published figures stay what they were.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch

from lightning_dqnlr.tasks.data.flat import (
    DIGITS_CLASSES,
    Examples,
    corrupt_labels,
    digits,
    teacher_data,
)
from lightning_dqnlr.tasks.families.random_tasks import (
    ACTIVATIONS,
    Problem,
    RandomTasks,
    bounded_scale,
    draw_examples,
)
from lightning_dqnlr.tasks.modules import Loss, QuadraticBuilder, SupervisedBuilder
from lightning_dqnlr.tasks.networks.mlp_cnn import CNNNorm, CNNSpec
from lightning_dqnlr.tasks.optimizers import OptimizerName, OptimizerSpec
from lightning_dqnlr.tasks.sampling import Draws, Split

BUNDLED_OPTIMIZERS: tuple[OptimizerName, ...] = ("sgd", "momentum", "nesterov", "adam", "adamw")
BUNDLED_HORIZON = 2000


@dataclass(frozen=True)
class NoisyQuadratics(RandomTasks):
    """Quadratics in 32..512 dimensions, conditioned 1..1e4, with noisy mini-batch gradients."""

    optimizers: Sequence[OptimizerName] = BUNDLED_OPTIMIZERS
    max_horizon: int = BUNDLED_HORIZON

    name: ClassVar[str] = "noisy_quadratics"

    def problem(self, task: str, split: Split, optimizer: OptimizerSpec, draws: Draws) -> Problem:
        dimension = draws.log_integer(32, 512)
        steepest, condition = draws.log_uniform(0.1, 10.0), draws.log_uniform(1.0, 1e4)
        rotated, noise = draws.chance(0.5), draws.log_uniform(0.01, 3.0)
        input_scale, initial_scale = self.draw_input_scale(draws), self.draw_initial_scale(draws)
        examples = draw_examples(draws)
        exponents = torch.rand(dimension, generator=draws.generator)
        exponents[0], exponents[-1] = 0.0, 1.0
        # A dense rotation is stacked once per replica, so it stays small.
        rotation = draws.rotation(dimension) if rotated and dimension <= 128 else None
        optimum = draws.normal(dimension)
        total = examples + examples // 4
        centres = input_scale * (optimum + noise * draws.normal(total, dimension))
        build = QuadraticBuilder(
            task, steepest * condition**-exponents, rotation, initial_scale, optimizer
        )
        return Problem(build, Examples((centres[:examples],), (centres[examples:],)))


@dataclass(frozen=True)
class DigitsMLPs(RandomTasks):
    """Random MLPs that classify the digits; half of the tasks have up to 20% random labels."""

    optimizers: Sequence[OptimizerName] = BUNDLED_OPTIMIZERS
    max_horizon: int = BUNDLED_HORIZON

    name: ClassVar[str] = "digits_mlps"

    def problem(self, task: str, split: Split, optimizer: OptimizerSpec, draws: Draws) -> Problem:
        (images, labels), validation = digits(self.draw_input_scale(draws))
        noisy, fraction = draws.chance(0.5), draws.uniform(0.0, 0.2)
        if noisy:
            labels = corrupt_labels(labels, fraction, DIGITS_CLASSES, draws)
        network = self.draw_mlp(images.shape[1], DIGITS_CLASSES, draws)
        build = SupervisedBuilder(task, network, "cross_entropy", optimizer)
        return Problem(build, Examples((images, labels), validation))


@dataclass(frozen=True)
class TeacherMLPs(RandomTasks):
    """Random MLPs that learn from random teachers, by regression or by classification."""

    optimizers: Sequence[OptimizerName] = BUNDLED_OPTIMIZERS
    max_horizon: int = BUNDLED_HORIZON

    name: ClassVar[str] = "teacher_mlps"

    def problem(self, task: str, split: Split, optimizer: OptimizerSpec, draws: Draws) -> Problem:
        regression = draws.chance(0.5)
        dimension, examples = draws.log_integer(4, 64), draw_examples(draws)
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
        scaled = [(inputs * input_scale, targets) for inputs, targets in data]
        return Problem(
            SupervisedBuilder(task, network, loss, optimizer), Examples(scaled[0], scaled[1])
        )


@dataclass(frozen=True)
class DigitsCNNs(RandomTasks):
    """Random small convolutional networks that classify the digits as 8x8 images."""

    optimizers: Sequence[OptimizerName] = BUNDLED_OPTIMIZERS
    max_horizon: int = BUNDLED_HORIZON
    batch_sizes: Sequence[int] = (8, 16, 32)

    name: ClassVar[str] = "digits_cnns"

    def problem(self, task: str, split: Split, optimizer: OptimizerSpec, draws: Draws) -> Problem:
        data = digits(self.draw_input_scale(draws))
        train, validation = ((images.reshape(-1, 1, 8, 8), labels) for images, labels in data)
        later_layers = draws.integer(1, 2)
        first, later = draws.choice((4, 6, 8)), [draws.choice((8, 12, 16)) for _ in range(2)]
        norm: CNNNorm = draws.choice(("none", "batch", "group"), (2.0, 1.0, 1.0))
        scale = self.draw_initial_scale(draws)
        network = CNNSpec(
            channels=(first, *later[:later_layers]),
            outputs=DIGITS_CLASSES,
            activation=draws.choice(ACTIVATIONS),
            norm=norm,
            downsample=draws.choice(("stride", "pool")),
            dropout=0.1 if draws.chance(0.25) else 0.0,
            initial_scale=bounded_scale(scale, later_layers + 2) if norm == "none" else scale,
        )
        build = SupervisedBuilder(task, network, "cross_entropy", optimizer)
        return Problem(build, Examples(train, validation))
