"""Networks that give images: autoencoders, denoisers, and images as functions of position."""

import math
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn

from lightning_dqnlr.tasks.networks.mlp_cnn import (
    ACTIVATION_LAYERS,
    Activation,
    CNNNorm,
    MLPNorm,
    NetworkSpec,
    flat_norm,
    image_norm,
)


@dataclass(frozen=True)
class MLPAutoencoderSpec(NetworkSpec):
    """Encodes images (N, *shape) in `code` numbers and decodes them again, by linear layers.

    A hidden layer of `width` units stands on either side of the code.
    """

    shape: tuple[int, int, int]
    width: int
    code: int
    activation: Activation = "relu"
    norm: MLPNorm = "none"

    def unscaled(self) -> nn.Sequential:
        layers: list[nn.Module] = [nn.Flatten()]
        sizes = (math.prod(self.shape), self.width, self.code, self.width)
        for fan_in, fan_out in pairwise(sizes):
            layers.append(nn.Linear(fan_in, fan_out))
            if fan_out == self.width:
                layers += flat_norm(self.norm, fan_out)
            layers.append(ACTIVATION_LAYERS[self.activation]())
        layers += [nn.Linear(self.width, sizes[0]), nn.Unflatten(1, self.shape)]
        return nn.Sequential(*layers)


@dataclass(frozen=True)
class ConvAutoencoderSpec(NetworkSpec):
    """Encodes images (N, channels, 8, 8) by convolutions and decodes them by transposed ones.

    Attributes:
        hidden: channels at 4x4 and at 2x2 positions.
        code: numbers in the code.
    """

    channels: int
    hidden: tuple[int, int]
    code: int
    activation: Activation = "relu"
    norm: CNNNorm = "none"

    def unscaled(self) -> nn.Sequential:
        outer, inner = self.hidden
        activation = ACTIVATION_LAYERS[self.activation]
        layers = [
            nn.Conv2d(self.channels, outer, 3, stride=2, padding=1),
            *image_norm(self.norm, outer),
            activation(),
            nn.Conv2d(outer, inner, 3, stride=2, padding=1),
            activation(),
            nn.Flatten(),
            nn.Linear(4 * inner, self.code),
            nn.Linear(self.code, 4 * inner),
            activation(),
            nn.Unflatten(1, (inner, 2, 2)),
            nn.ConvTranspose2d(inner, outer, 4, stride=2, padding=1),
            *image_norm(self.norm, outer),
            activation(),
            nn.ConvTranspose2d(outer, self.channels, 4, stride=2, padding=1),
        ]
        return nn.Sequential(*layers)


class Residual(nn.Module):
    """Adds a network's outputs to its inputs (He et al. 2016, arXiv:1512.03385)."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body

    def forward(self, inputs: Tensor) -> Tensor:
        return torch.as_tensor(inputs + self.body(inputs))


@dataclass(frozen=True)
class DenoiserSpec(NetworkSpec):
    """Maps images (N, channels, H, W) to images of the same size by 3x3 convolutions.

    Attributes:
        depth: number of hidden convolutions, each of `width` channels.
        residual: learn what to add to the image instead (Zhang et al. 2017, arXiv:1608.03981).
    """

    channels: int
    width: int
    depth: int = 2
    activation: Activation = "relu"
    norm: CNNNorm = "none"
    residual: bool = False

    def unscaled(self) -> nn.Module:
        layers: list[nn.Module] = []
        for fan_in in [self.channels] + [self.width] * (self.depth - 1):
            layers.append(nn.Conv2d(fan_in, self.width, 3, padding=1))
            layers += image_norm(self.norm, self.width)
            layers.append(ACTIVATION_LAYERS[self.activation]())
        layers.append(nn.Conv2d(self.width, self.channels, 3, padding=1))
        body = nn.Sequential(*layers)
        return Residual(body) if self.residual else body


class FourierFeatures(nn.Module):
    """Cosines and sines of random projections (Tancik et al. 2020, arXiv:2006.10739, eq. 5).

    Maps (N, 2) to (N, 2 * features). The frequency is the projections' standard deviation, in
    periods per unit of position.
    """

    directions: Tensor

    def __init__(self, features: int, frequency: float) -> None:
        super().__init__()
        self.register_buffer("directions", frequency * torch.randn(2, features))

    def forward(self, positions: Tensor) -> Tensor:
        angles = 2.0 * math.pi * (positions @ self.directions)
        return torch.cat([angles.cos(), angles.sin()], 1)


class Sine(nn.Module):
    """The activation sin(frequency * x)."""

    def __init__(self, frequency: float) -> None:
        super().__init__()
        self.frequency = frequency

    def forward(self, inputs: Tensor) -> Tensor:
        return (self.frequency * inputs).sin()


@dataclass(frozen=True)
class CoordinateSpec(NetworkSpec):
    """A network from positions (N, 2) to colours (N, 3).

    Attributes:
        depth: number of hidden layers, each of `width` units.
        features: random Fourier features of the position; 0 for sine activations instead.
        frequency: of the features (periods per unit), or the factor within the sines ("omega").
        activation: after each hidden layer, with features.
    """

    width: int
    depth: int
    features: int
    frequency: float
    activation: Activation = "relu"

    def unscaled(self) -> nn.Sequential:
        fans = [2 * self.features or 2] + [self.width] * self.depth
        layers: list[nn.Module] = []
        if self.features:
            layers.append(FourierFeatures(self.features, self.frequency))
        for fan_in, fan_out in pairwise(fans):
            layers.append(nn.Linear(fan_in, fan_out))
            activation = ACTIVATION_LAYERS[self.activation]
            layers.append(activation() if self.features else Sine(self.frequency))
        layers.append(nn.Linear(self.width, 3))
        net = nn.Sequential(*layers)
        if not self.features:
            _initialise_sines(net, self.frequency)
        return net


def _initialise_sines(net: nn.Sequential, frequency: float) -> None:
    """Weights that keep the sines' inputs normal (Sitzmann et al. 2020, arXiv:2006.09661, 3.2)."""
    for index, layer in enumerate(layer for layer in net if isinstance(layer, nn.Linear)):
        fan_in = layer.in_features
        bound = 1.0 / fan_in if index == 0 else (6.0 / fan_in) ** 0.5 / frequency
        nn.init.uniform_(layer.weight, -bound, bound)
