"""`DQNLRScheduler`: the learned learning-rate control for a plain torch loop (torch only)."""

from __future__ import annotations

import functools
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lightning_dqnlr.control.breaker import BreakerMode
from lightning_dqnlr.control.spec import StartRate
from lightning_dqnlr.errors import CallOrderError, ConfigurationError, UnsupportedTrainingError
from lightning_dqnlr.host.decisions import DecisionRecord
from lightning_dqnlr.host.options import ControlOptions, Place
from lightning_dqnlr.host.ranks import several_ranks
from lightning_dqnlr.host.run_facts import RunFacts
from lightning_dqnlr.host.shown_run import ShownRun
from lightning_dqnlr.host.timed_driver import TimedDriver
from lightning_dqnlr.policy.choice import Policy
from lightning_dqnlr.policy.policy import as_policy


class DQNLRScheduler(ShownRun):
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

    Attributes:
        trace: one plain record per decision.

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
        chosen = as_policy(policy)
        self._driver = TimedDriver(
            _unwrapped(optimizer),
            chosen,
            options,
            module=module,
            across_ranks=several_ranks(),
        )
        self._driver.watch_steps(self._before_step)
        self._facts = RunFacts.of(chosen, [self._driver.optimizer], module)
        self._driver.watch.seconds = self._facts.seconds
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

    def step(self, loss: Tensor | float) -> None:
        """Takes the training loss of the optimizer step just made; sets the next learning rate.

        A step that a gradient scaler skipped does not count.

        Args:
            loss: a scalar.

        Raises:
            ConfigurationError: if `loss` is not a scalar.
            CallOrderError: if the optimizer has not stepped since the last call.
            NonFiniteLossError: if the very first loss is NaN or infinite.
        """
        scalar = torch.as_tensor(loss)
        if scalar.numel() != 1:
            raise ConfigurationError(
                f"loss must be a scalar, got shape {tuple(scalar.shape)}; pass its mean."
            )
        if self._driver.stepped:
            self._driver.finish_step(scalar.detach().reshape(()))
            if self._begun is not None:
                self._facts.seconds["run"] = time.perf_counter() - self._begun
        elif not self._scaler_skipped():
            raise CallOrderError(
                "step(loss) was called without an optimizer step since the last call; call it "
                "once after each optimizer.step(), before the gradients are zeroed."
            )

    def get_last_lr(self) -> list[float]:
        """The learning rate of each parameter group, which the coming step uses."""
        return [float(group["lr"]) for group in self._driver.optimizer.param_groups]

    def state_dict(self) -> dict[str, Any]:
        """Tensors and builtins; with the model's and the optimizer's, a run goes on exactly.

        If the model is ruined, the last healthy state is put back first. In a data-parallel run it
        is not, because one process alone may save.
        """
        if not several_ranks():
            self._driver.secure()
        return self._driver.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restores what `state_dict` returned; load model and optimizer first.

        A horizon that was given replaces the saved one, with a warning if it is another.

        Raises:
            ConfigurationError: if the state is of another model, optimizer or policy.
        """
        self._driver.load_state_dict(state)
        self._facts.first_step = self._driver.now
        if self._driver.options.horizon is not None:
            self._driver.change_horizon(self._driver.options.horizon)

    def close(self) -> None:
        """Takes the hooks off the optimizer; its learning rates stay as they are."""
        self._driver.close()

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
        # A gradient scaler leaves the unscaling to a fused optimizer, and the scale here.
        self._driver.before_step(lambda: getattr(optimizer, "grad_scale", None))

    def _scaler_skipped(self) -> bool:
        groups = self._driver.optimizer.param_groups
        gradients = [p.grad for group in groups for p in group["params"] if p.grad is not None]
        return any(not bool(g.isfinite().all()) for g in gradients)


def _is_empty(closure: Any) -> bool:
    """Whether Lightning made it, in a manual loop: it passes one even if the loop has none."""
    inside = closure.args if isinstance(closure, functools.partial) else ()
    return any(getattr(part, "__name__", "") == "do_nothing_closure" for part in inside)


def _unwrapped(optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
    """The torch optimizer inside the wrapper of Lightning or Fabric, or the optimizer itself."""
    inner = getattr(optimizer, "optimizer", None)
    wrapped = type(optimizer).__module__.startswith(("lightning.", "pytorch_lightning."))
    return inner if wrapped and isinstance(inner, torch.optim.Optimizer) else optimizer
