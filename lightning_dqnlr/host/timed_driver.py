"""`TimedDriver`: a driver that knows how much of the host's time it takes."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from lightning_dqnlr.host.driver import GradientScale, OptimizerDriver
from lightning_dqnlr.host.run_facts import Stopwatch


class TimedDriver(OptimizerDriver):
    """An `OptimizerDriver` with a stopwatch around what a host calls.

    The host's clock is read, and no device is waited for. At a decision the host waits for the
    device anyway, so its time holds what the device still had to do.

    Attributes:
        stopwatch: adds up the seconds of "steps", "decisions" and "checks".

    Example:
        driver = TimedDriver(optimizer, policy, ControlOptions())
        ...  # a training
        driver.stopwatch.seconds["decisions"]
    """

    def __init__(self, *args: Any, **arguments: Any) -> None:
        super().__init__(*args, **arguments)
        self.stopwatch = Stopwatch({})

    def before_step(self, gradient_scale: GradientScale = lambda: None) -> None:
        """Looks at gradients and weights; "steps"."""
        begun = self.stopwatch.begin()
        super().before_step(gradient_scale)
        self.stopwatch.end("steps", begun)

    def after_step(self) -> None:
        """Notes a real optimizer step; "steps"."""
        begun = self.stopwatch.begin()
        super().after_step()
        self.stopwatch.end("steps", begun)

    def finish_step(self, loss: Tensor) -> bool:
        """Takes the loss; "decisions" where it decides, "steps" elsewhere."""
        begun = self.stopwatch.begin()
        decided = super().finish_step(loss)
        self.stopwatch.end("decisions" if decided else "steps", begun)
        return decided

    def secure(self) -> bool:
        """Undoes the open interval if it is ruined; "checks"."""
        begun = self.stopwatch.begin()
        undone = super().secure()
        self.stopwatch.end("checks", begun)
        return undone

    def keep_best(self) -> None:
        """Copies the state; "checks"."""
        begun = self.stopwatch.begin()
        super().keep_best()
        self.stopwatch.end("checks", begun)
