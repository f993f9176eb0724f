"""`RunEnding`: the learning rate comes down before EarlyStopping stops the run."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal, Protocol

from lightning.pytorch import Trainer

from lightning_dqnlr.host.driver import OptimizerDriver
from lightning_dqnlr.host.held_stops import HeldStops
from lightning_dqnlr.host.time_limit import TimeLimit
from lightning_dqnlr.host.validation import LossWatch, ValidationWatch

OnEarlyStop = Literal["anneal", "stop"]
# Of the steps so far. The policy's own decay takes 3/7, and brings nothing more after a patience.
_SHARE = 0.25
_LOGGER = logging.getLogger("lightning_dqnlr")


class Control(Protocol):
    """The control of a run, of one optimizer or of several.

    Attributes:
        comes_down: whether the horizon is settled, because the run is about to end.
    """

    comes_down: bool

    @property
    def drivers(self) -> Sequence[OptimizerDriver]:
        """Of its optimizers."""


class RunEnding:
    """Lets the rate fall to zero once validation has stopped improving.

    Where EarlyStopping would stop, the decay begins, from the best weights so far. It takes a
    quarter of the steps so far, rounded up to whole epochs, and no more than `max_epochs` leaves.
    Then training stops.

    A metric that nobody stops for (of ModelCheckpoint, or named by the user) begins the decay as
    well. Training goes on to its end then. The rate comes down from the best weights again, each
    time over a quarter of the steps so far. A training loss that has stopped falling begins the
    decay of a run that nothing else ends.

    Args:
        trainer: of the run, about to train.
        control: of the run.
        on_early_stop: "stop" to leave EarlyStopping alone.
        watch: of a validation metric besides; None for none.
        ends_at_best: whether the run ends with its best weights even if the metric never turned.
        saved: what `state_dict` returned, for a resumed run; empty for a new one.

    Attributes:
        news: what has happened, each with its "step" and "words".

    Example:
        ending = RunEnding(trainer, control, "anneal", None, {})
        ...  # a validation, and the callbacks that look at it
        ending.look()
    """

    def __init__(
        self,
        trainer: Trainer,
        control: Control,
        on_early_stop: OnEarlyStop,
        watch: ValidationWatch | None,
        saved: Mapping[str, Any],
        *,
        ends_at_best: bool = False,
    ) -> None:
        self._trainer = trainer
        self._control = control
        self._stops = HeldStops(trainer, held=on_early_stop == "anneal")
        self._watch = watch
        self._ends_at_best = ends_at_best
        self._validated = False  # since the last look
        self._first_step: int = saved.get("first_step", trainer.global_step)
        self._last_step: int | None = saved.get("last_step")  # of the decay; None before it
        self._stopping: bool = saved.get("stopping", False)  # once the decay is over
        self._settled: bool = saved.get("settled", False)  # back at the best state
        self._end: int | None = saved.get("end")  # of the run, known once it has come down
        self.news: list[dict[str, Any]] = [dict(each) for each in saved.get("news", ())]
        self._loss = LossWatch() if unlimited(trainer, control) else None
        self._decisions = 0
        if self._loss is not None:
            self._loss.load_state_dict(saved.get("loss", {}))
        if watch is not None:
            watch.load_state_dict(saved.get("watch", {}))
        self._bests = self._best_scores()
        self._best_step: int | None = None  # of the weights that are kept
        self._stops.hold()

    def validated(self) -> None:
        """Notes that a validation has ended; the callbacks have not all looked at it yet."""
        self._validated = True
        if self._watch is not None:
            loss = self._control.drivers[0].controller.history.level
            self._watch.add(self._trainer.callback_metrics, loss)

    def end_epoch(self) -> None:
        """EarlyStopping may follow a metric of training too, and looks at it next."""
        self._validated = True

    def look(self) -> None:
        """After all callbacks have looked at a validation: keeps the state, or begins the decay."""
        if not self._validated:
            return
        self._validated = False
        improved = self._improved()
        stopping = self._any_process(self._stops.exhausted)
        turned = self._any_process(self._watch is not None and self._watch.turned)
        if improved:
            self._keep()
        elif self._last_step is None and (stopping or turned) and self._may_stop():
            self._stopping = stopping
            self._come_down("validation has stopped improving")
        elif self._over and not self._settled and not self._come_down_again():
            self._settle()

    def end_batch(self) -> None:
        """Stops training after the last step of the decay, in the name of EarlyStopping."""
        if self._loss is not None and self._last_step is None:
            self._ask_the_loss(self._loss)
        if self._over and self._stopping:
            if not self._trainer.should_stop:
                self._tell("the decay is over, and training stops")
            self._stops.stop()

    def end_training(self) -> None:
        """Ends the run with its best weights, if it came down or the user named the metric."""
        chooses = self._last_step is not None or self._ends_at_best
        best_now = chooses and self._validated and self._improved()
        if chooses and not best_now and not self._settled:
            self._settle()
        self.close()

    def mend(self, checkpoint: Mapping[str, Any]) -> None:
        """Puts the user's patience into a checkpoint that is about to be written."""
        self._stops.mend(checkpoint)

    def close(self) -> None:
        """Gives EarlyStopping its patience back."""
        self._stops.release()

    def state_dict(self) -> dict[str, Any]:
        """Builtins."""
        watch = {} if self._watch is None else {"watch": self._watch.state_dict()}
        loss = {} if self._loss is None else {"loss": self._loss.state_dict()}
        return {
            "first_step": self._first_step,
            "last_step": self._last_step,
            "stopping": self._stopping,
            "settled": self._settled,
            "end": self._end,
            "news": [dict(each) for each in self.news],
            **watch,
            **loss,
        }

    def _ask_the_loss(self, watch: LossWatch) -> None:
        """At each decision; it is the same on all processes."""
        controller = self._control.drivers[0].controller
        if controller.decisions == self._decisions:
            return
        self._decisions = controller.decisions
        if watch.ended(float(controller.history.level), controller.step):
            self._come_down("the training loss has stopped falling")

    @property
    def _over(self) -> bool:
        return self._last_step is not None and self._trainer.global_step >= self._last_step

    def _improved(self) -> bool:
        """Whether the last validation was the best one so far."""
        bests = self._best_scores()
        # The metric may differ between processes; what follows from it must not.
        improved = self._trainer.strategy.broadcast(bests != self._bests)
        self._bests = bests
        return bool(improved)

    def _keep(self) -> None:
        for driver in self._control.drivers:
            driver.keep_best()
        first = self._control.drivers[0]
        self._best_step = first.now if first.options.circuit_breaker else None

    def _settle(self) -> None:
        self._settled = True
        if self._best_step is not None:
            self._tell(f"the best weights of the run are put back, those of step {self._best_step}")
        for driver in self._control.drivers:
            driver.back_to_best()

    def _best_scores(self) -> list[float]:
        own = [] if self._watch is None else [self._watch.best]
        return [*self._stops.best, *own]

    def _any_process(self, decision: bool) -> bool:
        """As EarlyStopping asks the others."""
        return bool(self._trainer.strategy.reduce_boolean_decision(decision, all=False))

    def _may_stop(self) -> bool:
        trainer = self._trainer
        enough_epochs = trainer.current_epoch >= (trainer.min_epochs or 0)
        return enough_epochs and trainer.global_step >= (trainer.min_steps or 0)

    def _come_down(self, reason: str) -> None:
        trainer = self._trainer
        drivers = self._control.drivers
        done = trainer.global_step - self._first_step
        left = self._steps_left(drivers[0], done)
        self._last_step = trainer.global_step + left
        then = "; then training stops" if self._stopping else ""
        falls_already = drivers[0].controller.falling
        origin = "" if falls_already else self._origin
        self._tell(f"{reason}, so the learning rate falls to zero over {left} steps{origin}{then}")
        if not falls_already:
            self._control.comes_down = True
            self._have_drivers_fall(left)
        _LOGGER.warning(
            "step %d: %s, so the learning rate falls to zero over the coming %d steps%s.",
            trainer.global_step,
            reason,
            left,
            then,
        )

    def _come_down_again(self) -> bool:
        """If the run has room for another decay; whether it has."""
        step = self._trainer.global_step
        steps = self._wanted(step - self._first_step)
        if self._stopping or self._end is None or step + steps > self._end:
            return False
        self._tell(f"the learning rate falls to zero again over {steps} steps{self._origin}")
        self._last_step = step + steps
        self._have_drivers_fall(steps)
        return True

    def _have_drivers_fall(self, steps: int) -> None:
        """From the best state, over so many of the Trainer's steps."""
        done = self._trainer.global_step - self._first_step
        for driver in self._control.drivers:
            driver.come_down(max(1, round(driver.now * steps / done)))

    @property
    def _origin(self) -> str:
        known = self._best_step is not None
        return f", from the weights of step {self._best_step}" if known else ""

    def _tell(self, words: str) -> None:
        self.news.append({"step": self._control.drivers[0].now, "words": words})

    def _steps_left(self, driver: OptimizerDriver, done: int) -> int:
        """Steps of the Trainer that the decay takes, a built-in one's rest if that has begun."""
        controller = driver.controller
        wanted = self._wanted(done)
        if controller.horizon is None:
            return wanted
        to_the_end = math.ceil((controller.horizon - driver.now) * done / max(1, driver.now))
        self._end = self._trainer.global_step + to_the_end
        return max(1, to_the_end if controller.falling else min(wanted, to_the_end))

    def _wanted(self, done: int) -> int:
        return self._whole_epochs(math.ceil(done * _SHARE))

    def _whole_epochs(self, steps: int) -> int:
        """Rounds up to the end of an epoch, where an epoch's length is known."""
        trainer = self._trainer
        batches = trainer.num_training_batches
        if math.isinf(batches) or not trainer.lightning_module.automatic_optimization:
            return steps
        per_epoch = math.ceil(batches / trainer.accumulate_grad_batches)
        ended = trainer.fit_loop.epoch_loop.batch_progress.current.completed
        open_steps = 0 if ended >= batches else ended // trainer.accumulate_grad_batches
        return math.ceil((open_steps + steps) / per_epoch) * per_epoch - open_steps


def unlimited(trainer: Trainer, control: Control) -> bool:
    """Whether nobody knows when a run ends, and never will; says so."""
    known = control.drivers[0].controller.horizon is not None
    limited = trainer.max_epochs not in (None, -1) or TimeLimit(trainer).limited
    if known or limited:
        return False
    _LOGGER.warning(
        "nothing says how long the run is, so the learning rate falls once the training loss has "
        "stopped falling. A known end is better: give max_steps, max_epochs, max_time or horizon."
    )
    return True
