"""`Remembering`: a run's part in a memory. It asks for a rate, and leaves what came of it."""

from __future__ import annotations

import datetime
import logging
import math
from collections.abc import Mapping, Sequence
from itertools import accumulate, pairwise
from typing import Any

import torch
from torch import Tensor, nn

from lightning_dqnlr.errors import ConfigurationError
from lightning_dqnlr.host.decisions import DecisionRecord
from lightning_dqnlr.host.driver import OptimizerDriver
from lightning_dqnlr.host.options import identity
from lightning_dqnlr.host.ranks import rank
from lightning_dqnlr.memory.folder import Memory
from lightning_dqnlr.memory.runs import Ended, Mode, Model, RememberedRun, model_of
from lightning_dqnlr.memory.suggest import suggest

TRAINING_LOSS = "training loss"
_MOST = 0.95  # share of its horizon that a completed run has made
_LAST = 0.1  # share of the decisions whose mean is the final training loss
_LOGGER = logging.getLogger("lightning_dqnlr")


class Remembering:
    """Chooses the learning rate that a run holds, and writes the run down at its end.

    Args:
        memory: of the earlier runs.
        model: that is about to be trained.
        driver: of its optimizer.
        metric: what the run is judged by.
        mode: of that metric.
        validates: whether `add` is told of the metric. If not, it is the training loss, or what
            the control follows in its place.

    Attributes:
        suggestion: what the earlier runs say.
        told: the runs of this model as plain data, this one included once it is written down.

    Raises:
        ConfigurationError: if the memory cannot be written.

    Example:
        remembering = Remembering(memory, model, driver, "val_loss", "min", validates=True)
        remembering.apply(remembering.suggestion.held)
        ...  # train
        remembering.finish()
    """

    def __init__(
        self,
        memory: Memory,
        model: Model,
        driver: OptimizerDriver,
        metric: str = TRAINING_LOSS,
        mode: Mode = "min",
        *,
        validates: bool = False,
    ) -> None:
        if not rank():
            memory.check_writable()
        self._memory = memory
        self._model = model
        self._driver = driver
        self._metric = metric
        self._mode = mode
        self._validates = validates
        self._best = math.nan
        self._seen = False  # whether there was a metric at all
        self._written = False
        bounds = {name: getattr(driver.controller, name) for name in ("min_lr", "max_lr")}
        self.suggestion = suggest(memory.runs().values(), model, metric, mode, **bounds)
        self._why = self.suggestion.why
        self.told = [run.to_dict() for run in self.suggestion.runs]

    def apply(self, held: float | None) -> None:
        """Has the run hold a rate, that of rank 0 in a parallel run; None for the policy's own."""
        self._driver.controller.peak = None if held is None else torch.tensor(held)
        _LOGGER.info(
            "memory: run %d of %s, %s (%s).",
            len(self.suggestion.runs) + 1,
            self._model.name,
            "at the policy's rates" if held is None else f"at {held:.3g}",
            self._why,
        )

    def resume(self, saved: Mapping[str, Any]) -> None:
        """Leaves the rate to the checkpoint that the run goes on from.

        Args:
            saved: what `state_dict` returned then; empty if the run had no memory.
        """
        self._why = "of the run that this one goes on with"
        if saved.get("metric") == self._metric:
            self._best, self._seen = saved["best"], saved["seen"]

    def state_dict(self) -> dict[str, Any]:
        """Builtins."""
        return {"metric": self._metric, "best": self._best, "seen": self._seen}

    def add(self, value: Tensor | float) -> None:
        """Takes in the metric of a validation."""
        number = float(value)
        self._seen = True
        better = number > self._best if self._mode == "max" else number < self._best
        if math.isfinite(number) and (better or math.isnan(self._best)):
            self._best = number

    def finish(self, interrupted: bool = False, stopped: bool = False) -> None:
        """Writes the run down, once; rank 0 of a parallel run does. One without decisions is not.

        A run that cannot be written down is said to be lost; training is not to fail for it.

        Args:
            interrupted: whether it was stopped from outside.
            stopped: whether it was stopped for what it had come to, ahead of its horizon.
        """
        trace = self._driver.trace
        if not trace or self._written or rank():
            return
        self._written = True
        try:
            run = self._run(trace, interrupted, stopped)
            self._memory.add(run)
        except ConfigurationError as error:
            _LOGGER.warning("memory: this run is not remembered: %s", error)
            return
        self.told.append(run.to_dict())
        if self._validates and not self._seen:
            _LOGGER.warning(
                "memory: %r, by which the run is judged, was never there; so the run teaches "
                "nothing. Log it in validation, or name another metric.",
                self._metric,
            )

    def _run(
        self, trace: Sequence[DecisionRecord], interrupted: bool, stopped: bool
    ) -> RememberedRun:
        value, error = self._judged(trace)
        peak = self._driver.controller.peak
        largest, quartile = _largest_and_quartile(trace)
        return RememberedRun(
            model=self._model,
            policy=identity(self._driver.policy),
            date=datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="milliseconds"),
            steps=self._driver.now,
            ended=self._ended(value, interrupted, stopped),
            held=None if peak is None else float(peak),
            why=self._why,
            peak=largest,
            upper_quartile=quartile,
            metric=self._metric,
            mode=self._mode,
            value=value if math.isfinite(value) else None,
            error=error,
        )

    def _ended(self, value: float, interrupted: bool, stopped: bool) -> Ended:
        horizon = self._driver.controller.horizon
        left = horizon is not None and self._driver.now < _MOST * horizon
        if interrupted or (left and not stopped):
            return "early"
        told = self._seen or not self._validates
        return "diverged" if told and not math.isfinite(value) else "completed"

    def _judged(self, trace: Sequence[DecisionRecord]) -> tuple[float, float | None]:
        """The metric and its standard error, by the scatter of the last training losses.

        Intervals that the circuit breaker has undone are no part of what the run came to.
        """
        if self._validates:
            return self._best, None
        sign = -1.0 if self._mode == "max" else 1.0  # the control follows the negative one
        own = [sign * record["loss"] for record in trace if not record["tripped"]]
        last = torch.tensor(own[-max(3, math.ceil(_LAST * len(own))) :], dtype=torch.float64)
        scatter = float(last.std()) / math.sqrt(len(last)) if len(last) > 1 else None
        known = scatter if scatter is not None and math.isfinite(scatter) else None
        return float(last.mean()), known


def trained_model(
    driver: OptimizerDriver,
    module: nn.Module | None,
    name: str | None,
    batch_size: int | None,
) -> Model:
    """What a run trains, by its first optimizer.

    Example:
        trained_model(driver, module, memory.name, batch_size=32)
    """
    groups = driver.optimizer.param_groups
    return model_of(
        [p for group in groups for p in group["params"] if p.requires_grad],
        kind="loop" if module is None else type(module).__qualname__,
        name=name,
        optimizer=type(driver.optimizer).__name__,
        batch_size=batch_size,
        horizon=driver.controller.horizon,
    )


def _largest_and_quartile(trace: Sequence[DecisionRecord]) -> tuple[float, float]:
    """The largest learning rate and the upper quartile, over the steps of a run."""
    ends = [0, *(record["step"] for record in trace)]
    steps = [after - before for before, after in pairwise(ends)]
    used = sorted(zip((record["lr"] for record in trace), steps, strict=True))
    until = accumulate(count for _, count in used)
    enough = 0.75 * sum(steps)
    quartile = next(lr for (lr, _), done in zip(used, until, strict=True) if done >= enough)
    return used[-1][0], quartile
