"""Image tasks on the digits and on scikit-learn's two sample photographs."""

from dataclasses import dataclass

from lightning_dqnlr.tasks.data import photographs
from lightning_dqnlr.tasks.data.examples import Examples, Parts
from lightning_dqnlr.tasks.data.scikit_learn import digits
from lightning_dqnlr.tasks.families.random_tasks import (
    CNN_NORMS,
    BatchSizes,
    Problem,
    RandomTasks,
    supervised,
)
from lightning_dqnlr.tasks.networks import image_to_image
from lightning_dqnlr.tasks.networks.mlp_cnn import ACTIVATIONS, MLPNorm, NetworkSpec
from lightning_dqnlr.tasks.sampling import Draws, Split

SIDE = 8  # of patches and digits
FLAT_NORMS: tuple[MLPNorm, ...] = ("none", "batch", "layer")


@dataclass(frozen=True)
class PhotoCNNs(RandomTasks):
    """Small convolutional networks that tell a patch's photograph and how it was treated.

    label = treatment + 4 photograph, with treatments 0..3 and photographs 0..1
    """

    batch_sizes: BatchSizes = (8, 16, 32)
    name = "photo_cnns"

    def problem(self, split: Split, draws: Draws) -> Problem:
        classes = photographs.PHOTOGRAPHS * photographs.TREATMENTS
        network = self.draw_cnn(3, classes, CNN_NORMS, draws)
        data = photographs.treated_patches(split, SIDE, self.draw_examples(draws), draws)
        return supervised(network, "cross_entropy", data.scaled(self.draw_input_scale(draws)))


@dataclass(frozen=True)
class Autoencoders(RandomTasks):
    """Autoencoders of digits and of photograph patches, by linear layers or by convolutions.

    loss = mean (decode(encode(scale x)) - x)^2: the input's scale is not the target's.
    """

    batch_sizes: BatchSizes = (8, 16, 32)
    name = "autoencoders"

    def problem(self, split: Split, draws: Draws) -> Problem:
        photographic = draws.chance(0.5)
        convolutional = draws.chance(0.5)
        channels = 3 if photographic else 1
        code = draws.log_integer(2, 24)
        draw = self._convolutional if convolutional else self._linear
        network = draw(channels, code, draws)
        examples = self.draw_examples(draws)
        scale = self.draw_input_scale(draws)
        if photographic:
            images = photographs.patches(split, SIDE, examples, draws)
        else:
            plain = digits(shape=(1, SIDE, SIDE))
            images = Parts(plain.train[0], plain.validation[0])
        data = Examples(*((x, x) for x in images))
        return supervised(network, "mse", data.scaled(scale))

    def _linear(self, channels: int, code: int, draws: Draws) -> NetworkSpec:
        return image_to_image.MLPAutoencoderSpec(
            shape=(channels, SIDE, SIDE),
            norm=draws.choice(FLAT_NORMS),
            initial_scale=self.draw_scale(draws, 4),
            width=draws.log_integer(12, 48),
            code=code,
            activation=draws.choice(ACTIVATIONS),
        )

    def _convolutional(self, channels: int, code: int, draws: Draws) -> NetworkSpec:
        return image_to_image.ConvAutoencoderSpec(
            channels=channels,
            norm=draws.choice(CNN_NORMS),
            initial_scale=self.draw_scale(draws, 6),
            hidden=(draws.choice((4, 6, 8)), draws.choice((8, 12, 16))),
            code=code,
            activation=draws.choice(ACTIVATIONS),
        )


@dataclass(frozen=True)
class PhotoDenoisers(RandomTasks):
    """Convolutional networks that take noise (0.1 to 1 of the contrast) off photograph patches.

    loss = mean (net(scale (x + noise)) - x)^2
    """

    batch_sizes: BatchSizes = (8, 16)
    name = "photo_denoisers"

    def problem(self, split: Split, draws: Draws) -> Problem:
        depth = draws.integer(1, 2)
        norm = draws.choice(CNN_NORMS)
        network = image_to_image.DenoiserSpec(
            channels=3,
            initial_scale=self.draw_scale(draws, depth + 1, norm),
            width=draws.choice((10, 12, 16)),
            depth=depth,
            activation=draws.choice(ACTIVATIONS),
            norm=norm,
            residual=draws.chance(0.5),
        )
        noise = draws.log_uniform(0.1, 1.0)
        examples = draws.log_integer(32, 96) * 8
        data = photographs.noisy_patches(split, SIDE, examples, noise, draws)
        return supervised(network, "mse", data.scaled(self.draw_input_scale(draws)))


class CoordinateNetworks(RandomTasks):
    """A piece of a photograph as a function from position to colour.

    colour = MLP(cos(2 pi B x), sin(2 pi B x)), or an MLP of x with sine activations
    """

    name = "coordinate_networks"

    def problem(self, split: Split, draws: Draws) -> Problem:
        fourier = draws.chance(0.5)
        depth = draws.integer(2, 4)
        features = draws.log_integer(8, 48)
        omega = draws.log_uniform(3.0, 30.0)
        frequency = draws.log_uniform(0.3, 3.0)
        network = image_to_image.CoordinateSpec(
            width=draws.log_integer(20, 80),
            depth=depth,
            features=features if fourier else 0,
            frequency=frequency if fourier else omega,
            activation=draws.choice(ACTIVATIONS),
            initial_scale=self.draw_scale(draws, depth + 1),
        )
        data = photographs.coordinates(split, draws.integer(20, 48), draws)
        return supervised(network, "mse", data.scaled(self.draw_input_scale(draws)))
