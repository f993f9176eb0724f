"""What the controls of runs share: their terms, the driver of an optimizer, the checks."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import NamedTuple

import torch
from lightning.pytorch import LightningModule, Trainer

from lightning_dqnlr.errors import ConfigurationError, UnsupportedTrainingError
from lightning_dqnlr.host.driver import OptimizerDriver
from lightning_dqnlr.host.options import ControlOptions
from lightning_dqnlr.host.scaled_rates import ScaledRates
from lightning_dqnlr.host.schedulers import OnScheduler
from lightning_dqnlr.host.step_loss import Metric, Mode
from lightning_dqnlr.host.timed_driver import TimedDriver
from lightning_dqnlr.host.trainer_queries import averages
from lightning_dqnlr.policy.choice import Policy

Monitor = str | dict[int, str] | None
_LOGGER = logging.getLogger("lightning_dqnlr")


class RunTerms(NamedTuple):
    """What a run is controlled by."""

    policy: Policy
    options: ControlOptions
    monitor: Monitor
    mode: Mode
    on_scheduler: OnScheduler

    def monitor_of(self, index: int, optimizers: int) -> Metric | None:
        """The metric of one of the optimizers; None for its loss.

        Raises:
            ConfigurationError: if one metric is given for several optimizers, or one for an
                optimizer that there is not.
        """
        if self.monitor is None or isinstance(self.monitor, Mapping):
            named = self.monitor or {}
            if not set(named) <= set(range(optimizers)):
                raise ConfigurationError(
                    f"monitor={self.monitor!r}: there are {optimizers} optimizers, counted from 0 "
                    "in the order of configure_optimizers."
                )
            return Metric(named[index], self.mode) if index in named else None
        if optimizers > 1:
            raise ConfigurationError(
                f"monitor={self.monitor!r}: there are {optimizers} optimizers; name a metric for "
                "each, as in {0: 'g_loss', 1: 'd_loss'}, or leave monitor out."
            )
        return Metric(self.monitor, self.mode)


def make_driver(
    trainer: Trainer,
    module: LightningModule,
    optimizer: torch.optim.Optimizer,
    terms: RunTerms,
    scaled: ScaledRates | None,
) -> TimedDriver:
    """The driver of one of a Trainer's optimizers."""
    return TimedDriver(
        optimizer,
        terms.policy,
        terms.options if scaled is None else scaled.options(terms.options),
        module=module,
        averages=averages(trainer),
        rates=scaled,
        across_ranks=trainer.world_size > 1,
    )


def watch_steps(driver: OptimizerDriver, scaled: ScaledRates | None) -> None:
    """Has the optimizer tell of its steps, and use the factor in them."""
    driver.watch_steps()
    if scaled is not None:
        scaled.watch_steps()


def close_driver(driver: OptimizerDriver, scaled: ScaledRates | None) -> None:
    """Takes the hooks off the optimizer."""
    driver.close()
    if scaled is not None:
        scaled.close()


def refuse_or_warn(driver: OptimizerDriver, words: str) -> bool:
    """Refuses a run whose first step went past Lightning; says it of a later step."""
    if not driver.begun:
        raise UnsupportedTrainingError(words)
    _LOGGER.warning("%s Such a step does not count.", words)
    return True
