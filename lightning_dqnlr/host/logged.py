"""`RunLogger`: what a Trainer's loggers are told of the control of a run."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.loggers import MLFlowLogger, TensorBoardLogger

from lightning_dqnlr.control.telemetry import IntervalStats
from lightning_dqnlr.errors import MissingPackageError
from lightning_dqnlr.host.decisions import DecisionRecord
from lightning_dqnlr.host.driver import OptimizerDriver
from lightning_dqnlr.host.trace import confidence, figure_of
from lightning_dqnlr.host.trainer_queries import is_a

PICTURE = "dqnlr/run"
GRADIENTS = (
    "gradient_norm",
    "gradient_spread",
    "cos_gradients",
    "cos_gradient_update",
    "cos_gradient_last_update",
    "cos_updates",
    "update_norm",
    "weight_norm",
    "displacement",
    "distance",
)
_LOGGER = logging.getLogger("lightning_dqnlr")


class _Heard(NamedTuple):
    """A decision that the loggers have not been told of."""

    optimizer: int
    record: DecisionRecord
    stats: IntervalStats


class RunLogger:
    """Tells the loggers of a run: scalars at decisions, the rate used, the policy, the picture.

    All scalars are on the host when a decision is over, so that no device is waited for.

    Args:
        trainer: of the run, about to train.
        module: that is trained.
        drivers: of its optimizers.
        policy: its name, version and hash.
        gradients: whether to log the probe's statistics of gradients and updates, too.

    Example:
        logger = RunLogger(trainer, module, control.drivers, identity(policy), gradients=False)
        ...  # a batch
        logger.end_batch([3.2e-3])
    """

    def __init__(
        self,
        trainer: Trainer,
        module: LightningModule,
        drivers: Sequence[OptimizerDriver],
        policy: dict[str, str],
        *,
        gradients: bool,
    ) -> None:
        self._trainer = trainer
        self._module = module
        self._policy = policy
        self._gradients = gradients
        self._named = False
        self._every: int = max(0, trainer.log_every_n_steps)  # type: ignore[attr-defined]
        self._last_step = trainer.global_step  # after the last batch
        self._axis = 0  # where loggers have the last batch
        self._heard: list[_Heard] = []
        self._several = len(drivers) > 1
        self._trips = [sum(record["tripped"] for record in driver.trace) for driver in drivers]
        if self._every and trainer.is_global_zero:
            for index, driver in enumerate(drivers):
                driver.log.listeners.append(self._listener(index))

    def end_batch(self, used: Sequence[float | None]) -> None:
        """Logs what the batch has brought.

        Args:
            used: the learning rate of each optimizer's step; None where there was none.
        """
        if not self._named:
            self._name_policy()
        self._axis = self._trainer.fit_loop.epoch_loop._batches_that_stepped
        steps, before = self._trainer.global_step, self._last_step
        self._last_step = steps
        regular = bool(self._every) and steps // self._every > before // self._every
        if regular:
            for index, rate in enumerate(used):
                if rate is not None:
                    name = f"dqnlr/lr{self._suffix(index)}"
                    self._module.log(name, rate, on_step=True, on_epoch=False)
        self._tell(with_rate=not regular)

    def end(self, trace: Sequence[DecisionRecord]) -> None:
        """Tells of what the end of the run has decided, and shows the picture of the whole run."""
        self._tell(with_rate=True)
        if self._every and self._trainer.is_global_zero and trace:
            self._show(trace)

    def _suffix(self, index: int) -> str:
        return f"/{index}" if self._several else ""

    def _listener(self, index: int) -> Any:
        def hear(record: DecisionRecord, stats: IntervalStats) -> None:
            self._heard.append(_Heard(index, record, stats))

        return hear

    def _tell(self, *, with_rate: bool) -> None:
        """Of the decisions since the last call."""
        for heard in self._heard:
            scalars = self._scalars(heard)
            if not with_rate:
                del scalars["lr"]
            suffix = self._suffix(heard.optimizer)
            named = {
                f"dqnlr/{name}{suffix}": value
                for name, value in scalars.items()
                if math.isfinite(value)
            }
            for logger in self._trainer.loggers:
                logger.log_metrics(named, step=self._axis)
        self._heard.clear()

    def _scalars(self, heard: _Heard) -> dict[str, float]:
        record = heard.record
        self._trips[heard.optimizer] += record["tripped"]
        scalars = {
            "lr": record["lr"],
            "multiplier": record["multiplier"],
            "confidence": confidence(record["q_values"]),
            "trips": float(self._trips[heard.optimizer]),
        }
        if not bool(heard.stats.finite):  # what was seen of it is zero or nonsense
            return scalars
        scalars["update_ratio"] = record["update_ratio"]
        if self._gradients:
            scalars |= {name: float(getattr(heard.stats, name)) for name in GRADIENTS}
        return scalars

    def _name_policy(self) -> None:
        """Adds the policy to the hyperparameters, after the module has logged its own.

        TensorBoard shows the first entry of a run only, and callbacks begin before the module.
        """
        self._named = True
        named = {f"dqnlr/{key}": value for key, value in self._policy.items()}
        for logger in self._trainer.loggers:
            logger.log_hyperparams(named)

    def _show(self, trace: Sequence[DecisionRecord]) -> None:
        """Gives the picture to those that take one. It must not cost anybody a finished run."""
        for logger in self._trainer.loggers:
            try:
                show = _shower(logger)
                if show is not None:
                    show(pixels(figure_of(trace)), self._axis)
            except MissingPackageError:  # the picture is an extra
                return
            except Exception as error:
                name = type(logger).__name__
                _LOGGER.warning("the picture of the run did not get to %s: %s", name, error)


def pixels(figure: Any) -> Any:
    """A figure of matplotlib as an array of bytes, (height, width, 3).

    Example:
        pixels(figure_of(callback.trace)).shape
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    figure.set_dpi(110)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


def _shower(logger: Any) -> Any:
    """What takes an image and a step; None of a logger that takes no images."""
    if is_a(logger, TensorBoardLogger):
        experiment = logger.experiment
        return lambda image, step: experiment.add_image(PICTURE, image, step, dataformats="HWC")
    if is_a(logger, MLFlowLogger):
        client, run = logger.experiment, logger.run_id
        return lambda image, _: client.log_image(run, image, f"{PICTURE}.png")
    if hasattr(logger, "log_image"):  # of Weights & Biases, and those made like it
        return lambda image, step: logger.log_image(PICTURE, [image], step)
    return None
