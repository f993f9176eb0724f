"""The small LightningModules that meta-training trains, and how their weights come about.

Each runs in a plain `Trainer` and, unchanged, under `vmap(grad_and_value(functional_call))` with
stacked parameters and buffers: no step branches on a tensor's value, and `self.log` is reached
only while a Trainer drives the module.
"""

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from lightning import LightningModule
from torch import Tensor, nn
from torchmetrics.functional.classification import multiclass_accuracy

from lightning_dqnlr.tasks.networks.mlp_cnn import NetworkSpec
from lightning_dqnlr.tasks.optimizers import Gradients, OptimizerSpec
from lightning_dqnlr.tasks.user import seeded_weights

Loss = Literal["cross_entropy", "mse", "huber"]


class TaskModule(LightningModule):
    """What the modules share: their optimizer, and logging while a Trainer drives them."""

    def __init__(self, optimizer: OptimizerSpec, lr: float) -> None:
        super().__init__()
        self.optimizer_spec = optimizer
        self.lr = lr
        # How many loops of a Trainer are running. `setup` does not count: other loops call it, too.
        self.running_loops = 0

    def on_fit_start(self) -> None:
        self.running_loops = 1

    def on_fit_end(self) -> None:
        self.running_loops = 0

    def on_validation_start(self) -> None:
        self.running_loops += 1

    def on_validation_end(self) -> None:
        self.running_loops -= 1

    def log_in_trainer(self, name: str, value: Tensor, batch_size: int | None = None) -> None:
        if self.running_loops:
            self.log(name, value, batch_size=batch_size)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return self.optimizer_spec.build(self.parameters(), self.lr)


class SupervisedModule(TaskModule):
    """A network trained on batches (inputs, targets): loss = mean l(net(inputs), targets).

    Args:
        net: maps inputs (N, ...) to outputs (N, ..., C).
        loss: "cross_entropy" for labels (N, ...) int64; "mse" or "huber" (Huber 1964, with its
            bend at 1) for targets of the shape of the outputs.
        optimizer: the update rule.
        lr: its learning rate.
    """

    def __init__(
        self, net: nn.Module, loss: Loss, optimizer: OptimizerSpec, lr: float = 1e-3
    ) -> None:
        super().__init__(optimizer, lr)
        self.net = net
        self.loss_kind = loss

    def forward(self, inputs: Tensor) -> Tensor:
        return torch.as_tensor(self.net(inputs))

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """The mean over the batch and, of sequences, over their steps; shape ()."""
        if self.loss_kind == "cross_entropy":
            return F.cross_entropy(outputs.flatten(0, -2), targets.flatten())
        compare = F.mse_loss if self.loss_kind == "mse" else F.huber_loss
        return compare(outputs, targets)

    def training_step(self, batch: tuple[Tensor, ...], batch_idx: int) -> Tensor:
        inputs, targets = batch
        loss = self.loss(self(inputs), targets)
        self.log_in_trainer("train_loss", loss.detach())
        return loss

    def validation_step(self, batch: tuple[Tensor, ...], batch_idx: int) -> Tensor:
        inputs, targets = batch
        outputs = self(inputs)
        loss = self.loss(outputs, targets)
        self.log_in_trainer("val_loss", loss, len(inputs))
        if self.running_loops and self.loss_kind == "cross_entropy":
            accuracy = multiclass_accuracy(
                outputs.flatten(0, -2),
                targets.flatten(),
                num_classes=outputs.shape[-1],
                average="micro",
            )
            self.log_in_trainer("val_accuracy", accuracy, len(inputs))
        return loss


class QuadraticModule(TaskModule):
    """The noisy quadratic, of centres c.

    loss = mean over the batch of 0.5 (theta - c)^T Q diag(h) Q^T (theta - c)

    Mini-batches of centres c make its gradient noisy, so that its best learning rate must fall
    with time (Wu et al. 2018, arXiv:1803.02021, section 2).

    Args:
        theta: initial parameter, shape (D,).
        curvature: h, the Hessian's eigenvalues, shape (D,).
        rotation: Q, its eigenvectors as columns, shape (D, D); None for the identity.
        optimizer: the update rule.
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
        super().__init__(optimizer, lr)
        self.theta = nn.Parameter(theta.clone())
        self.register_buffer("curvature", curvature.clone())
        self.register_buffer("rotation", None if rotation is None else rotation.clone())

    def forward(self, centres: Tensor) -> Tensor:
        """Returns each centre's loss: (N, D) to (N,)."""
        offset = self.theta - centres
        if self.rotation is not None:
            offset = offset @ self.rotation
        return 0.5 * (self.curvature * offset.square()).sum(-1)

    def gradients_and_losses(
        self, weights: Tensor, buffers: dict[str, Tensor], batch: tuple[Tensor, ...]
    ) -> Gradients:
        """The gradients and losses of `training_step` for many replicas at once, without autograd.

        With o = Q^T (theta - c) for each centre, the loss is the mean of 0.5 h . o^2 and its
        gradient Q (h * mean o). Weights are (R, D), the batch's one tensor is (R, B, D).

        The buffers are not read, because replicas of one task share Q and h. One product with a
        shared matrix is many times faster than R products with copies of it.
        """
        offset = weights.unsqueeze(1) - batch[0]
        if self.rotation is not None:
            offset = offset @ self.rotation
        losses = 0.5 * (offset.square() @ self.curvature).mean(-1)
        gradients = self.curvature * offset.mean(1)
        if self.rotation is not None:
            gradients = gradients @ self.rotation.T
        return Gradients(gradients, losses)

    def training_step(self, batch: tuple[Tensor, ...], batch_idx: int) -> Tensor:
        loss = torch.as_tensor(self(batch[0])).mean()
        self.log_in_trainer("train_loss", loss.detach())
        return loss

    def validation_step(self, batch: tuple[Tensor, ...], batch_idx: int) -> Tensor:
        loss = torch.as_tensor(self(batch[0])).mean()
        self.log_in_trainer("val_loss", loss, len(batch[0]))
        return loss


@dataclass(frozen=True)
class SupervisedBuilder:
    """Builds a `SupervisedModule` from an initialisation seed and the task's name."""

    task: str
    network: NetworkSpec
    loss: Loss
    optimizer: OptimizerSpec

    def __call__(self, seed: int) -> SupervisedModule:
        with seeded_weights(self.task, seed):
            return SupervisedModule(self.network.build(), self.loss, self.optimizer)


@dataclass(frozen=True, eq=False)
class QuadraticBuilder:
    """Builds a `QuadraticModule` with theta = initial_scale N(0, 1) from a seed and a name."""

    task: str
    curvature: Tensor
    rotation: Tensor | None
    initial_scale: float
    optimizer: OptimizerSpec

    def __call__(self, seed: int) -> QuadraticModule:
        with seeded_weights(self.task, seed):
            theta = self.initial_scale * torch.randn(self.curvature.shape)
        return QuadraticModule(theta, self.curvature, self.rotation, self.optimizer)
