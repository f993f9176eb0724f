"""What the benchmark's tasks share: a name, a split, and modules as a user would write them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

import torch
from lightning import LightningModule
from torch import Tensor, nn

from lightning_dqnlr.checks import Positive, check_settings
from lightning_dqnlr.tasks.data.examples import Examples
from lightning_dqnlr.tasks.sampling import Draws, derive_seed
from lightning_dqnlr.tasks.task import Task
from lightning_dqnlr.tasks.user import ModuleBuilder

BenchSplit = Literal[
    "new seeds",
    "new families",
    "new optimizer",
    "longer runs",
    "unknown horizon",
    "real size",
    "your own",
]
UNKNOWN_HORIZON: BenchSplit = "unknown horizon"
# Splits that ask a question of their own, with what it is about; no table over all tasks has them.
APART: Mapping[str, str] = {
    "longer runs": "beyond what the bundled policy was trained on",
    UNKNOWN_HORIZON: "where policies are not told the length and schedules are",
}
# The centres of the grids: what a user would try first.
USUAL_LR = {
    "sgd": 0.1,
    "momentum": 0.01,
    "adam": 1e-3,
    "adamw": 1e-3,
    "rmsprop": 1e-3,
    "nadam": 2e-3,  # torch's default
    "adagrad": 1e-2,  # torch's default
    "lion": 1e-4,  # the authors': a tenth of Adam's
}

MakeNet = Callable[[], nn.Module]
MeanLoss = Callable[[nn.Module, Any], Tensor]
MakeOptimizer = Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer]


@dataclass(frozen=True)
class BenchTask:
    """A task of the benchmark; its data are made only when it is opened.

    Attributes:
        name: in records and reports.
        split: which question it belongs to.
        build: makes the task, the same one each time.
        lr: the LR a user would begin with.
        seconds: that one run takes on one core, roughly; for the estimate of the time left.
        centre: of the grid of peaks, if not `lr`. Where the best peak of the grid around `lr` is at
            its edge, the rivals would be judged by too narrow a search.
        version: raised by whoever changes what the task is, so that its runs are made again.

    Raises:
        ConfigurationError: unknown split, or an LR or centre that is not positive.
    """

    name: str
    split: BenchSplit
    build: Callable[[], Task]
    lr: Positive
    seconds: float = 2.0
    centre: Positive | None = None
    version: str = "1"

    def __post_init__(self) -> None:
        check_settings(self, "")

    def open(self) -> Task:
        """The task under its name in records; `ConfigurationError` if its data are not there."""
        return replace(self.build(), name=self.name)


class BenchModule(LightningModule):
    """A network, its loss and its optimizer.

    Args:
        net: gives the network, with fresh weights from torch's global random state.
        loss: maps the network and a batch to the mean loss, shape ().
        optimizer: maps the parameters to their optimizer.
    """

    def __init__(self, net: MakeNet, loss: MeanLoss, optimizer: MakeOptimizer) -> None:
        super().__init__()
        self.net = net()
        self.loss = loss
        self.make_optimizer = optimizer

    def forward(self, *inputs: Tensor) -> Tensor:
        return torch.as_tensor(self.net(*inputs))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = torch.as_tensor(self.loss(self.net, batch))
        self.log("train_loss", loss.detach(), batch_size=len(batch[0]))
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = torch.as_tensor(self.loss(self.net, batch))
        self.log("val_loss", loss, batch_size=len(batch[0]))
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return self.make_optimizer(self.parameters())


def own_task(
    name: str,
    net: MakeNet,
    loss: MeanLoss,
    optimizer: MakeOptimizer,
    data: Examples,
    *,
    horizon: int,
    batch_size: int = 32,
    known_horizon: bool = True,
    gradient_clip: float | None = None,
) -> Task:
    """A task of a network that no family of `lightning_dqnlr.tasks` draws.

    `net`, `loss` and `optimizer` are those of `BenchModule`. The optimizer has the LR that a user
    would begin with. The rest is as in `Task`.
    """
    return Task(
        name=name,
        family=name,
        seed=0,
        build=ModuleBuilder(partial(BenchModule, net, loss, optimizer), name),
        train_data=data.train,
        validation_data=data.validation,
        batch_size=batch_size,
        optimizer=_label(optimizer),
        horizon=horizon,
        known_horizon=known_horizon,
        gradient_clip=gradient_clip,
    )


def _label(optimizer: MakeOptimizer) -> str:
    made = optimizer([nn.Parameter(torch.zeros(1))])
    return "momentum" if made.defaults.get("momentum") else type(made).__name__.lower()


def random_split(held_out: int, draws: Draws, *tensors: Tensor) -> Examples:
    """Holds so many examples of tensors (N, ...) out at random."""
    order = torch.randperm(len(tensors[0]), generator=draws.generator)
    parts = (order[held_out:], order[:held_out])
    return Examples(*(tuple(tensor[part] for tensor in tensors) for part in parts))


def fixed_draws(name: str) -> Draws:
    """The random numbers of a benchmark task's data; those of no family, whatever its seed."""
    return Draws(derive_seed(f"bench/{name}", "test", 0))


class InBfloat16(nn.Module):
    """Computes a network in bfloat16 where autocast does so; weights and loss stay in float32.

    It is a part of the network, so that whoever trains the task trains it so.
    """

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, *inputs: Tensor) -> Tensor:
        """What the network makes of its inputs, in float32."""
        with torch.autocast(inputs[0].device.type, torch.bfloat16):
            return torch.as_tensor(self.net(*inputs)).float()


def mixed(net: MakeNet) -> nn.Module:
    """A network with fresh weights, computed in bfloat16."""
    return InBfloat16(net())


def cross_entropy(net: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    """Mean cross-entropy of logits (N, ..., C) for labels (N, ...)."""
    inputs, labels = batch
    return nn.functional.cross_entropy(net(inputs).flatten(0, -2), labels.flatten())


def squared_error(net: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    """Mean squared error."""
    inputs, targets = batch
    return nn.functional.mse_loss(net(inputs), targets)
