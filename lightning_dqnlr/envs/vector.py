"""Learning-rate control of R replicas of one task as a vectorised environment.

One episode is one training run of every replica, in lockstep: `reset` makes the first step at the
start LR, each `step` applies one action per replica and trains to the next decision. A replica
whose loss is no longer finite, and that no circuit breaker brings back, is terminal; the others
are not touched by it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from lightning_dqnlr.control.controller import Decision, LRController
from lightning_dqnlr.control.spec import ControllerSpec
from lightning_dqnlr.control.telemetry import Probe, Telemetry
from lightning_dqnlr.envs.replicas import Replicas
from lightning_dqnlr.tasks.task import Task


class Reward(Protocol):
    """The reward of an interval, elementwise: (previous loss, loss, initial loss) -> reward."""

    def __call__(self, previous_loss: Tensor, loss: Tensor, initial_loss: Tensor) -> Tensor:
        """The reward, of the shape of `loss`."""


class StepResult(NamedTuple):
    """One transition of every replica; leading shape (R,)."""

    observation: Tensor
    reward: Tensor
    alive: Tensor  # bool: the replica has not failed
    tripped: Tensor  # bool: the circuit breaker undid the interval


@dataclass(frozen=True)
class Start:
    """How the replicas' learning rates begin.

    Args:
        multiplier: (R,) times the controller's safe start; None for 1.
        lr: (R,) an explicit start instead of the safe one ("the user's learning rate").
    """

    multiplier: Tensor | None = None
    lr: Tensor | None = None


class VectorLREnv:
    """R training runs of one task under learning-rate control.

    Args:
        task: what to train.
        spec: the controller's specification, shared with the policy.
        seeds: one per replica.
        reward: of an interval.
        start: where the learning rates begin.
        circuit_breaker: whether blown-up intervals are undone.
        trip_penalty: subtracted from the reward of an undone interval.
        device: where to train.
    """

    def __init__(
        self,
        task: Task,
        spec: ControllerSpec,
        seeds: Sequence[int],
        *,
        reward: Reward,
        start: Start = Start(),
        circuit_breaker: bool = True,
        trip_penalty: float = 0.2,
        device: torch.device | str = "cpu",
    ) -> None:
        self.task = task
        self.replicas = Replicas(task, seeds, device)
        self.probe = Probe(self.replicas.sizes, spec.probe_size)
        lead = (len(self.replicas),)
        self.telemetry = Telemetry(len(self.probe), lead, device)
        self.controller = LRController(
            spec,
            horizon=task.horizon if task.known_horizon else None,
            lead=lead,
            circuit_breaker=circuit_breaker,
            device=device,
        )
        self.alive = torch.ones(lead, dtype=torch.bool, device=device)
        self._reward, self._start, self._trip_penalty = reward, start, trip_penalty
        self._interval = 1

    @property
    def finished(self) -> bool:
        """Whether the horizon is reached."""
        return self.controller.step >= self.task.horizon

    def reset(self) -> Tensor:
        """Takes the first step at the start LR; returns the first observation, (R, F)."""
        self._interval = 1
        decision = self._run_interval()
        return decision.observation

    def step(self, action: Tensor) -> StepResult:
        """Applies actions, int64 (R,), and trains to the next decision."""
        self.controller.apply(action)
        previous = self.controller.history.loss
        left = self.task.horizon - self.controller.step
        self._interval = min(self.controller.interval, left)
        decision = self._run_interval()
        history = self.controller.history
        reward = self._reward(previous, history.loss, history.initial_loss)
        reward = reward - self._trip_penalty * decision.tripped
        self.alive = self.alive & history.loss.isfinite()
        reward = torch.where(self.alive, reward, torch.full_like(reward, -1.0))
        return StepResult(decision.observation, reward, self.alive, decision.tripped)

    def final_losses(self) -> Tensor:
        """Mean training loss over the whole training set, in eval mode: (R,)."""
        return self.replicas.evaluate(self.task.train_data)

    def _run_interval(self) -> Decision:
        self.telemetry.begin(self._interval)
        for _ in range(self._interval):
            self._inner_step()
        weights = self.probe.read_flat(self.replicas.weights)
        decision = self.controller.observe(self.telemetry.read(weights))
        if self.controller.circuit_breaker:
            if self.controller.decisions > 1:
                self.replicas.restore(decision.tripped)
            self.replicas.snapshot(decision.healthy)
        return decision

    def _inner_step(self) -> None:
        observing = self.telemetry.observing
        losses = self.replicas.backward()
        if observing:
            gradient = self.probe.read_flat(self.replicas.gradient)
            self.telemetry.before(gradient, self.probe.read_flat(self.replicas.weights))
            if self.telemetry.total_steps == 0:
                self._set_start(gradient)
        self.replicas.update(self.controller.lr)
        if observing:
            self.telemetry.after(self.probe.read_flat(self.replicas.weights))
        self.telemetry.add_loss(losses)

    def _set_start(self, gradient: Tensor) -> None:
        if self._start.lr is not None:
            self.controller.start(self._start.lr)
            return
        weights = self.probe.read_flat(self.replicas.weights)
        lr = self.controller.safe_start(
            gradient.norm(dim=-1),
            weights.norm(dim=-1),
            self.probe.total,
            self.task.optimizer.follows_gradient,
        )
        if self._start.multiplier is not None:
            self.controller.start(lr * self._start.multiplier)
