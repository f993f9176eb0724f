"""R replicas of one task in one `vmap`ped training step, on any device.

Each replica has its own initial weights, data order and learning rate. All trained weights live in
one (R, P) tensor, so that an optimizer step, the probe and a restore are one or two kernels each.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from lightning import LightningModule
from torch import Tensor, nn
from torch.func import functional_call, grad_and_value, stack_module_state, vjp, vmap
from torch.utils import _pytree as pytree

from lightning_dqnlr.envs.folded import FoldedChannels, channels_last, foldable
from lightning_dqnlr.envs.module import detach_from_trainer, training_loss
from lightning_dqnlr.envs.process import RandomStream
from lightning_dqnlr.envs.replicated_optimizer import (
    ReplicatedOptimizer,
    configured_optimizer,
    trained_parameters,
)
from lightning_dqnlr.errors import UnsupportedTrainingError
from lightning_dqnlr.tasks.optimizers import Gradients
from lightning_dqnlr.tasks.task import ClosedFormGradient, Task

EVALUATION_CHUNK = 256
# What torch says of operations that vmap cannot carry.
_UNCARRIED = ("vmap", "Batching rule not implemented", "batching rule")


class BatchOrder:
    """Which examples each replica sees: epoch after epoch, incomplete batches dropped.

    Depends only on a replica's seed, so a plain loop can see the very same batches. Each epoch is a
    fresh permutation, or without `shuffle` the data's own order.
    """

    def __init__(
        self, examples: int, batch_size: int, seeds: Sequence[int], shuffle: bool = True
    ) -> None:
        self._examples = examples
        self._batch = min(batch_size, examples)
        self._generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        self._shuffle = shuffle
        self._order = torch.empty(0)
        self._position = examples

    @property
    def batches(self) -> int:
        return self._examples // self._batch

    def next(self) -> Tensor:
        """Indices of the next batch of each replica, (R, batch)."""
        if self._position + self._batch > self._examples:
            self._order = torch.stack(self._epoch())
            self._position = 0
        start = self._position
        self._position += self._batch
        return self._order[:, start : self._position]

    def _epoch(self) -> list[Tensor]:
        if not self._shuffle:
            return [torch.arange(self._examples)] * len(self._generators)
        return [torch.randperm(self._examples, generator=g) for g in self._generators]


class _TrainingStep(nn.Module):
    """Lets `functional_call`, which only calls `forward`, reach `training_step`."""

    def __init__(self, module: LightningModule) -> None:
        super().__init__()
        self.module = module

    def forward(self, batch: Any) -> Tensor:
        return training_loss(self.module, batch)


class Replicas:
    """The inner loops. Per step: `backward`, look at `gradient` and `weights`, then `update`.

    Args:
        task: what to train.
        seeds: one per replica; fixes initial weights and data order. If all are the same, the
            replicas share their dropout masks, too: those of a Trainer with that seed.
        device: where to train.

    Attributes:
        weights: (R, P) the trained parameters, concatenated in the optimizer's order.
        gradient: (R, P) the last gradient, before clipping.
        stream: the random state from which the replicas' dropout draws.
        shapes: of the trained parameters; `sizes` are their numbers of elements.
        follows_gradient: whether the first update is lr times the gradient (SGD).

    Raises:
        UnsupportedTrainingError: if the module cannot be replicated; names the remedy.
    """

    def __init__(
        self, task: Task, seeds: Sequence[int], device: torch.device | str = "cpu"
    ) -> None:
        self.task = task
        self.seeds = tuple(seeds)
        self.device = torch.device(device)
        rows = {seed: self._build(seed) for seed in reversed(dict.fromkeys(seeds))}
        self._template = template = rows[self.seeds[0]]
        parameters, self._buffers = stack_module_state([rows[seed] for seed in self.seeds])
        parameters = {name: stacked.detach() for name, stacked in parameters.items()}
        optimizer = configured_optimizer(template.module)
        self.follows_gradient = isinstance(optimizer, torch.optim.SGD)
        trained = _trained_parameters(template, optimizer)
        self._names = list(trained)
        self.shapes = [p.shape for p in trained.values()]
        self.sizes = [p.numel() for p in trained.values()]
        flat = [parameters.pop(name).reshape(len(self), -1) for name in self._names]
        self.weights = torch.cat(flat, dim=-1).float()
        self._constants = parameters
        self._data = pytree.tree_map(lambda t: t.to(self.device), task.train_data)
        self._order = BatchOrder(task.examples, task.batch_size, self.seeds, task.shuffle)
        self._optimizer = ReplicatedOptimizer(optimizer, self.weights)
        self.gradient = torch.zeros_like(self.weights)
        self._latest: dict[str, Tensor] = {}
        self._proven: dict[str, Tensor] = {}
        self._randomness = "same" if len(rows) == 1 else "different"
        self._losses = vmap(self._loss_of, randomness=self._randomness)
        self._vmapped = vmap(grad_and_value(self._loss), randomness=self._randomness)
        self._folded = foldable(template)
        self._tied = _has_tied_tensors(template)
        closed = template.module
        self._closed_form = closed if isinstance(closed, ClosedFormGradient) else None

    def __len__(self) -> int:
        return len(self.seeds)

    def backward(self) -> Tensor:
        """Losses of the next batch, (R,); leaves their gradients in `gradient`."""
        index = self._order.next().to(self.device)
        batch = pytree.tree_map(lambda t: self._lay_out(t[index]), self._data)
        found = self._gradients(batch)
        self.gradient = found.gradient
        return found.losses

    def update(self, lr: Tensor) -> None:
        """One optimizer step with learning rates (R,)."""
        gradient = self.gradient
        if self.task.gradient_clip is not None:
            norm = gradient.norm(dim=-1, keepdim=True)
            gradient = gradient * (self.task.gradient_clip / (norm + 1e-6)).clamp_max(1.0)
        self._optimizer.step(self.weights, gradient, lr)

    def evaluate(self, data: Any) -> Tensor:
        """Mean training loss of each replica over a data set, in eval mode: (R,)."""
        self._template.eval()
        with self.stream.active(), self._naming_the_remedy():
            try:
                losses = self._mean_loss(self._loss, data, EVALUATION_CHUNK)
            except RuntimeError as error:
                # Recurrent layers have a batching rule only where gradients may be asked for. That
                # costs memory for what a backward pass would need, hence the smaller chunks.
                if "Batching rule" not in str(error):
                    raise
                losses = self._mean_loss(self._differentiable_loss, data, EVALUATION_CHUNK // 8)
        self._template.train()
        return losses

    def snapshot(self, where: Tensor) -> None:
        """Remembers weights, buffers and optimizer state of the replicas in the mask (R,)."""
        for name, live in self._state().items():
            if name not in self._latest:
                self._latest[name] = live.clone()
                self._proven[name] = live.clone()
            else:
                _assign(self._proven[name], self._latest[name], where)
                _assign(self._latest[name], live, where)

    def restore(self, where: Tensor) -> None:
        """Puts the replicas in the mask (R,) back to their last snapshot but one, as `Snapshot`.

        The step counter of Adam's bias correction is shared by all replicas and goes on.
        """
        live = self._state()
        for name, saved in self._proven.items():
            _assign(live[name], saved, where)
            _assign(self._latest[name], saved, where)

    @torch.no_grad()
    def _mean_loss(self, loss: Callable[..., Tensor], data: Any, chunk_size: int) -> Tensor:
        evaluate = vmap(loss, in_dims=(0, 0, 0, None), randomness=self._randomness)
        of_batch = partial(evaluate, self.weights, self._constants, self._buffers)
        return mean_over_chunks(of_batch, data, chunk_size, self.device)

    def _build(self, seed: int) -> _TrainingStep:
        """A module as a Trainer of this seed would have it when training begins."""
        self.stream = RandomStream(seed, self.device)
        with self.stream.active():
            module = detach_from_trainer(self.task.build(seed))
        return _TrainingStep(module).to(self.device).train()

    def _state(self) -> dict[str, Tensor]:
        return {"weights": self.weights, **self._buffers, **self._optimizer.state()}

    def _gradients(self, batch: Any) -> Gradients:
        if self._closed_form is not None:
            buffers = {k.removeprefix("module."): v for k, v in self._buffers.items()}
            return self._closed_form.gradients_and_losses(self.weights, buffers, batch)
        state = (self._constants, self._buffers, batch)
        with self._naming_the_remedy():
            if self._folded:
                return self._folded_gradients(*state)
            gradient, losses = self._vmapped(self.weights, *state)
        return Gradients(gradient, losses.detach())

    @torch.enable_grad()
    def _folded_gradients(self, *state: Any) -> Gradients:
        """By autograd outside of `vmap`: no loss depends on the weights of another replica."""
        weights = self.weights.detach().requires_grad_()
        # Cut outside of `vmap`: that takes a tenth of the time.
        losses = self._losses(self._by_name(weights), *state)
        (gradient,) = torch.autograd.grad(losses.sum(), weights)
        return Gradients(gradient, losses.detach())

    def _lay_out(self, batch: Tensor) -> Tensor:
        return channels_last(batch) if self._folded and batch.device.type == "cpu" else batch

    @contextmanager
    def _naming_the_remedy(self) -> Iterator[None]:
        try:
            yield
        except RuntimeError as error:
            if not any(words in str(error) for words in _UNCARRIED):
                raise
            raise UnsupportedTrainingError(
                f"{type(self._template.module).__name__} cannot be replicated by vmap; train "
                f"it with env=trainer. ({' '.join(str(error).split())})"
            ) from error

    def _differentiable_loss(self, flat: Tensor, *arguments: Any) -> Tensor:
        loss: Tensor = vjp(lambda weights: self._loss(weights, *arguments), flat)[0]
        return loss

    def _loss(self, flat: Tensor, *arguments: Any) -> Tensor:
        return self._loss_of(self._by_name(flat), *arguments)

    def _by_name(self, weights: Tensor) -> dict[str, Tensor]:
        """The trained parameters, from (*lead, P)."""
        pieces = zip(self._names, weights.split(self.sizes, dim=-1), self.shapes, strict=True)
        return {name: piece.view(*piece.shape[:-1], *shape) for name, piece, shape in pieces}

    def _loss_of(
        self,
        parameters: dict[str, Tensor],
        constants: dict[str, Tensor],
        buffers: dict[str, Tensor],
        batch: Any,
    ) -> Tensor:
        state = (parameters, constants, buffers)
        with FoldedChannels() if self._folded else nullcontext():
            loss: Tensor = functional_call(self._template, state, (batch,), tie_weights=self._tied)
        return loss


def _has_tied_tensors(step: _TrainingStep) -> bool:
    """Whether a parameter or buffer has two names, which takes time to look for at each step."""
    tensors = [step.named_parameters, step.named_buffers]
    return any(len(list(named(remove_duplicate=False))) > len(list(named())) for named in tensors)


def _trained_parameters(
    step: _TrainingStep, optimizer: torch.optim.Optimizer
) -> dict[str, nn.Parameter]:
    """What the optimizer trains, by name, in its order."""
    names = {id(p): name for name, p in step.named_parameters()}
    groups = map(trained_parameters, optimizer.param_groups)
    return {names[id(p)]: p for group in groups for p in group}


def mean_over_chunks(
    loss: Callable[[Any], Tensor], data: Any, size: int, device: torch.device
) -> Tensor:
    """Mean of a batch's mean loss over a data set, so many examples at a time."""
    leaves, structure = pytree.tree_flatten(data)
    total = torch.zeros((), device=device)
    for chunk in zip(*(t.split(size) for t in leaves), strict=True):
        batch = pytree.tree_unflatten([t.to(device) for t in chunk], structure)
        total = (total + loss(batch) * len(chunk[0])).float()
    return total / len(leaves[0])


def _assign(target: Tensor, source: Tensor, where: Tensor) -> None:
    mask = where.view(-1, *[1] * (target.dim() - 1))
    torch.where(mask, source, target, out=target)
