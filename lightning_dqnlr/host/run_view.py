"""`RunView`: all that a run shows in a Trainer: loggers, progress bar, live view, the time."""

from __future__ import annotations

from collections.abc import Sequence
from time import perf_counter
from typing import NamedTuple, Protocol

from lightning.pytorch import LightningModule, Trainer

from lightning_dqnlr.errors import ConfigurationError
from lightning_dqnlr.host.bar_rate import BarRate
from lightning_dqnlr.host.decisions import DecisionRecord
from lightning_dqnlr.host.held_monitors import HeldMonitors
from lightning_dqnlr.host.live import LiveView, Scene, check_live, view_for
from lightning_dqnlr.host.logged import RunLogger
from lightning_dqnlr.host.run_facts import RunFacts, Stopwatch
from lightning_dqnlr.host.timed_driver import TimedDriver


class Shows(NamedTuple):
    """What of a run is to be shown.

    Example:
        >>> Shows.checked(log=True, gradients=False, live=False).log
        True
    """

    log: bool
    gradients: bool
    live: bool

    @classmethod
    def checked(cls, *, log: bool, gradients: bool, live: bool) -> Shows:
        """The same, if it can be shown.

        Raises:
            ConfigurationError: for gradients without a log.
            MissingPackageError: if the package that draws is not installed.
        """
        if gradients and not log:
            raise ConfigurationError("log_gradients=True needs log=True.")
        if live:
            check_live()
        return cls(log, gradients, live)


class Control(Protocol):
    """The control of a run, of one optimizer or of several."""

    trace: list[DecisionRecord]

    @property
    def drivers(self) -> Sequence[TimedDriver]:
        """Of its optimizers."""


class RunView:
    """Shows a run, at its decisions and at the Trainer's own pace.

    Args:
        trainer: of the run, about to train.
        module: that is trained.
        control: of the run.
        facts: of the run; their time, news and horizon are kept up to date.
        shows: what is to be shown.

    Example:
        shows = Shows(log=True, gradients=False, live=False)
        view = RunView(trainer, module, control, facts, shows)
        view.begin_batch()
        ...  # a batch
        view.end_batch([3.2e-3])
        view.end()
        view.close()
    """

    def __init__(
        self,
        trainer: Trainer,
        module: LightningModule,
        control: Control,
        facts: RunFacts,
        shows: Shows,
    ) -> None:
        self._control = control
        self._facts = facts
        self._stopwatch = Stopwatch(facts.seconds)
        for driver in control.drivers:
            driver.stopwatch = self._stopwatch
        facts.first_step = control.drivers[0].now
        self._monitors = HeldMonitors(trainer, control.drivers)
        self._logger: RunLogger | None = None
        if shows.log and trainer.loggers:
            self._logger = RunLogger(
                trainer, module, control.drivers, facts.policy, gradients=shows.gradients
            )
        self._bar = BarRate(trainer) if shows.log else None
        view = view_for(trainer) if shows.live and trainer.is_global_zero else None
        self._live = None if view is None else LiveView(view)
        self._begun = perf_counter()
        self._batch: tuple[float, float] | None = None  # its start, and our seconds until then
        self._decisions = len(control.trace)

    def begin_batch(self) -> None:
        """Notes the time."""
        self._batch = (perf_counter(), self._facts.ours)

    def before_step(self) -> None:
        """Lets those look at the first rate that were early."""
        self._monitors.release_if_set(by_all=True)

    def before_decision(self) -> None:
        """The same for a manual loop, some of whose optimizers may not have stepped."""
        self._monitors.release_if_set(by_all=False)

    def end_batch(self, used: Sequence[float | None]) -> None:
        """Shows what the batch has brought.

        Args:
            used: the learning rate of each optimizer's step; None where there was none.
        """
        begun = self._stopwatch.begin()
        if self._logger is not None:
            self._logger.end_batch(used)
        if self._bar is not None:
            self._bar.show(used)
        decided = self._decided()
        if self._live is not None:
            self._live.update(self._scene(), decided=decided)
        self._stopwatch.end("shown", begun)
        if self._batch is not None:
            start, ours = self._batch
            others = perf_counter() - start - (self._facts.ours - ours)
            self._facts.seconds["batches"] = self._facts.seconds.get("batches", 0.0) + others
            self._batch = None

    def end(self) -> None:
        """Shows the whole run, after its last decision."""
        self._decided()
        if self._logger is not None:
            self._logger.end(self._control.trace)

    def close(self) -> None:
        """Gives everything back, after `end` and after an exception."""
        self._monitors.release()
        if self._bar is not None:
            self._bar.close()
        live, self._live = self._live, None
        if live is not None:
            live.close(self._scene())

    def _scene(self) -> Scene:
        return Scene(self._control.trace, self._control.drivers[0].now, self._facts.horizon)

    def _decided(self) -> bool:
        """Whether there are new decisions; keeps the facts up to date with them."""
        before, self._decisions = self._decisions, len(self._control.trace)
        self._facts.seconds["run"] = perf_counter() - self._begun
        self._facts.horizon = self._control.drivers[0].controller.horizon
        return self._decisions != before
