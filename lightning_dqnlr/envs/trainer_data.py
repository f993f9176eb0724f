"""A task as a Trainer wants it: batches in the order of a seed, the Trainer itself, the losses."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor
from torch.utils import _pytree as pytree
from torch.utils.data import DataLoader, Dataset, Sampler

from lightning_dqnlr.envs.environment import Losses
from lightning_dqnlr.envs.module import silence, training_loss
from lightning_dqnlr.envs.replicas import EVALUATION_CHUNK, BatchOrder, mean_over_chunks
from lightning_dqnlr.tasks.task import Task
from lightning_dqnlr.tasks.user import library_of

_QUIET = {
    "lightning.pytorch": logging.WARNING,  # devices, "max_steps reached"
    "pytorch_lightning": logging.WARNING,
    "lightning_dqnlr": logging.ERROR,  # trips of the circuit breaker: counted, not announced
}


@contextmanager
def quiet() -> Iterator[None]:
    """Keeps what thousands of short runs would announce, one by one, from the terminal."""
    loggers = {logging.getLogger(name): level for name, level in _QUIET.items()}
    before = {logger: logger.level for logger in loggers}
    try:
        for logger, level in loggers.items():
            logger.setLevel(level)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module="(pytorch_)?lightning")
            yield
    finally:
        for logger, level in before.items():
            logger.setLevel(level)


def task_loader(task: Task, seed: int) -> DataLoader[Any]:
    """The training batches that the replica of this seed sees."""
    return DataLoader(
        _Examples(task.train_data),
        batch_sampler=_Batches(task, seed),
        collate_fn=lambda batch: batch,
        generator=torch.Generator(),  # or it would draw a number from the run's own stream
    )


def task_trainer(
    module: LightningModule,
    task: Task,
    callbacks: list[Callback],
    accelerator: str,
    steps: int | None = None,
    folder: str | None = None,
) -> Trainer:
    """A Trainer of the task's length, or of so many steps, that writes into no other folder."""
    trainer: Trainer = library_of(module).Trainer(
        callbacks=callbacks,
        max_steps=task.horizon if steps is None else steps,
        gradient_clip_val=task.gradient_clip,
        accelerator=accelerator,
        devices=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        default_root_dir=folder,
    )
    return trainer


def module_losses(module: LightningModule, task: Task) -> Losses:
    """Mean losses of a module outside of any Trainer, each of shape ()."""
    return Losses.over(task, partial(mean_loss, module))


@torch.no_grad()
def mean_loss(module: LightningModule, data: Any) -> Tensor:
    """Mean loss of a module over a data set, in eval mode and outside of any Trainer; shape ()."""
    silence(module)
    module.eval()
    loss = partial(training_loss, module)
    return mean_over_chunks(loss, data, EVALUATION_CHUNK, module.device).cpu()


class _Batches(Sampler[list[int]]):
    """The batches that the replica of a seed sees."""

    def __init__(self, task: Task, seed: int) -> None:
        self._order = BatchOrder(task.examples, task.batch_size, [seed], task.shuffle)

    def __len__(self) -> int:
        return self._order.batches

    def __iter__(self) -> Iterator[list[int]]:
        for _ in range(len(self)):
            yield self._order.next()[0].tolist()


class _Examples(Dataset[Any]):
    """A pytree of tensors as a data set that gives whole batches."""

    def __init__(self, data: Any) -> None:
        self._data = data

    def __len__(self) -> int:
        return len(pytree.tree_leaves(self._data)[0])

    def __getitem__(self, index: int) -> Any:
        return pytree.tree_map(lambda t: t[index], self._data)

    def __getitems__(self, indices: list[int]) -> Any:
        return pytree.tree_map(lambda t: t[indices], self._data)
