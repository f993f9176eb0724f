"""`DQNLRScheduler`: the learned learning-rate control for a plain torch loop (torch only)."""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LRScheduler

from lightning_dqnlr.checks import check_choice
from lightning_dqnlr.control.breaker import BreakerMode
from lightning_dqnlr.control.spec import StartRate
from lightning_dqnlr.errors import CallOrderError, ConfigurationError, UnsupportedTrainingError
from lightning_dqnlr.host.decisions import DecisionRecord
from lightning_dqnlr.host.observed_loss import ObservedLoss, as_scalar
from lightning_dqnlr.host.options import ControlOptions, Place
from lightning_dqnlr.host.ranks import from_rank_zero, several_ranks, world_size
from lightning_dqnlr.host.remembering import TRAINING_LOSS, Remembering, trained_model
from lightning_dqnlr.host.run_facts import RunFacts, Stopwatch
from lightning_dqnlr.host.shown_run import ShownRun
from lightning_dqnlr.host.timed_driver import TimedDriver
from lightning_dqnlr.memory.folder import Memory
from lightning_dqnlr.memory.runs import Mode
from lightning_dqnlr.policy.choice import Policy
from lightning_dqnlr.policy.policy import as_policy

_WRAPPERS = ("lightning.", "pytorch_lightning.", "accelerate.")


