"""Networks for flat inputs and for images, each described by a spec whose `build` draws weights."""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Literal, TypeVar, get_args

import torch
from torch import nn

Activation = Literal["relu", "tanh", "gelu", "silu", "leaky_relu"]
MLPNorm = Literal["none", "batch", "layer"]
CNNNorm = Literal["none", "batch", "group", "layer"]
ACTIVATIONS: tuple[Activation, ...] = get_args(Activation)

# Bound of the product of all layers' scales in a network without normalisation, up and down. Past
# it float32 gradients and Adam's squares overflow or vanish at any learning rate.
LARGEST_FUNCTION_SCALE = 1e4

_Net = TypeVar("_Net", bound=nn.Module)

ACTIVATION_LAYERS: dict[Activation, type[nn.Module]] = {
    "relu": nn.ReLU,
    "tanh": nn.Tanh,
    "gelu": nn.GELU,
    "silu": nn.SiLU,
    "leaky_relu": nn.LeakyReLU,
}


def flat_norm(name: MLPNorm, width: int) -> list[nn.Module]:
    """The normalisation of activations (N, width): one layer, or none."""
    if name == "none":
        return []
    return [nn.BatchNorm1d(width) if name == "batch" else nn.LayerNorm(width)]


def image_norm(name: CNNNorm, channels: int) -> list[nn.Module]:
    """Returns the normalisation of images (N, channels, H, W): one layer, or none."""
    if name == "none":
        return []
    if name == "batch":
        return [nn.BatchNorm2d(channels)]
    # One group is a LayerNorm over channels and positions, whatever the image's size.
    return [nn.GroupNorm(2 if name == "group" else 1, channels)]


def bounded_scale(scale: float, layers: int, norm: str = "none") -> float:
    """Returns the scale per layer, limited so that a network without norms stays trainable.

    limit = LARGEST_FUNCTION_SCALE^(1 / layers); the scale lies in 1 / limit..limit.
    """
    if norm != "none":
        return scale
    limit = math.exp(math.log(LARGEST_FUNCTION_SCALE) / layers)
    return min(max(scale, 1.0 / limit), limit)


def scale_weights(net: _Net, scale: float) -> _Net:
    """Multiplies every weight matrix, kernel and embedding; biases and norms stay."""
    scaled = nn.Linear | nn.Conv2d | nn.ConvTranspose2d | nn.Embedding
    with torch.no_grad():
        for layer in net.modules():
            if isinstance(layer, scaled):
                layer.weight.mul_(scale)
    return net


@dataclass(frozen=True)
class NetworkSpec(ABC):
    """Describes a network by plain numbers and names, so that tasks can be compared and sent.

    Attributes:
        initial_scale: factor on the initial weights of every layer, not on biases and norms.
    """

    initial_scale: float = field(default=1.0, kw_only=True)

    def build(self) -> nn.Module:
        """Returns the network with initial weights from torch's global random state."""
        return scale_weights(self.unscaled(), self.initial_scale)

    @abstractmethod
    def unscaled(self) -> nn.Module:
        """Returns the network before its weights are scaled."""


@dataclass(frozen=True)
class MLPSpec(NetworkSpec):
    """A multi-layer perceptron on flat inputs (N, inputs).

    Attributes:
        depth: number of hidden layers, each of `width` units.
    """

    inputs: int
    outputs: int
    width: int
    depth: int = 2
    activation: Activation = "relu"
    norm: MLPNorm = "none"
    dropout: float = 0.0

    def unscaled(self) -> nn.Sequential:
        layers: list[nn.Module] = []
        for fan_in in [self.inputs] + [self.width] * (self.depth - 1):
            layers.append(nn.Linear(fan_in, self.width))
            layers += flat_norm(self.norm, self.width)
            layers.append(ACTIVATION_LAYERS[self.activation]())
            if self.dropout > 0.0:
                layers.append(nn.Dropout(self.dropout))
        layers.append(nn.Linear(self.width, self.outputs))
        return nn.Sequential(*layers)


@dataclass(frozen=True)
class CNNSpec(NetworkSpec):
    """A convolutional network on images (N, inputs, 8, 8).

    The last two convolutions halve the image, by their stride or by average pooling. Max pooling is
    slow under `vmap`. A linear layer reads the remaining 2x2 positions.

    Attributes:
        channels: output channels of each 3x3 convolution; at least two, even for "group".
        inputs: channels of the image.
    """

    channels: tuple[int, ...]
    outputs: int = 10
    activation: Activation = "relu"
    norm: CNNNorm = "none"
    downsample: Literal["stride", "pool"] = "stride"
    dropout: float = 0.0
    inputs: int = 1

    def unscaled(self) -> nn.Sequential:
        layers: list[nn.Module] = []
        for index, (fan_in, fan_out) in enumerate(pairwise((self.inputs, *self.channels))):
            halve = index >= len(self.channels) - 2
            stride = 2 if halve and self.downsample == "stride" else 1
            layers.append(nn.Conv2d(fan_in, fan_out, 3, stride=stride, padding=1))
            layers += image_norm(self.norm, fan_out)
            layers.append(ACTIVATION_LAYERS[self.activation]())
            if halve and self.downsample == "pool":
                layers.append(nn.AvgPool2d(2))
        layers.append(nn.Flatten())
        if self.dropout > 0.0:
            layers.append(nn.Dropout(self.dropout))
        layers.append(nn.Linear(4 * self.channels[-1], self.outputs))
        return nn.Sequential(*layers)
