"""R replicas of one task in one `vmap`ped training step, on any device.

Each replica has its own initial weights, data order and learning rate. All weights live in one
(R, P) tensor, so that an optimizer step, the probe and a restore are one or two kernels each. The
optimizer is the real one from `torch.optim`: it steps a zero tensor with lr = 1, and what it wrote
there, the update per unit of learning rate, is scaled by each replica's own rate. That is exact
for every optimizer whose update is linear in the learning rate, and needs no subtraction of nearby
numbers. Weight decay depends on the weights themselves and is therefore added here, by torch's own
formulas (coupled: g + wd * theta; decoupled, Loshchilov & Hutter 2019: theta *= 1 - lr * wd).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad_and_value, vmap

from lightning_dqnlr.errors import UnsupportedTrainingError
from lightning_dqnlr.tasks.task import Task

_EVALUATION_CHUNK = 256


class BatchOrder:
    """Which examples each replica sees: a fresh permutation per epoch, incomplete batches dropped.

    Depends only on a replica's seed, so a plain loop can see the very same batches.

    Args:
        examples: size of the data set.
        batch_size: examples per batch.
        seeds: one per replica.
    """

    def __init__(self, examples: int, batch_size: int, seeds: Sequence[int]) -> None:
        self._examples = examples
        self._batch = min(batch_size, examples)
        self._generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        self._order = torch.empty(0)
        self._position = examples

    def next(self) -> Tensor:
        """Indices of the next batch of each replica, (R, batch)."""
        if self._position + self._batch > self._examples:
            rows = [torch.randperm(self._examples, generator=g) for g in self._generators]
            self._order, self._position = torch.stack(rows), 0
        start, self._position = self._position, self._position + self._batch
        return self._order[:, start : self._position]


class _TrainingStep(nn.Module):
    """Lets `functional_call`, which only calls `forward`, reach `training_step`."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, batch: tuple[Tensor, ...]) -> Tensor:
        loss: Tensor = self.module.training_step(batch, 0)  # type: ignore[operator]
        return loss


class Replicas:
    """The inner loops. Per step: `backward`, look at `gradient` and `weights`, then `update`.

    Args:
        task: what to train.
        seeds: one per replica; fixes initial weights and data order.
        device: where to train.

    Attributes:
        weights: (R, P) all parameters, concatenated in `parameters()` order.
        gradient: (R, P) the last gradient, before clipping.

    Raises:
        UnsupportedTrainingError: if the module cannot run under vmap.
    """

    def __init__(
        self, task: Task, seeds: Sequence[int], device: torch.device | str = "cpu"
    ) -> None:
        self.task = task
        self.seeds = tuple(seeds)
        self.device = torch.device(device)
        modules = [_TrainingStep(task.build(seed)) for seed in seeds]
        self._template = modules[0].to(self.device).train()
        named = dict(modules[0].named_parameters())
        self._names, self._shapes = list(named), [p.shape for p in named.values()]
        self.sizes = [p.numel() for p in named.values()]
        flat = [nn.utils.parameters_to_vector(m.parameters()).detach() for m in modules]
        self.weights = torch.stack([f.to(self.device) for f in flat]).float()
        self._buffers = _stack_buffers(modules, self.device)
        self._data = tuple(t.to(self.device) for t in task.train_data)
        self._order = BatchOrder(len(self._data[0]), task.batch_size, seeds)
        self._unit = nn.Parameter(torch.zeros_like(self.weights))
        undecayed = replace(task.optimizer, weight_decay=0.0)
        self._optimizer = undecayed.build([self._unit], lr=1.0)
        self.gradient = torch.zeros_like(self.weights)
        self._snapshot: dict[str, Tensor] = {}
        self._gradients = vmap(grad_and_value(self._loss), randomness="different")

    def __len__(self) -> int:
        return len(self.seeds)

    def backward(self) -> Tensor:
        """Losses of the next batch, (R,); leaves their gradients in `gradient`."""
        index = self._order.next().to(self.device)
        batch = tuple(t[index] for t in self._data)
        try:
            self.gradient, losses = self._gradients(self.weights, self._buffers, batch)
        except RuntimeError as error:
            if "vmap" in str(error):
                raise UnsupportedTrainingError(
                    f"{type(self._template.module).__name__} cannot be replicated by vmap ({error})"
                ) from error
            raise
        return losses.detach()

    def update(self, lr: Tensor) -> None:
        """One optimizer step with learning rates (R,)."""
        spec, gradient = self.task.optimizer, self.gradient
        if self.task.gradient_clip is not None:
            norm = gradient.norm(dim=-1, keepdim=True)
            gradient = gradient * (self.task.gradient_clip / (norm + 1e-6)).clamp_max(1.0)
        rate = lr.unsqueeze(-1)
        if spec.weight_decay and spec.name == "adamw":
            self.weights.mul_(1 - rate * spec.weight_decay)
        elif spec.weight_decay:
            gradient = gradient.add(self.weights, alpha=spec.weight_decay)
        self._unit.grad = gradient
        self._optimizer.step()
        with torch.no_grad():
            self.weights.addcmul_(self._unit, rate)
            self._unit.zero_()

    def evaluate(self, data: tuple[Tensor, ...]) -> Tensor:
        """Mean loss of each replica over a data set, in eval mode: (R,)."""
        self._template.eval()
        evaluate = vmap(self._loss, in_dims=(0, 0, None), randomness="different")
        total = torch.zeros(len(self), device=self.device)
        for chunk in zip(*(t.split(_EVALUATION_CHUNK) for t in data), strict=True):
            batch = tuple(t.to(self.device) for t in chunk)
            with torch.no_grad():
                total += evaluate(self.weights, self._buffers, batch) * len(batch[0])
        self._template.train()
        return total / len(data[0])

    def snapshot(self, where: Tensor) -> None:
        """Remembers weights, buffers and optimizer state of the replicas in the mask (R,)."""
        for name, live in self._state().items():
            if name not in self._snapshot:
                self._snapshot[name] = live.clone()
            else:
                _assign(self._snapshot[name], live, where)

    def restore(self, where: Tensor) -> None:
        """Puts the replicas in the mask (R,) back to their snapshots.

        The step counter of Adam's bias correction is shared by all replicas and goes on.
        """
        live = self._state()
        for name, saved in self._snapshot.items():
            _assign(live[name], saved, where)

    def _state(self) -> dict[str, Tensor]:
        state = {"weights": self.weights, **self._buffers}
        for name, value in self._optimizer.state.get(self._unit, {}).items():
            if isinstance(value, Tensor) and value.shape == self.weights.shape:
                state[f"optimizer.{name}"] = value
        return state

    def _loss(self, flat: Tensor, buffers: dict[str, Tensor], batch: tuple[Tensor, ...]) -> Tensor:
        pieces = zip(self._names, flat.split(self.sizes), self._shapes, strict=True)
        parameters = {name: piece.view(shape) for name, piece, shape in pieces}
        loss: Tensor = functional_call(self._template, (parameters, buffers), (batch,))
        return loss


def _assign(target: Tensor, source: Tensor, where: Tensor) -> None:
    mask = where.view(-1, *[1] * (target.dim() - 1))
    target.copy_(torch.where(mask, source, target))


def _stack_buffers(modules: list[Any], device: torch.device) -> dict[str, Tensor]:
    rows = [dict(m.named_buffers()) for m in modules]
    return {name: torch.stack([row[name] for row in rows]).to(device) for name in rows[0]}
