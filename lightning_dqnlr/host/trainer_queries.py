"""What `DQNLRCallback` asks a Trainer: can it be controlled, and how long will it train?"""

from __future__ import annotations

import math
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer, callbacks
from lightning.pytorch.callbacks import GradientAccumulationScheduler
from lightning.pytorch.callbacks import StochasticWeightAveraging as SWA
from lightning.pytorch.strategies import DeepSpeedStrategy, FSDPStrategy
from torch import nn

from lightning_dqnlr.errors import UnsupportedTrainingError

# Lightning has it from 2.6 on.
_WEIGHT_AVERAGING = [callbacks.WeightAveraging] if hasattr(callbacks, "WeightAveraging") else []


def is_a(thing: object, *classes: type) -> bool:
    """Whether it is of one of Lightning's classes, under either of the two names of Lightning.

    `pytorch_lightning` has all classes of `lightning.pytorch` a second time.

    Example:
        >>> import lightning.pytorch
        >>> import pytorch_lightning
        >>> is_a(pytorch_lightning.callbacks.Timer(), lightning.pytorch.callbacks.Timer)
        True
    """
    names = {(c.__module__.removeprefix("lightning.pytorch"), c.__qualname__) for c in classes}
    bases = [(base.__module__, base.__qualname__) for base in type(thing).__mro__]
    prefixes = ("lightning.pytorch", "pytorch_lightning")
    return any((m.removeprefix(p), name) in names for m, name in bases for p in prefixes)


def check_training(trainer: Trainer, pl_module: LightningModule) -> None:
    """Raises UnsupportedTrainingError, with the remedy, for training that cannot be controlled."""
    name = type(pl_module).__name__
    optimizers = [o for o in trainer.optimizers if o.param_groups]
    if not optimizers or (pl_module.automatic_optimization and len(optimizers) > 1):
        raise UnsupportedTrainingError(
            f"{name}.configure_optimizers gives {len(optimizers) or 'no'} optimizer"
            f"{'s' if optimizers else ''}; DQNLRCallback needs one, or several under manual "
            "optimisation. Return an optimizer, or remove the callback."
        )
    if any(is_a(c, SWA) for c in trainer.callbacks):  # type: ignore[attr-defined]
        raise UnsupportedTrainingError(
            "StochasticWeightAveraging sets the learning rate too, and DQNLRCallback would "
            "overrule it. Take WeightAveraging or EMAWeightAveraging in its place, which only "
            "average; or remove DQNLRCallback."
        )


def check_strategy(trainer: Trainer) -> None:
    """Raises UnsupportedTrainingError, with the remedy, for a strategy that is not supported.

    FSDPStrategy trains on GPUs only, and what has not been tried is not supported.
    """
    remedy = "Use ModelParallelStrategy with torch's fully_shard, or DDP."
    name = type(trainer.strategy).__name__
    if is_a(trainer.strategy, DeepSpeedStrategy):
        raise UnsupportedTrainingError(
            f"strategy {name}: DeepSpeed makes optimizer and steps its own, so that DQNLRCallback "
            f"cannot follow them. {remedy}"
        )
    if is_a(trainer.strategy, FSDPStrategy):
        raise UnsupportedTrainingError(
            f"strategy {name}: DQNLRCallback does not support FullyShardedDataParallel, which this "
            f"strategy wraps the module in. {remedy}"
        )


def averages(trainer: Trainer) -> list[nn.Module]:
    """The averages of the weights that Lightning's callbacks keep."""
    found = [c for c in trainer.callbacks if is_a(c, *_WEIGHT_AVERAGING)]  # type: ignore[attr-defined]
    return [c._average_model for c in found if c._average_model is not None]


def saves_within_epochs(trainer: Trainer) -> bool:
    """Whether a checkpoint callback may write the weights after the batch that just ended.

    It may write nothing but weights, and then it asks no other callback.
    """
    step = trainer.global_step
    for callback in trainer.checkpoint_callbacks:
        every = getattr(callback, "_every_n_train_steps", 0)
        timed = getattr(callback, "_train_time_interval", None) is not None
        if timed or (every and step % every == 0):
            return True
    return False


def horizon_of(trainer: Trainer, first_step: int) -> int | None:
    """Optimizer steps from `first_step` to the run's end; None if the end is unknown."""
    steps = _within_max_steps(trainer, _steps_of_epochs(trainer, 0))
    return None if math.isinf(steps) or steps <= first_step else int(steps) - first_step


def horizon_from_here(trainer: Trainer, first_step: int) -> int:
    """The same at an epoch's start, where earlier epochs had another number of batches."""
    left = _steps_of_epochs(trainer, trainer.current_epoch)
    steps = _within_max_steps(trainer, trainer.global_step + left)
    return int(steps) - first_step


def _within_max_steps(trainer: Trainer, steps: float) -> float:
    return steps if trainer.max_steps == -1 else min(steps, trainer.max_steps)


def _steps_of_epochs(trainer: Trainer, first: int) -> float:
    """Optimizer steps of the epochs from number `first` on; infinite if nobody knows."""
    batches = trainer.num_training_batches
    if trainer.max_epochs in (None, -1) or math.isinf(batches):
        return math.inf
    epochs = range(first, trainer.max_epochs or 0)
    callbacks: list[Any] = trainer.callbacks  # type: ignore[attr-defined]
    changing = [c for c in callbacks if is_a(c, GradientAccumulationScheduler)]
    if not changing:
        return math.ceil(batches / trainer.accumulate_grad_batches) * len(epochs)
    factors = (changing[0].get_accumulate_grad_batches(epoch) for epoch in epochs)
    return sum(math.ceil(batches / factor) for factor in factors)


def gradient_scale(trainer: Trainer, optimizer: torch.optim.Optimizer) -> float | None:
    """What the gradients are multiplied by, where Lightning leaves it to the optimizer to unscale.

    Fused optimizers unscale the gradients themselves.
    """
    scaler = getattr(trainer.precision_plugin, "scaler", None)
    if scaler is None or not getattr(optimizer, "_step_supports_amp_scaling", False):
        return None
    return float(scaler.get_scale())
