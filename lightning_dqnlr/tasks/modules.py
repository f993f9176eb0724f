"""The small LightningModules that meta-training trains, and how their weights come about.

Each runs in a plain `Trainer` and, unchanged, under `vmap(grad_and_value(functional_call))` with
stacked parameters and buffers: no step branches on a tensor's value, and `self.log` is reached
only while a Trainer drives the module.
"""

from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import torch
import torch.nn.functional as F
from lightning import LightningModule
from torch import Tensor, nn
from torchmetrics.functional.classification import multiclass_accuracy

from lightning_dqnlr.tasks.task import OptimizerSpec
from lightning_dqnlr.tasks.user import seeded_weights

Activation = Literal["relu", "tanh", "gelu", "silu", "leaky_relu"]
Loss = Literal["cross_entropy", "mse"]
MLPNorm = Literal["none", "batch", "layer"]
CNNNorm = Literal["none", "batch", "group"]


class SupervisedModule(LightningModule):
    """A network trained on batches (inputs, targets).

    Args:
        net: maps inputs (N, ...) to outputs (N, C).
        loss: "cross_entropy" for labels (N,) int64, "mse" for targets (N, C).
        optimizer: the update rule that `configure_optimizers` builds.
        lr: its learning rate.
    """

    def __init__(
        self, net: nn.Module, loss: Loss, optimizer: OptimizerSpec, lr: float = 1e-3
    ) -> None:
        super().__init__()
        self.net = net
        self.loss_kind = loss
        self.optimizer_spec = optimizer
        self.lr = lr
        self.driven_by_trainer = False

    def setup(self, stage: str) -> None:
        self.driven_by_trainer = True

    def teardown(self, stage: str) -> None:
        self.driven_by_trainer = False

    def forward(self, inputs: Tensor) -> Tensor:
        """Maps inputs (N, ...) to outputs (N, C)."""
        return torch.as_tensor(self.net(inputs))

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Returns the mean loss over the batch, shape ()."""
        if self.loss_kind == "cross_entropy":
            return F.cross_entropy(outputs, targets)
        return F.mse_loss(outputs, targets)

    def training_step(self, batch: tuple[Tensor, ...], batch_idx: int) -> Tensor:
        inputs, targets = batch
        loss = self.loss(self(inputs), targets)
        if self.driven_by_trainer:
            self.log("train_loss", loss.detach())
        return loss

    def validation_step(self, batch: tuple[Tensor, ...], batch_idx: int) -> Tensor:
        inputs, targets = batch
        outputs = self(inputs)
        loss = self.loss(outputs, targets)
        if self.driven_by_trainer:
            self.log("val_loss", loss, batch_size=len(inputs))
            if self.loss_kind == "cross_entropy":
                accuracy = multiclass_accuracy(
                    outputs, targets, num_classes=outputs.shape[-1], average="micro"
                )
                self.log("val_accuracy", accuracy, batch_size=len(inputs))
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return self.optimizer_spec.build(self.parameters(), self.lr)


class QuadraticModule(LightningModule):
    """The noisy quadratic: mean over the batch of 0.5 (theta - c)^T Q diag(h) Q^T (theta - c).

    Mini-batches of centres c make its gradient noisy, so that its best learning rate must fall
    with time (Wu et al. 2018, arXiv:1803.02021, section 2).

    Args:
        theta: initial parameter, shape (D,).
        curvature: h, the Hessian's eigenvalues, shape (D,).
        rotation: Q, its eigenvectors as columns, shape (D, D); None for the identity.
        optimizer: the update rule that `configure_optimizers` builds.
        lr: its learning rate.
    """

    curvature: Tensor
    rotation: Tensor | None

    def __init__(
        self,
        theta: Tensor,
        curvature: Tensor,
        rotation: Tensor | None,
        optimizer: OptimizerSpec,
        lr: float = 1e-3,
    ) -> None:
        super().__init__()
        self.theta = nn.Parameter(theta.clone())
        self.register_buffer("curvature", curvature.clone())
        self.register_buffer("rotation", None if rotation is None else rotation.clone())
        self.optimizer_spec = optimizer
        self.lr = lr
        self.driven_by_trainer = False

    def setup(self, stage: str) -> None:
        self.driven_by_trainer = True

    def teardown(self, stage: str) -> None:
        self.driven_by_trainer = False

    def forward(self, centres: Tensor) -> Tensor:
        """Returns each centre's loss: (N, D) to (N,)."""
        offset = self.theta - centres
        if self.rotation is not None:
            offset = offset @ self.rotation
        return 0.5 * (self.curvature * offset.square()).sum(-1)

    def training_step(self, batch: tuple[Tensor, ...], batch_idx: int) -> Tensor:
        loss = torch.as_tensor(self(batch[0])).mean()
        if self.driven_by_trainer:
            self.log("train_loss", loss.detach())
        return loss

    def validation_step(self, batch: tuple[Tensor, ...], batch_idx: int) -> Tensor:
        loss = torch.as_tensor(self(batch[0])).mean()
        if self.driven_by_trainer:
            self.log("val_loss", loss, batch_size=len(batch[0]))
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return self.optimizer_spec.build(self.parameters(), self.lr)


