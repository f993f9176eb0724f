"""Image tasks on the digits and on scikit-learn's two sample photographs."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from lightning_dqnlr.tasks.data.flat import Examples, digits
from lightning_dqnlr.tasks.data.photographs import (
    PHOTOGRAPHS,
    TREATMENTS,
    coordinates,
    noisy_patches,
    patches,
    treated_patches,
)
from lightning_dqnlr.tasks.families.random_tasks import (
    ACTIVATIONS,
    Problem,
    RandomTasks,
    bounded_scale,
    draw_examples,
)
from lightning_dqnlr.tasks.modules import SupervisedBuilder
from lightning_dqnlr.tasks.networks.image_to_image import (
    ConvAutoencoderSpec,
    CoordinateSpec,
    DenoiserSpec,
    MLPAutoencoderSpec,
)
from lightning_dqnlr.tasks.networks.mlp_cnn import CNNNorm, CNNSpec, MLPNorm, NetworkSpec
from lightning_dqnlr.tasks.optimizers import OptimizerSpec
from lightning_dqnlr.tasks.sampling import Draws, Split

SIDE = 8  # of patches and digits
CNN_NORMS: tuple[CNNNorm, ...] = ("none", "batch", "layer")
FLAT_NORMS: tuple[MLPNorm, ...] = ("none", "batch", "layer")


@dataclass(frozen=True)
class PhotoCNNs(RandomTasks):
    """Small convolutional networks that tell a patch's photograph and how it was treated."""

    batch_sizes: Sequence[int] = (8, 16, 32)

    name: ClassVar[str] = "photo_cnns"

    def problem(self, task: str, split: Split, optimizer: OptimizerSpec, draws: Draws) -> Problem:
        later_layers, first = draws.integer(1, 2), draws.choice((4, 6, 8))
        later = [draws.choice((8, 12, 16)) for _ in range(2)]
        norm, scale = draws.choice(CNN_NORMS), self.draw_initial_scale(draws)
        network = CNNSpec(
            channels=(first, *later[:later_layers]),
            outputs=PHOTOGRAPHS * TREATMENTS,
            activation=draws.choice(ACTIVATIONS),
            norm=norm,
            downsample=draws.choice(("stride", "pool")),
            dropout=0.1 if draws.chance(0.25) else 0.0,
            initial_scale=bounded_scale(scale, later_layers + 2) if norm == "none" else scale,
            inputs=3,
        )
        data = treated_patches(split, SIDE, draw_examples(draws), draws)
        build = SupervisedBuilder(task, network, "cross_entropy", optimizer)
        return Problem(build, _scaled(data, self.draw_input_scale(draws)))


@dataclass(frozen=True)
class Autoencoders(RandomTasks):
    """Autoencoders of digits and of photograph patches, by linear layers or by convolutions.

    The input's scale is not the target's.
    """

    batch_sizes: Sequence[int] = (8, 16, 32)

    name: ClassVar[str] = "autoencoders"

    def problem(self, task: str, split: Split, optimizer: OptimizerSpec, draws: Draws) -> Problem:
        photographs, convolutional = draws.chance(0.5), draws.chance(0.5)
        channels, code = 3 if photographs else 1, draws.log_integer(2, 24)
        draw = self._convolutional if convolutional else self._linear
        network = draw(channels, code, draws)
        examples, scale = draw_examples(draws), self.draw_input_scale(draws)
        images = patches(split, SIDE, examples, draws) if photographs else _digit_images()
        train, validation = ((x, x) for x in images)
        build = SupervisedBuilder(task, network, "mse", optimizer)
        return Problem(build, _scaled(Examples(train, validation), scale))

    def _linear(self, channels: int, code: int, draws: Draws) -> NetworkSpec:
        norm, scale = draws.choice(FLAT_NORMS), self.draw_initial_scale(draws)
        return MLPAutoencoderSpec(
            shape=(channels, SIDE, SIDE),
            width=draws.log_integer(12, 48),
            code=code,
            activation=draws.choice(ACTIVATIONS),
            norm=norm,
            initial_scale=bounded_scale(scale, 4),
        )

    def _convolutional(self, channels: int, code: int, draws: Draws) -> NetworkSpec:
        norm, scale = draws.choice(CNN_NORMS), self.draw_initial_scale(draws)
        return ConvAutoencoderSpec(
            channels=channels,
            hidden=(draws.choice((4, 6, 8)), draws.choice((8, 12, 16))),
            code=code,
            activation=draws.choice(ACTIVATIONS),
            norm=norm,
            initial_scale=bounded_scale(scale, 6),
        )


@dataclass(frozen=True)
class PhotoDenoisers(RandomTasks):
    """Convolutional networks that take noise (0.1 to 1 of the contrast) off photograph patches."""

    batch_sizes: Sequence[int] = (8, 16)

    name: ClassVar[str] = "photo_denoisers"

    def problem(self, task: str, split: Split, optimizer: OptimizerSpec, draws: Draws) -> Problem:
        depth, norm = draws.integer(1, 2), draws.choice(CNN_NORMS)
        scale = self.draw_initial_scale(draws)
        network = DenoiserSpec(
            channels=3,
            width=draws.choice((10, 12, 16)),
            depth=depth,
            activation=draws.choice(ACTIVATIONS),
            norm=norm,
            residual=draws.chance(0.5),
            initial_scale=bounded_scale(scale, depth + 1) if norm == "none" else scale,
        )
        noise, examples = draws.log_uniform(0.1, 1.0), draws.log_integer(32, 96) * 8
        data = noisy_patches(split, SIDE, examples, noise, draws)
        build = SupervisedBuilder(task, network, "mse", optimizer)
        return Problem(build, _scaled(data, self.draw_input_scale(draws)))


class CoordinateNetworks(RandomTasks):
    """A piece of a photograph as a function from position to colour (Fourier features or sines)."""

    name: ClassVar[str] = "coordinate_networks"

    def problem(self, task: str, split: Split, optimizer: OptimizerSpec, draws: Draws) -> Problem:
        fourier, depth = draws.chance(0.5), draws.integer(2, 4)
        features, omega = draws.log_integer(8, 48), draws.log_uniform(3.0, 30.0)
        frequency, width = draws.log_uniform(0.3, 3.0), draws.log_integer(20, 80)
        network = CoordinateSpec(
            width=width,
            depth=depth,
            features=features if fourier else 0,
            frequency=frequency if fourier else omega,
            activation=draws.choice(ACTIVATIONS),
            initial_scale=bounded_scale(self.draw_initial_scale(draws), depth + 1),
        )
        data = coordinates(split, draws.integer(20, 48), draws)
        build = SupervisedBuilder(task, network, "mse", optimizer)
        return Problem(build, _scaled(data, self.draw_input_scale(draws)))


def _digit_images() -> tuple[Tensor, Tensor]:
    (train, _), (validation, _) = digits()
    return train.reshape(-1, 1, SIDE, SIDE), validation.reshape(-1, 1, SIDE, SIDE)


def _scaled(data: Examples, scale: float) -> Examples:
    """Multiplies the inputs, not the targets."""
    train, validation = ((inputs * scale, targets) for inputs, targets in data)
    return Examples(train, validation)
