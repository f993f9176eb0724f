"""Losses of a module in the middle of its training, which is not disturbed by it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import torch
from lightning.pytorch import LightningModule
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim import Optimizer
from torch.utils import _pytree as pytree

from lightning_dqnlr.bench.methods.plan import Averaging
from lightning_dqnlr.envs.environment import Losses
from lightning_dqnlr.envs.module import training_loss
from lightning_dqnlr.envs.trainer_data import module_losses
from lightning_dqnlr.tasks.task import Task

# A fixed random part of a larger set is evaluated, the same for all methods and seeds.
PART = 2048
# How many batches the authors of Schedule-Free take to renew BatchNorm's statistics.
_RENEWING_BATCHES = 50
_LOGS = ("log", "log_dict")


class Evaluation:
    """A task's mean losses in eval mode, of whole sets or a fixed part of them."""

    def __init__(self, task: Task) -> None:
        train = _part(task.train_data)
        size = min(task.batch_size, len(pytree.tree_leaves(train)[0]))
        held_out = _part(task.validation_data)
        self._task = replace(task, train_data=train, validation_data=held_out, batch_size=size)

    def __call__(self, module: LightningModule, optimizer: Optimizer) -> Losses:
        """Training and validation loss; module, optimizer and random state stay as they are."""
        cuda = [module.device] if module.device.type == "cuda" else []
        with torch.random.fork_rng(cuda), _undisturbed(module):
            # Before its first step the average is the weights themselves.
            if not isinstance(optimizer, Averaging) or not any(optimizer.state.values()):
                losses = module_losses(module, self._task)
            else:
                with _averaged(module, optimizer):
                    self._renew_statistics(module)
                    losses = module_losses(module, self._task)
        return losses

    @torch.no_grad()
    def _renew_statistics(self, module: LightningModule) -> None:
        """BatchNorm's running statistics are of other weights than the averaged ones."""
        if not any(isinstance(m, _BatchNorm) and m.track_running_stats for m in module.modules()):
            return
        module.train()
        leaves, structure = pytree.tree_flatten(self._task.train_data)
        size = self._task.batch_size
        whole = len(leaves[0]) // size
        for index in range(_RENEWING_BATCHES):
            rows = slice(index % whole * size, (index % whole + 1) * size)
            batch = [leaf[rows].to(module.device) for leaf in leaves]
            training_loss(module, pytree.tree_unflatten(batch, structure))


@contextmanager
def _undisturbed(module: LightningModule) -> Iterator[None]:
    """Puts modes, buffers and `self.log` back."""
    modes = {part: part.training for part in module.modules()}
    buffers = [(buffer, buffer.clone()) for buffer in module.buffers()]
    logs = {name: module.__dict__[name] for name in _LOGS if name in module.__dict__}
    module.__dict__.update(dict.fromkeys(_LOGS, lambda *_, **__: None))
    try:
        yield
    finally:
        for part, training in modes.items():
            part.training = training
        for buffer, before in buffers:
            buffer.copy_(before)
        for name in _LOGS:
            del module.__dict__[name]
        module.__dict__.update(logs)


@contextmanager
def _averaged(module: nn.Module, optimizer: Averaging) -> Iterator[None]:
    """Puts the averaged weights in place, and the others back, to the bit."""
    before = [parameter.detach().clone() for parameter in module.parameters()]
    optimizer.eval()
    try:
        yield
    finally:
        optimizer.train()
        with torch.no_grad():
            for parameter, value in zip(module.parameters(), before, strict=True):
                parameter.copy_(value)


def _part(data: object) -> object:
    """At most `PART` examples, drawn once for all."""
    count = len(pytree.tree_leaves(data)[0])
    if count <= PART:
        return data
    rows = torch.randperm(count, generator=torch.Generator().manual_seed(0))[:PART].sort().values
    return pytree.tree_map(lambda leaf: leaf[rows], data)
