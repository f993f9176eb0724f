"""`DQNLRCallback`: the learned learning-rate control in a Lightning Trainer.

The callback tells the control of a run of gradients, optimizer steps and losses at the right
moments of Lightning's loop. The gradients are read in `on_before_optimizer_step`, unscaled and not
yet clipped. Torch's own pre-hook would be too early, because Lightning runs the whole forward and
backward pass inside `optimizer.step`. Torch's post-hook counts the real steps, because
`global_step` also counts those that mixed precision skips. A learning rate set at a batch's end
acts on the next step.
"""

from __future__ import annotations

from operator import attrgetter
from pathlib import Path
from typing import Any, get_args

import torch
from lightning.fabric.utilities.rank_zero import rank_zero_module  # type: ignore[attr-defined]
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from torch import Tensor

from lightning_dqnlr.checks import check_choice
from lightning_dqnlr.control.breaker import BreakerMode
from lightning_dqnlr.control.controller import LRController
from lightning_dqnlr.control.spec import StartRate
from lightning_dqnlr.errors import CallOrderError, ConfigurationError
from lightning_dqnlr.host.automatic_control import AutomaticControl
from lightning_dqnlr.host.decisions import DecisionRecord
from lightning_dqnlr.host.live import make_way
from lightning_dqnlr.host.manual_control import ManualControl
from lightning_dqnlr.host.options import ControlOptions, Place, identity
from lightning_dqnlr.host.run_ending import OnEarlyStop, RunEnding
from lightning_dqnlr.host.run_facts import RunFacts
from lightning_dqnlr.host.run_memory import RunMemory
from lightning_dqnlr.host.run_terms import Monitor, RunTerms
from lightning_dqnlr.host.run_view import RunView, Shows
from lightning_dqnlr.host.schedulers import OnScheduler, check_scaling
from lightning_dqnlr.host.shared_trace import SharedTrace
from lightning_dqnlr.host.shown_run import ShownRun
from lightning_dqnlr.host.step_loss import Mode
from lightning_dqnlr.host.trainer_queries import (
    check_strategy,
    check_training,
    saves_within_epochs,
)
from lightning_dqnlr.host.validation import judged_by, watch_of
from lightning_dqnlr.memory.folder import Memory, as_memory
from lightning_dqnlr.policy.choice import Policy
from lightning_dqnlr.policy.policy import as_policy

# `pytorch_lightning` has all classes of `lightning.pytorch` a second time. Its import sends the
# messages of both to a logger of its own, past what a user has set for the other.
_messages = rank_zero_module.log
try:
    import pytorch_lightning

    _OlderCallback: Any = pytorch_lightning.Callback
except ImportError:
    _OlderCallback = object
finally:
    rank_zero_module.log = _messages

_CHOICES = {
    "on_scheduler": OnScheduler,
    "on_early_stop": OnEarlyStop,
    "mode": Mode,
    "validate_mode": Mode,
}


