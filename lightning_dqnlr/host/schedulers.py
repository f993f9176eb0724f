"""Schedulers of `configure_optimizers`, which set the learning rate too: what becomes of them."""

from __future__ import annotations

import logging
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

import torch
from lightning.pytorch import Trainer

from lightning_dqnlr.errors import ConfigurationError, UnsupportedTrainingError
from lightning_dqnlr.host.earlier_rates import rates_before, undo
from lightning_dqnlr.host.options import ControlOptions
from lightning_dqnlr.host.scaled_rates import LIMIT, ScaledRates

OnScheduler = Literal["replace", "scale", "error"]
_LOGGER = logging.getLogger("lightning_dqnlr")


def check_scaling(
    on_scheduler: OnScheduler, options: ControlOptions, remembers: bool = False
) -> None:
    """Raises ConfigurationError for options that the scheduler has the say in under "scale"."""
    if on_scheduler != "scale":
        return
    given = {"min_lr": options.min_lr, "max_lr": options.max_lr}
    named = [name for name, value in given.items() if value is not None]
    named += ["start"] if options.start == "auto" else []
    named += ["memory"] if remembers else []
    if named:
        raise ConfigurationError(
            f'{", ".join(named)}: on_scheduler="scale" begins at the scheduler\'s learning rate '
            f"and stays within 1/{LIMIT:g} to {LIMIT:g} times it; leave {named[0]} out, or use "
            'on_scheduler="replace".'
        )


def check_same_control(saved: Mapping[str, Any], scaled: Sequence[ScaledRates | None]) -> None:
    """Raises ConfigurationError if a resumed run's schedulers were treated otherwise."""
    now_scaled = any(scaled)
    if not saved or bool(saved.get("scaled")) == now_scaled:
        return
    then, now = ("without", "with") if now_scaled else ("with", "without")
    raise ConfigurationError(
        f"on_scheduler: the saved run was controlled {then} a scheduler beside it, and this one is "
        f"{now}. Resume with the scheduler and the on_scheduler that it was saved with."
    )


def take_over(trainer: Trainer, on_scheduler: OnScheduler) -> list[ScaledRates | None]:
    """Settles who sets the learning rates of a Trainer's optimizers.

    Args:
        trainer: about to train.
        on_scheduler: what becomes of schedulers: "replace" retires them, "scale" leaves them
            their say.

    Returns:
        For each optimizer its rates beside a scheduler that stays; None if the callback alone sets
        the rates.

    Raises:
        UnsupportedTrainingError: under "error", if there is a scheduler.

    Example:
        (scaled,) = take_over(trainer, "scale")
    """
    schedulers = [config.scheduler for config in trainer.lr_scheduler_configs]
    names = ", ".join(type(scheduler).__name__ for scheduler in schedulers)
    if not schedulers:
        return [None] * len(trainer.optimizers)
    if on_scheduler == "error":
        raise UnsupportedTrainingError(
            f"{names} sets the learning rate too, and DQNLRCallback would overrule it; remove it "
            'from configure_optimizers, remove DQNLRCallback, or give it on_scheduler="replace" '
            'or "scale".'
        )
    if on_scheduler == "scale":
        _LOGGER.warning(
            "%s keeps setting the learning rate; DQNLRCallback multiplies it by 1/%g to %g.",
            names,
            LIMIT,
            LIMIT,
        )
        return [_scaled(optimizer, schedulers) for optimizer in trainer.optimizers]
    retire(trainer)
    _LOGGER.warning(
        "DQNLRCallback sets the learning rate in place of %s, which is not stepped any more. To "
        'keep it, use DQNLRCallback(on_scheduler="scale").',
        names,
    )
    return [None] * len(trainer.optimizers)


def _scaled(optimizer: torch.optim.Optimizer, schedulers: Sequence[Any]) -> ScaledRates | None:
    own = [scheduler for scheduler in schedulers if scheduler.optimizer is optimizer]
    return ScaledRates(optimizer, rates_before(optimizer, own)) if own else None


def retire(trainer: Trainer) -> None:
    """Has a Trainer step its schedulers no more, and undoes what they have set so far.

    They stay in its list, because a module may ask for `lr_schedulers()`, checkpoints hold their
    state, and `LearningRateMonitor` takes their names.
    """
    configs = trainer.lr_scheduler_configs
    trainer.strategy.lr_scheduler_configs = [replace(c, frequency=sys.maxsize) for c in configs]
    for optimizer in trainer.optimizers:
        undo(optimizer, [c.scheduler for c in configs if c.scheduler.optimizer is optimizer])
