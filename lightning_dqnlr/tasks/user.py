"""A user's own LightningModules and data as tasks of meta-training."""

from __future__ import annotations

import copy
import itertools
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import lightning.pytorch
import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.utils import _pytree as pytree
from torch.utils.data import DataLoader, IterableDataset

from lightning_dqnlr.errors import ConfigurationError
from lightning_dqnlr.tasks.data.examples import Parts
from lightning_dqnlr.tasks.sampling import derive_seed

_HELD_OUT = 0.1


def library_of(module: nn.Module) -> Any:
    """The package that a LightningModule is of: `lightning.pytorch` or `pytorch_lightning`.

    The second has all classes of the first again, and its Trainer takes its own modules only.

    Example:
        >>> library_of(LightningModule()).__name__
        'lightning.pytorch'
    """
    older = sys.modules.get("pytorch_lightning")
    if older is not None and isinstance(module, older.LightningModule):
        return older
    return lightning.pytorch


def _is_module(thing: object) -> bool:
    return isinstance(thing, nn.Module) and isinstance(thing, library_of(thing).LightningModule)


@dataclass(frozen=True)
class ModuleBuilder:
    """Builds a module from an initialisation seed; serves as `Task.build`.

    Attributes:
        module: a callable for fresh weights, or a module whose weights every copy starts from.
        task: the task's name; tasks of different names start from different weights.
    """

    module: LightningModule | Callable[[], LightningModule]
    task: str

    def __call__(self, seed: int) -> LightningModule:
        module: Any = self.module
        if _is_module(module):
            copied: LightningModule = copy.deepcopy(module)
            return copied
        if callable(module) and not isinstance(module, nn.Module):
            with seeded_weights(self.task, seed):
                module = module()
        if not _is_module(module):
            raise ConfigurationError(
                f"module gives {type(module).__name__}; it must be a LightningModule, or something "
                "that returns one when called without arguments."
            )
        built: LightningModule = module
        return built


@contextmanager
def seeded_weights(task: str, seed: int) -> Iterator[None]:
    """Seeds the CPU's global random state for a block, then restores it."""
    with torch.random.fork_rng(devices=[]):
        # torch.manual_seed would reach the accelerators' states too, which the fork leaves alone.
        torch.default_generator.manual_seed(derive_seed(task, "train", seed))
        yield


def check_loader(argument: str, loader: object) -> None:
    """Refuses what is no `DataLoader`, such as the function that makes one."""
    if not isinstance(loader, DataLoader):
        raise ConfigurationError(
            f"{argument}={loader!r} must be a torch DataLoader; call it, if it makes one."
        )


def read_examples(loader: DataLoader[Any], argument: str, most: int) -> Any:
    """All examples of a loader's data set, collated once: a pytree of tensors (examples, ...).

    Raises:
        ConfigurationError: too many examples, or a batch is not made of tensors with one row per
            example.
    """
    data: Any = loader.dataset
    rows = data if isinstance(data, IterableDataset) else (data[i] for i in range(len(data)))
    examples = list(itertools.islice(rows, most + 1))
    if not examples or len(examples) > most:
        raise ConfigurationError(
            f"{argument} has {'no' if not examples else f'more than {most}'} examples; all of them "
            "are held in memory. Raise max_examples, or give a subset."
        )
    if loader.collate_fn is None:
        raise ConfigurationError(f"{argument} has no collate_fn; leave the default.")
    batch = loader.collate_fn(examples)
    for leaf in pytree.tree_leaves(batch):
        if not isinstance(leaf, Tensor) or leaf.ndim == 0 or len(leaf) != len(examples):
            shown = tuple(leaf.shape) if isinstance(leaf, Tensor) else type(leaf).__name__
            raise ConfigurationError(
                f"{argument}: its collate_fn must turn {len(examples)} examples into tensors with "
                f"as many rows, in tuples, lists or dicts; one is {shown}. Encode text and "
                "other objects as numbers, and pad what differs in size."
            )
    return batch


def read_batch_size(loader: DataLoader[Any]) -> int:
    """The loader's examples per batch; `ConfigurationError` if it has no fixed number of them."""
    size = getattr(loader.batch_sampler, "batch_size", loader.batch_size)
    if not isinstance(size, int):
        raise ConfigurationError("dataloader has no batch_size; give it one.")
    return size


def hold_out(data: Any) -> Parts:
    """Splits off the last tenth of a pytree of tensors (examples, ...), after a fixed shuffle."""
    count = len(pytree.tree_leaves(data)[0])
    if count < 2:
        raise ConfigurationError("dataloader has a single example; give validation too.")
    order = torch.randperm(count, generator=torch.Generator().manual_seed(0))
    # In the order of the data set, which a loader that does not shuffle keeps.
    cut = count - max(1, round(_HELD_OUT * count))
    kept = order[:cut].sort().values
    held_out = order[cut:].sort().values
    train = pytree.tree_map(lambda tensor: tensor[kept], data)
    return Parts(train, pytree.tree_map(lambda tensor: tensor[held_out], data))


def optimizer_label(module: LightningModule) -> str:
    """The class of the module's optimizer in lower case, as far as it tells without a Trainer."""
    try:
        configured: Any = module.configure_optimizers()
    except Exception:  # it may need its Trainer; whoever trains it will hear of any fault
        return "unknown"
    optimizer = configured.get("optimizer") if isinstance(configured, dict) else configured
    while isinstance(optimizer, list | tuple) and optimizer:
        optimizer = optimizer[0]
    return type(optimizer).__name__.lower()