class DQNLRCallback(ShownRun, Callback, _OlderCallback):
    """Sets the learning rate of a Trainer's optimizer.

    Training starts at a safe learning rate, whatever `configure_optimizers` names, and a Q-network
    raises or lowers it from there. With several parameter groups the ratios between their learning
    rates are kept. Resuming from a checkpoint continues exactly. Under manual optimisation every
    optimizer has a control of its own.

    Args:
        policy: "default" for the bundled policy, the folder of a saved one, or an `LRPolicy`.
        start: "auto" for a safe start independent of the optimizer's learning rate. "optimizer"
            starts at that rate. None is for what the policy was trained with ("auto" for the
            bundled one).
        horizon: optimizer steps of the whole run; None to take them from the Trainer (max_steps,
            max_epochs times the loader's length, or max_time). Without any of them the learning
            rate falls once the training loss has stopped falling.
        min_lr: lower bound of the learning rate (of the parameter group with the largest one).
        max_lr: upper bound.
        monitor: name of a metric that `training_step` logs at every step. The callback follows it
            instead of the loss that `training_step` returns; it must be a training loss. With
            several optimizers a dict of such names, by the optimizer's number.
        mode: "max" if the metric of `monitor` is to rise.
        circuit_breaker: whether a blown-up interval is undone by going back to the last healthy
            weights, buffers and optimizer state. Two copies of them are then kept. "finite" undoes
            only what is not finite, for a loss that does not fall as training succeeds. None for
            what the policy was trained with.
        epsilon: probability of a random action, for exploration.
        seed: of these random actions.
        on_scheduler: what becomes of a scheduler that `configure_optimizers` returns. "replace"
            has it stepped no more. "scale" leaves its path intact. Within each step the callback
            multiplies its rate by that of the policy over the policy's start, by 1/8 to 8. "error"
            refuses it.
        on_early_stop: what becomes of a stop by EarlyStopping, when its patience is at an end.
            "anneal" has the learning rate fall to zero first, from the best weights so far, and
            training stops then. "stop" stops at once.
        validate: name of a validation metric. When it has turned for good while the training loss
            falls, the decay begins. The run ends with the weights that validated best. None for
            what EarlyStopping or ModelCheckpoint monitor.
        validate_mode: "max" if the metric of `validate` is to rise.
        snapshot: "device" to keep the breaker's two copies where the weights are, "cpu" to keep
            them in the host's memory, for a transfer per copy.
        memory: folder that remembers runs, or a `Memory` with a name for the model. The first run
            is the policy's. Later ones of the same model hold a rate that earlier ones teach. None
            to remember nothing.
        save_snapshot: whether checkpoints hold the two copies. Without them a resumed run cannot go
            back behind the state that it was resumed from; with them it goes on exactly.
        log: whether to tell loggers and progress bar. The learning rate used is "dqnlr/lr" every
            `log_every_n_steps` steps and at decisions, and `lr` in the bar. Decisions log
            multiplier, confidence (the gap of the Q-values), update ratio and trips. Loggers that
            take images get the picture of the whole run at its end.
        log_gradients: whether decisions log the probe's statistics, too: norms of gradient, update
            and weights, cosines between gradients and updates, and the distance from the start.
        live: whether to draw the run while it goes on, in a notebook or in a terminal.

    Raises:
        ConfigurationError: for an argument out of range, or with one that "scale" leaves to the
            scheduler (`start="auto"`, `min_lr`, `max_lr`, `memory`). Also for `log_gradients`
            without `log`.
        MissingPackageError: if `live` lacks the package that draws.
        PolicyFileError: if the policy cannot be read.
        UnsupportedTrainingError: before the first step, without an optimizer, beside SWA, and
            under FSDPStrategy and DeepSpeed (ModelParallelStrategy is supported). After the second
            step, if the optimizer tells of no step.

    Example:
        trainer = Trainer(callbacks=[DQNLRCallback()])
    """

    def __init__(
        self,
        policy: str | Path | Policy = "default",
        *,
        start: StartRate | None = None,
        horizon: int | None = None,
        min_lr: float | None = None,
        max_lr: float | None = None,
        monitor: Monitor = None,
        mode: Mode = "min",
        circuit_breaker: BreakerMode | None = None,
        epsilon: float = 0.0,
        seed: int = 0,
        on_scheduler: OnScheduler = "replace",
        on_early_stop: OnEarlyStop = "anneal",
        validate: str | None = None,
        validate_mode: Mode = "min",
        snapshot: Place = "device",
        save_snapshot: bool = False,
        memory: str | Path | Memory | None = None,
        log: bool = True,
        log_gradients: bool = False,
        live: bool = False,
    ) -> None:
        super().__init__()
        self.options = ControlOptions(
            start=start,
            horizon=horizon,
            min_lr=min_lr,
            max_lr=max_lr,
            circuit_breaker=circuit_breaker,
            epsilon=epsilon,
            seed=seed,
            snapshot=snapshot,
            save_snapshot=save_snapshot,
        )
        self.policy = as_policy(policy)
        self.monitor = monitor
        self.mode = mode
        self.on_scheduler = on_scheduler
        self.on_early_stop = on_early_stop
        self.validate = validate
        self.validate_mode = validate_mode
        for name, kind in _CHOICES.items():
            check_choice(name, getattr(self, name), get_args(kind))
        if mode == "max" and monitor is None:
            raise ConfigurationError("mode='max' needs monitor, the metric that is to rise.")
        check_scaling(on_scheduler, self.options, remembers=memory is not None)
        self.memory = as_memory(memory)
        self._shows = Shows.checked(log=log, gradients=log_gradients, live=live)
        self._control: AutomaticControl | ManualControl | None = None  # of the run
        self._ending: RunEnding | None = None
        self._run_memory: RunMemory | None = None
        self._view: RunView | None = None
        self._hidden_bar: Any = None  # the progress bar that the live view takes the place of
        self._trace: list[DecisionRecord] = []  # of this object's own run
        self._facts: RunFacts | None = None  # likewise
        self._shared_trace = SharedTrace()
        self._resume: dict[str, Any] = {}  # state of the checkpoint that was restored last
        self._stale = False  # whether control and checkpoint are those of an earlier call

    start = property(attrgetter("options.start"))
    horizon = property(attrgetter("options.horizon"))
    min_lr = property(attrgetter("options.min_lr"))
    max_lr = property(attrgetter("options.max_lr"))
    circuit_breaker = property(attrgetter("options.circuit_breaker"))
    epsilon = property(attrgetter("options.epsilon"))
    seed = property(attrgetter("options.seed"))

    def __repr__(self) -> str:
        return f"{type(self).__name__}({identity(self.policy)})"

    @property
    def controllers(self) -> list[LRController]:
        """The controllers of the run, one for each optimizer.

        Raises:
            CallOrderError: before training begins.
        """
        if self._control is None:
            raise CallOrderError("controllers: none before the Trainer begins to train.")
        return [driver.controller for driver in self._control.drivers]

    @property
    def controller(self) -> LRController:
        """The controller of the run's first optimizer.

        Raises:
            CallOrderError: before training begins.
        """
        return self.controllers[0]

    @property
    def trace(self) -> list[DecisionRecord]:
        """One plain record per decision.

        Of the interval that ended it has `step`, `steps` (how many), `loss` (the mean), `lr` (used
        in it) and `tripped` (it was undone). `update_ratio` is its largest update, relative to the
        weights. Of the decision it has `multiplier`, `action` (its index), `q_values`, `next_lr`
        and `reason` (in words). Learning rates are those of the group with the largest one. With
        several optimizers, `optimizer` is the number of the one that the record is about.

        If a library trained with a copy of this object, or `ddp_spawn` in other processes, this is
        the trace of that run. It comes back from other processes when training has ended.
        """
        return self._trace or self._shared_trace.read()

    @property
    def facts(self) -> RunFacts:
        """What is known of the run beside its decisions: policy, horizon, time, the run's end."""
        return self._facts or self._shared_trace.facts() or RunFacts.of(self.policy, ())

    # Lightning calls this before it restores a checkpoint and before a finder saves its own.
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage == "fit":
            check_strategy(trainer)
            # Ahead of all others, so that none of them sees a ruined model in a hook before ours.
            others = [c for c in trainer.callbacks if c is not self]  # type: ignore[attr-defined]
            trainer.callbacks = [self, *others]  # type: ignore[attr-defined]
            self._hidden_bar = make_way(trainer) if self._shows.live else None
        if stage == "fit" and self._stale:
            self._control = None
            self._resume = {}

    # Lightning restores the optimizer after `on_fit_start`, so everything begins here.
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        check_training(trainer, pl_module)
        self._unhook()
        terms = RunTerms(self.policy, self.options, self.monitor, self.mode, self.on_scheduler)
        kind = AutomaticControl if pl_module.automatic_optimization else ManualControl
        self._control = kind(trainer, pl_module, terms, self._resume)
        watch = watch_of(trainer, self.on_early_stop, self.validate, self.validate_mode)
        if self.memory is not None:
            self._run_memory = self._remember(trainer, self.memory, terms)
        saved = self._resume.get("ending", {})
        self._ending = RunEnding(
            trainer,
            self._control,
            self.on_early_stop,
            watch,
            saved,
            ends_at_best=self.validate is not None,
        )
        self._resume = {}
        self._facts = RunFacts.of(self.policy, trainer.optimizers, pl_module)
        self._facts.news = self._ending.news
        self._facts.remembered = [] if self._run_memory is None else self._run_memory.told
        self._trace = self._control.trace
        self._shared_trace.begin(self._trace, self._facts)
        self._view = RunView(trainer, pl_module, self._control, self._facts, self._shows)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._ending is not None:
            self._ending.look()
        if self._control is not None:
            self._control.begin_epoch()

    def on_train_batch_start(self, *args: Any) -> None:
        if self._ending is not None:
            self._ending.look()
        if self._view is not None:
            self._view.begin_batch()

    def on_before_backward(
        self, trainer: Trainer, pl_module: LightningModule, loss: Tensor
    ) -> None:
        if self._control is not None:
            self._control.before_backward(loss)

    def on_before_optimizer_step(
        self, trainer: Trainer, pl_module: LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        if self._control is not None:
            self._control.before_step(optimizer)
        if self._view is not None:
            self._view.before_step()

    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        if self._control is None or self._view is None:
            return
        self._view.before_decision()
        used = self._control.end_batch(outputs)
        self._view.end_batch(used)
        if self._ending is not None:
            self._ending.end_batch()
        if saves_within_epochs(trainer):
            self._secure()

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._secure()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._ending is not None and not trainer.sanity_checking:
            self._ending.validated()
        if self._run_memory is not None:
            self._run_memory.look(trainer.callback_metrics)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._secure()
        if self._ending is not None:
            self._ending.end_epoch()
        if self._run_memory is not None:
            self._run_memory.look(trainer.callback_metrics)

    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        if self._ending is not None:
            self._ending.mend(checkpoint)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._secure()
        if self._ending is not None:
            self._ending.end_training()
        self._unhook()
        if self._view is not None:
            self._view.end()
        if self._run_memory is not None:
            self._run_memory.look(trainer.callback_metrics)  # hooks after ours may have logged
            self._run_memory.finish()
        self._end(trainer)

    # A checkpoint that `test` or an already finished `fit` restored is not for the next `fit`.
    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._stale = True
        self._show_bar()

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        if self._control is not None:
            for driver in self._control.drivers:
                driver.rescue()
        if self._run_memory is not None:
            self._run_memory.finish(interrupted=True)
        self._end(trainer)
        self._stale = True

    def state_dict(self) -> dict[str, Any]:
        if self._resume or self._control is None:
            return self._resume
        self._secure()
        parts = {"ending": self._ending, "memory": self._run_memory}
        states = {name: part.state_dict() for name, part in parts.items() if part is not None}
        return {**self._control.state_dict(), **states}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._resume = state_dict
        self._stale = False

    def __getstate__(self) -> dict[str, Any]:
        """Leaves out what belongs to the run: the control, and Lightning's bound functions."""
        kept = {k: v for k, v in self.__dict__.items() if k not in ("log", "log_dict")}
        left_out = ("_control", "_ending", "_run_memory", "_view", "_hidden_bar")
        return {**kept, **dict.fromkeys(left_out)}

    def _remember(self, trainer: Trainer, memory: Memory, terms: RunTerms) -> RunMemory:
        """The run's part in the memory; a resumed one keeps its rate."""
        drivers = self._control.drivers if self._control is not None else []
        judge = judged_by(trainer, self.validate, self.validate_mode)
        followed = terms.monitor_of(0, len(drivers))
        run_memory = RunMemory(trainer, drivers, memory, judge, followed)
        if self._resume:
            run_memory.resume(self._resume.get("memory", {}))
        else:
            run_memory.begin()
        return run_memory

    def _secure(self) -> None:
        """Has the drivers undo what is ruined, so that nothing outside sees it."""
        if self._control is not None:
            for driver in self._control.drivers:
                driver.secure()

    def _end(self, trainer: Trainer) -> None:
        self._unhook()
        if self._view is not None:
            self._view.close()
        self._show_bar()
        if trainer.is_global_zero:
            self._shared_trace.send()

    def _unhook(self) -> None:
        if self._control is not None:
            self._control.close()
        if self._ending is not None:
            self._ending.close()

    def _show_bar(self) -> None:
        """Brings back the progress bar that the live view had taken the place of."""
        if self._hidden_bar is not None:
            self._hidden_bar.enable()
            self._hidden_bar = None
