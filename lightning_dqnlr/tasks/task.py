"""What the inner loop trains: a `Task` is a model, its data, its optimizer and its length.

The words are those of meta-learning: an *inner* step trains a task's weights, an *outer* step
trains the learning-rate policy, and a `TaskFamily` is the distribution the outer loop draws from.
"""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal, Protocol, get_args

import torch
from lightning import LightningModule
from torch import Tensor, nn

from lightning_dqnlr.errors import ConfigurationError
from lightning_dqnlr.tasks.sampling import Split

OptimizerName = Literal["sgd", "momentum", "nesterov", "adam", "adamw", "rmsprop"]


@dataclass(frozen=True)
class OptimizerSpec:
    """Everything about an optimizer but its learning rate.

    Attributes:
        name: the update rule. "sgd" has no momentum; "rmsprop" has none either.
        weight_decay: decoupled for "adamw", an L2 term in the gradient for all others.
        momentum: heavy-ball or Nesterov momentum, or the first beta of Adam and AdamW.
        beta2: second beta of Adam and AdamW, or RMSprop's smoothing constant.

    Raises:
        ConfigurationError: a field is outside its range.
    """

    name: OptimizerName
    weight_decay: float = 0.0
    momentum: float = 0.9
    beta2: float = 0.999

    def __post_init__(self) -> None:
        if self.name not in get_args(OptimizerName):
            raise ConfigurationError(
                f"optimizer name must be one of {get_args(OptimizerName)}, got {self.name!r}."
            )
        if not 0.0 <= self.weight_decay < math.inf:
            raise ConfigurationError(
                f"weight_decay must be finite and not negative, got {self.weight_decay}."
            )
        if not 0.0 <= self.momentum < 1.0 or not 0.0 <= self.beta2 < 1.0:
            raise ConfigurationError(
                f"momentum and beta2 must lie in [0, 1), got {self.momentum} and {self.beta2}."
            )
        if self.name == "nesterov" and self.momentum == 0.0:
            raise ConfigurationError("nesterov needs momentum > 0; use name='sgd' without it.")

    @property
    def follows_gradient(self) -> bool:
        """Whether the first update is lr times the gradient (SGD with or without momentum)."""
        return self.name in ("sgd", "momentum", "nesterov")

    def build(self, params: Iterable[nn.Parameter], lr: float) -> torch.optim.Optimizer:
        """Returns the `torch.optim` optimizer over `params`; its update is linear in `lr`."""
        decay, betas = self.weight_decay, (self.momentum, self.beta2)
        match self.name:
            case "sgd":
                return torch.optim.SGD(params, lr=lr, weight_decay=decay)
            case "momentum" | "nesterov":
                return torch.optim.SGD(
                    params,
                    lr=lr,
                    momentum=self.momentum,
                    weight_decay=decay,
                    nesterov=self.name == "nesterov",
                )
            case "adam":
                return torch.optim.Adam(params, lr=lr, betas=betas, weight_decay=decay)
            case "adamw":
                return torch.optim.AdamW(params, lr=lr, betas=betas, weight_decay=decay)
            case "rmsprop":
                return torch.optim.RMSprop(params, lr=lr, alpha=self.beta2, weight_decay=decay)


@dataclass(frozen=True, eq=False)
class Task:
    """One training problem, complete but for the learning rate.

    Attributes:
        name: unique name, "family/split/seed" for sampled tasks.
        family: name of the family it was drawn from.
        seed: the seed given to `TaskFamily.sample`.
        build: maps an initialisation seed to a module with its own initial weights. Equal seeds
            give equal weights; the global random state is left alone.
        train_data: tensors whose first dimension counts the examples. A batch is
            `tuple(t[indices] for t in train_data)`.
        validation_data: the same for held-out examples.
        batch_size: examples per inner step.
        optimizer: the update rule.
        horizon: length of a run in optimizer steps.
        known_horizon: whether the controller may be told the horizon.
        gradient_clip: largest global gradient norm, or None.

    Raises:
        ConfigurationError: a field is out of range or the data's first dimensions disagree.
    """

    name: str
    family: str
    seed: int
    build: Callable[[int], LightningModule]
    train_data: tuple[Tensor, ...]
    validation_data: tuple[Tensor, ...]
    batch_size: int
    optimizer: OptimizerSpec
    horizon: int
    known_horizon: bool = True
    gradient_clip: float | None = None

    def __post_init__(self) -> None:
        examples = _count_examples("train_data", self.train_data)
        _count_examples("validation_data", self.validation_data)
        if len(self.train_data) != len(self.validation_data):
            raise ConfigurationError(
                "train_data and validation_data must hold the same number of tensors, got "
                f"{len(self.train_data)} and {len(self.validation_data)}."
            )
        if not 1 <= self.batch_size <= examples:
            raise ConfigurationError(
                f"batch_size must lie between 1 and the {examples} training examples, "
                f"got {self.batch_size}."
            )
        if self.horizon < 1:
            raise ConfigurationError(f"horizon must be at least 1 step, got {self.horizon}.")
        if self.gradient_clip is not None and not self.gradient_clip > 0.0:
            raise ConfigurationError(
                f"gradient_clip must be positive, or None for no clipping, "
                f"got {self.gradient_clip}."
            )


class TaskFamily(Protocol):
    """A distribution over tasks."""

    def sample(self, seed: int, split: Split = "train") -> Task:
        """Returns the task of this seed; the three splits share no random stream."""


def _count_examples(argument: str, data: tuple[Tensor, ...]) -> int:
    if not data or any(tensor.ndim == 0 for tensor in data):
        raise ConfigurationError(f"{argument} must hold tensors of shape (examples, ...).")
    counts = {len(tensor) for tensor in data}
    if len(counts) > 1 or 0 in counts:
        raise ConfigurationError(
            f"the tensors of {argument} must have one common, non-zero first dimension, "
            f"got {sorted(counts)}."
        )
    return counts.pop()