def activation_layer(name: Activation) -> nn.Module:
    """Returns the named activation as a layer."""
    match name:
        case "relu":
            return nn.ReLU()
        case "tanh":
            return nn.Tanh()
        case "gelu":
            return nn.GELU()
        case "silu":
            return nn.SiLU()
        case "leaky_relu":
            return nn.LeakyReLU()


@dataclass(frozen=True)
class MLPSpec:
    """A multi-layer perceptron on flat inputs (N, inputs).

    Attributes:
        depth: number of hidden layers, each of `width` units.
        initial_scale: factor on PyTorch's initial weights of every linear layer, not its biases.
    """

    inputs: int
    outputs: int
    width: int
    depth: int = 2
    activation: Activation = "relu"
    norm: MLPNorm = "none"
    dropout: float = 0.0
    initial_scale: float = 1.0

    def build(self) -> nn.Sequential:
        """Returns the network with initial weights from torch's global random state."""
        layers: list[nn.Module] = []
        for fan_in in [self.inputs] + [self.width] * (self.depth - 1):
            layers.append(nn.Linear(fan_in, self.width))
            if self.norm == "batch":
                layers.append(nn.BatchNorm1d(self.width))
            elif self.norm == "layer":
                layers.append(nn.LayerNorm(self.width))
            layers.append(activation_layer(self.activation))
            if self.dropout > 0.0:
                layers.append(nn.Dropout(self.dropout))
        layers.append(nn.Linear(self.width, self.outputs))
        return _scale_weights(nn.Sequential(*layers), self.initial_scale)


@dataclass(frozen=True)
class CNNSpec:
    """A convolutional network on images (N, 1, 8, 8).

    The last two convolutions halve the image, by their stride or by average pooling (max pooling
    is slow under `vmap`); a linear layer reads the remaining 2x2 positions.

    Attributes:
        channels: output channels of each 3x3 convolution; at least two, even for "group".
        initial_scale: factor on PyTorch's initial weights of every layer, not its biases.
    """

    channels: tuple[int, ...]
    outputs: int = 10
    activation: Activation = "relu"
    norm: CNNNorm = "none"
    downsample: Literal["stride", "pool"] = "stride"
    dropout: float = 0.0
    initial_scale: float = 1.0

    def build(self) -> nn.Sequential:
        """Returns the network with initial weights from torch's global random state."""
        layers: list[nn.Module] = []
        for index, (fan_in, fan_out) in enumerate(pairwise((1, *self.channels))):
            halve = index >= len(self.channels) - 2
            stride = 2 if halve and self.downsample == "stride" else 1
            layers.append(nn.Conv2d(fan_in, fan_out, 3, stride=stride, padding=1))
            if self.norm == "batch":
                layers.append(nn.BatchNorm2d(fan_out))
            elif self.norm == "group":
                layers.append(nn.GroupNorm(2, fan_out))
            layers.append(activation_layer(self.activation))
            if halve and self.downsample == "pool":
                layers.append(nn.AvgPool2d(2))
        layers.append(nn.Flatten())
        if self.dropout > 0.0:
            layers.append(nn.Dropout(self.dropout))
        layers.append(nn.Linear(4 * self.channels[-1], self.outputs))
        return _scale_weights(nn.Sequential(*layers), self.initial_scale)


@dataclass(frozen=True)
class SupervisedBuilder:
    """Builds a `SupervisedModule` from an initialisation seed; serves as `Task.build`.

    Attributes:
        task: the task's name; tasks of different names start from different weights.
    """

    task: str
    network: MLPSpec | CNNSpec
    loss: Loss
    optimizer: OptimizerSpec

    def __call__(self, seed: int) -> SupervisedModule:
        """Returns the module with the weights of this seed; the global random state is kept."""
        with seeded_weights(self.task, seed):
            return SupervisedModule(self.network.build(), self.loss, self.optimizer)


@dataclass(frozen=True, eq=False)
class QuadraticBuilder:
    """Builds a `QuadraticModule` from an initialisation seed; serves as `Task.build`.

    Attributes:
        initial_scale: standard deviation of the initial parameter's coordinates.
    """

    task: str
    curvature: Tensor
    rotation: Tensor | None
    initial_scale: float
    optimizer: OptimizerSpec

    def __call__(self, seed: int) -> QuadraticModule:
        """Returns the module with the parameter of this seed; the global random state is kept."""
        with seeded_weights(self.task, seed):
            theta = self.initial_scale * torch.randn(self.curvature.shape)
        return QuadraticModule(theta, self.curvature, self.rotation, self.optimizer)


def _scale_weights(net: nn.Sequential, scale: float) -> nn.Sequential:
    with torch.no_grad():
        for layer in net:
            if isinstance(layer, nn.Linear | nn.Conv2d):
                layer.weight.mul_(scale)
    return net