class DQNLRScheduler(ShownRun, LRScheduler):
    """Sets an optimizer's learning rates; call `step(loss)` after every `optimizer.step()`.

        scheduler = DQNLRScheduler(optimizer, horizon=10_000)
        for batch in batches:
            optimizer.zero_grad()
            loss = training_loss(batch)
            loss.backward()
            optimizer.step()
            scheduler.step(loss)

    It hooks into `optimizer.step()` to see the gradients just before it, and sets the first, safe
    learning rate there. If the loop clips gradients, it sees the clipped ones. In a data-parallel
    run every process does the same, and the statistics are averaged over them. It also works in a
    LightningModule with manual optimisation, one for each optimizer.

    Args:
        optimizer: any `torch.optim` optimizer but LBFGS and Rprop, or Fabric's wrapper of one.
        policy: "default" for the bundled one, the folder of a saved one, or an `LRPolicy`.
        horizon: optimizer steps of the whole run; None if unknown (the learning rate then has no
            built-in decay).
        start: "auto" for a safe start independent of the optimizer's learning rate. "optimizer"
            starts at that rate. None is for what the policy was trained with ("auto" for the
            bundled one).
        min_lr: lower bound of the learning rate (of the parameter group with the largest one).
        max_lr: upper bound.
        circuit_breaker: whether a blown-up interval is undone by going back to the last healthy
            weights and optimizer state. Two copies of them are then kept. "finite" undoes only what
            is not finite. None for what the policy was trained with.
        epsilon: probability of a random action, for exploration.
        seed: of these random actions.
        snapshot: "device" to keep the breaker's two copies where the weights are, "cpu" to keep
            them in the host's memory, for a transfer per copy.
        save_snapshot: whether saved states hold the two copies. Without them a resumed run cannot
            go back behind the state that it was resumed from; with them it goes on exactly.
        module: the model. The breaker then also restores its buffers (BatchNorm's statistics) and
            frozen parameters that follow the weights (a target network).
        loss_from: a module whose output in training is the loss, or has it as `loss` or as its
            first part: the criterion, or a model that computes its loss itself.

    Attributes:
        trace: one plain record per decision.
        optimizer: the optimizer.
        base_lrs: its learning rates before this object set them.

    Raises:
        ConfigurationError: for an argument out of range.
        PolicyFileError: if the policy cannot be read.
        UnsupportedTrainingError: for LBFGS and Rprop, and for optimizers without torch's hooks.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        policy: str | Path | Policy = "default",
        *,
        horizon: int | None = None,
        start: StartRate | None = None,
        min_lr: float | None = None,
        max_lr: float | None = None,
        circuit_breaker: BreakerMode | None = None,
        epsilon: float = 0.0,
        seed: int = 0,
        snapshot: Place = "device",
        save_snapshot: bool = False,
        module: nn.Module | None = None,
        loss_from: nn.Module | None = None,
    ) -> None:
        if not isinstance(optimizer, torch.optim.Optimizer):
            raise ConfigurationError(
                f"optimizer must be a torch.optim.Optimizer, got {type(optimizer).__name__}."
            )
        options = ControlOptions(
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
        # What torch's own constructor would do besides is to patch `optimizer.step`.
        self.optimizer = unwrapped(optimizer)
        chosen = as_policy(policy)
        self._driver = TimedDriver(
            self.optimizer,
            chosen,
            options,
            module=module,
            across_ranks=several_ranks(),
        )
        self.base_lrs = [*_rates(self.optimizer)]
        for group in self.optimizer.param_groups:
            group.setdefault("initial_lr", float(group["lr"]))
        self._losses = ObservedLoss(loss_from)
        self._module = module
        self._looked = False  # whether `look` has seen the gradients of the step under way
        self._idle_calls = 0  # of `step`, since the last optimizer step
        self.last_epoch = 0  # counts steps, as torch's schedulers do
        self._step_count = 0
        self._driver.watch_steps(self._before_step)
        self._facts = RunFacts.of(chosen, [self._driver.optimizer], module)
        self._driver.stopwatch = Stopwatch(self._facts.seconds)
        self._remembering: Remembering | None = None  # the run's part in a memory
        self._remembered: dict[str, Any] | None = None  # its state, of the run that is resumed
        self._begun: float | None = None  # when the first step was about to be made

    @property
    def trace(self) -> list[DecisionRecord]:
        """One plain record per decision."""
        return self._driver.trace

    @property
    def facts(self) -> RunFacts:
        """What is known of the run beside its decisions."""
        self._facts.horizon = self._driver.controller.horizon
        return self._facts

    def observe(self, loss: Tensor | float) -> None:
        """Takes the training loss of a batch, for a loop that calls `step()` without one.

        The losses since the last step are averaged, as those of an accumulation window.

        Args:
            loss: a scalar.

        Raises:
            ConfigurationError: if `loss` is not a scalar.
        """
        self._losses.add(loss)

    def look(self, gradient_scale: float | None = None) -> None:
        """Looks at the gradients now, before the loop clips them; call it after `backward()`.

        Without it they are seen at the beginning of `optimizer.step()`, clipped.

        Args:
            gradient_scale: what they are still multiplied by (mixed precision).
        """
        self._driver.before_step(lambda: gradient_scale)
        self._looked = True

    def step(self, loss: Tensor | float | None = None) -> None:
        """Takes the training loss of the optimizer step just made; sets the next learning rate.

        A step that a gradient scaler skipped does not count. Accelerate calls this once for every
        process, and the first call counts.

        Args:
            loss: a scalar; None for what was observed since the last step.

        Raises:
            ConfigurationError: if `loss` is not a scalar.
            CallOrderError: if the optimizer has not stepped since the last call, or if there is no
                loss.
            NonFiniteLossError: if the very first loss is NaN or infinite.
        """
        observed = self._losses.take()  # in any case: it is no part of a later step
        value = observed if loss is None else as_scalar(loss)
        if self._driver.stepped:
            self._finish_step(value)
        else:
            self._pass_over()

    def get_last_lr(self) -> list[float]:  # type: ignore[override]
        """The learning rate of each parameter group, which the coming step uses."""
        return _rates(self.optimizer)

    def get_lr(self) -> list[float]:  # type: ignore[override]
        """The same as `get_last_lr`."""
        return self.get_last_lr()

    def forget(self) -> None:
        """Drops what was seen of a step that is not to be counted."""
        self._losses.forget()
        self._looked = False
        self._driver.forget_step()

    def remember(
        self,
        memory: str | Path | Memory,
        metric: str = TRAINING_LOSS,
        mode: Mode = "min",
        batch_size: int | None = None,
    ) -> Remembering:
        """Has this run hold the learning rate that earlier ones teach; call it before training.

            run = scheduler.remember("lr-memory", "val_loss")
            ...  # train, with run.add(loss) after each validation
            run.finish()

        A resumed run calls it after `load_state_dict`, and goes on at the rate of that state.

        Args:
            memory: folder that remembers runs, or a `Memory` with a name for the model.
            metric: what the run is judged by, in your words; the training loss needs no `add`.
            mode: "max" if the metric is to rise.
            batch_size: examples per step, over all processes; None if they never change.

        Returns:
            This run's part in the memory.

        Raises:
            ConfigurationError: if the memory is a file or cannot be written, for an unknown mode,
                or if a parameter has no shape yet.
        """
        check_choice("mode", mode, get_args(Mode))
        chosen = memory if isinstance(memory, Memory) else Memory(memory)
        model = trained_model(self._driver, self._module, chosen.name, batch_size)
        validates = metric != TRAINING_LOSS
        part = Remembering(chosen, model, self._driver, metric, mode, validates=validates)
        self._remembering = part
        self._facts.remembered = part.told
        if self._remembered is None:
            part.apply(self._of_rank_zero(part.suggestion.held))
        else:
            part.resume(self._remembered)
        return part

    def secure(self) -> None:
        """Puts the last healthy state back if the model is ruined.

        For the moment before validation or a checkpoint, which fall between two decisions. All
        processes of a data-parallel run call it at the same time.
        """
        self._driver.secure()

    def state_dict(self) -> dict[str, Any]:
        """Tensors and builtins; with the model's and the optimizer's, a run goes on exactly.

        If the model is ruined, the last healthy state is put back first. In a data-parallel run it
        is not, because one process alone may save.
        """
        if not several_ranks():
            self._driver.secure()
        part = self._remembering
        memory = {} if part is None else {"memory": part.state_dict()}
        return {**self._driver.state_dict(), **memory}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restores what `state_dict` returned; load model and optimizer first.

        A horizon that was given replaces the saved one, with a warning if it is another.

        Raises:
            ConfigurationError: if the state is of another model, optimizer or policy.
        """
        self._driver.load_state_dict(state)
        self._remembered = dict(state.get("memory", {}))
        if self._remembering is not None:
            self._remembering.resume(self._remembered)
        self.last_epoch = self._step_count = self._driver.now
        self._facts.first_step = self._driver.now
        if self._driver.options.horizon is not None:
            self._driver.change_horizon(self._driver.options.horizon)

    def close(self) -> None:
        """Takes the hooks off the optimizer; its learning rates stay as they are."""
        self._driver.close()
        self._losses.close()

    def _of_rank_zero(self, held: float | None) -> float | None:
        """The rate that all processes of a parallel run hold."""
        if not several_ranks():
            return held
        device = self.optimizer.param_groups[0]["params"][0].device
        first = from_rank_zero(torch.tensor(math.nan if held is None else held), device)
        return None if bool(first.isnan()) else float(first)

    def _finish_step(self, loss: Tensor | None) -> None:
        if loss is None:
            raise CallOrderError(
                "step() was called without a loss. Call step(loss) or observe(loss), or name the "
                "module that returns it: DQNLRScheduler(optimizer, loss_from=model)."
            )
        self._driver.finish_step(loss)
        if self._begun is not None:
            self._facts.seconds["run"] = time.perf_counter() - self._begun
        self._looked = False
        self._idle_calls = 0
        self.last_epoch += 1
        self._step_count += 1

    def _pass_over(self) -> None:
        """A call without an optimizer step, which has a reason or is a mistake.

        Accelerate makes a call for each of the other processes after every step, so gradients are
        looked at only when there are more of them.
        """
        self._idle_calls += 1
        if self._idle_calls >= world_size() and not self._scaler_skipped():
            raise CallOrderError(
                "step(loss) was called without an optimizer step since the last call; call it "
                "once after each optimizer.step(), before the gradients are zeroed."
            )
        self.forget()

    def _before_step(
        self, optimizer: torch.optim.Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> None:
        if self._begun is None:
            self._begun = time.perf_counter()
        # The hooks get the optimizer itself as the first of the arguments, too.
        closures = [a for a in (*args[1:], kwargs.get("closure")) if callable(a)]
        if not all(_is_empty(closure) for closure in closures):
            raise UnsupportedTrainingError(
                "optimizer.step(closure) makes the gradients inside, where they cannot be read; "
                "call backward() first and then optimizer.step()."
            )
        if self._looked:
            return
        # A gradient scaler leaves the unscaling to a fused optimizer, and the scale here.
        self._driver.before_step(lambda: getattr(optimizer, "grad_scale", None))

    def _scaler_skipped(self) -> bool:
        groups = self.optimizer.param_groups
        gradients = [p.grad for group in groups for p in group["params"] if p.grad is not None]
        return any(not bool(g.isfinite().all()) for g in gradients)


def _is_empty(closure: Any) -> bool:
    """Whether Lightning made it, in a manual loop: it passes one even if the loop has none."""
    inside = closure.args if isinstance(closure, functools.partial) else ()
    return any(getattr(part, "__name__", "") == "do_nothing_closure" for part in inside)


def unwrapped(optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
    """The optimizer inside the wrapper of Lightning, Fabric or Accelerate, or itself."""
    inner = getattr(optimizer, "optimizer", None)
    wrapped = type(optimizer).__module__.startswith(_WRAPPERS)
    return inner if wrapped and isinstance(inner, torch.optim.Optimizer) else optimizer


def _rates(optimizer: torch.optim.Optimizer) -> list[float]:
    return [float(group["lr"]) for group in optimizer.param_groups]
