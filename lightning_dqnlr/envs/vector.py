"""Learning-rate control of R replicas of one task, side by side in one vmapped training step."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_dqnlr.control.controller import Decision, LRController
from lightning_dqnlr.control.probe import Probe
from lightning_dqnlr.control.spec import ControllerSpec
from lightning_dqnlr.control.telemetry import Telemetry
from lightning_dqnlr.envs.environment import Losses, StepResult, Terms
from lightning_dqnlr.envs.replicas import Replicas
from lightning_dqnlr.rl.rewards import TrainingInterval
from lightning_dqnlr.tasks.task import Task


class VectorLREnv:
    """R training runs of one task under learning-rate control; see `LREnvironment`.

    Args:
        task: what to train.
        spec: the controller's specification, shared with the policy.
        seeds: one per replica.
        terms: start and circuit breaker.
        device: where to train.

    Raises:
        UnsupportedTrainingError: what cannot be trained side by side; names the remedy.
    """

    def __init__(
        self,
        task: Task,
        spec: ControllerSpec,
        seeds: Sequence[int],
        terms: Terms,
        device: torch.device | str = "cpu",
    ) -> None:
        self.task = task
        self.replicas = Replicas(task, seeds, device)
        self.probe = probe = Probe(self.replicas.shapes, spec.probe_size)
        lead = (len(self.replicas),)
        scales = (probe.lecun_norm, probe.weight_floor)
        self.telemetry = Telemetry(len(probe), lead, device, *scales)
        self.controller = LRController(
            spec,
            horizon=task.horizon if task.known_horizon else None,
            lead=lead,
            circuit_breaker=terms.circuit_breaker,
            device=device,
        )
        if terms.start.multiplier is not None:
            self.controller.start_multiplier = terms.start.multiplier.to(device)
        self.alive = torch.ones(lead, dtype=torch.bool, device=device)
        self._terms = terms
        self._interval = 1
        self._probed_weights: Tensor | None = None

    @property
    def finished(self) -> bool:
        """Whether the horizon is reached."""
        return self.controller.step >= self.task.horizon

    def reset(self) -> Tensor:
        """Takes the first step at the start LR; returns the first observation, (R, F)."""
        self._interval = 1
        if self.controller.circuit_breaker:
            self.replicas.snapshot(self.alive)
        return self._run_interval().observation

    def step(self, action: Tensor) -> StepResult:
        """Applies actions, int64 (R,), and trains to the next decision."""
        self.controller.apply(action)
        previous = self.controller.history.loss
        left = self.task.horizon - self.controller.step
        self._interval = min(self.controller.interval, left)
        decision = self._run_interval()
        history = self.controller.history
        self.alive = self.alive & history.loss.isfinite()
        interval = TrainingInterval(
            previous, history.loss, history.initial_loss, decision.tripped, self.alive
        )
        return StepResult(decision.observation, interval)

    def losses(self) -> Losses:
        """Of the weights as they are, over the whole data sets."""
        return _losses(self.replicas)

    def close(self) -> None:
        """Nothing runs between two steps."""

    def _run_interval(self) -> Decision:
        self.telemetry.begin(self._interval)
        with self.replicas.randomness():
            for _ in range(self._interval):
                self._inner_step()
        weights = self._read_weights()
        decision = self.controller.observe(self.telemetry.read(weights))
        if self.controller.circuit_breaker:
            # Worth waiting for the device: a restore reads and writes everything.
            if bool(decision.tripped.any()):
                self.replicas.restore(decision.tripped)
                self._probed_weights = None
            self.replicas.snapshot(decision.healthy)
        return decision

    def _inner_step(self) -> None:
        observing = self.telemetry.observing
        losses = self.replicas.backward()
        if observing:
            gradient = self.probe.read_flat(self.replicas.gradient)
            self.telemetry.before(gradient, self._read_weights())
            if self.telemetry.total_steps == 0:
                self._set_start()
        self.replicas.update(self.controller.lr)
        self._probed_weights = None
        if observing:
            self.telemetry.after(self._read_weights())
        self.telemetry.add_loss(losses)

    def _read_weights(self) -> Tensor:
        """The probe's weights; read once between two updates."""
        if self._probed_weights is None:
            self._probed_weights = self.probe.read_flat(self.replicas.weights)
        return self._probed_weights

    def _set_start(self) -> None:
        lr = self._terms.start.lr
        if lr is not None:
            self.controller.start(lr.to(self.replicas.device))
            return
        self.controller.safe_start(
            self.replicas.gradient.norm(dim=-1),
            self.replicas.weights.norm(dim=-1),
            self.probe,
            self.replicas.follows_gradient,
        )


@dataclass(frozen=True)
class VectorEngine:
    """Replicas side by side; an `Engine`.

    Args:
        device: where to train.

    Example:
        >>> task = lightning_dqnlr.tasks.NoisyQuadratics().sample(0)
        >>> env = VectorEngine().open(task, ControllerSpec(), seeds=(0, 1), terms=Terms())
        >>> env.reset().shape
        torch.Size([2, 42])
    """

    device: str = "cpu"

    def open(
        self,
        task: Task,
        spec: ControllerSpec,
        seeds: Sequence[int],
        terms: Terms,
    ) -> VectorLREnv:
        """An environment of one replica per seed; see `Engine.open`."""
        return VectorLREnv(task, spec, seeds, terms, self.device)

    def follow(
        self,
        task: Task,
        seeds: Sequence[int],
        lr: Callable[[int], Tensor],
        steps: int | None = None,
    ) -> Losses:
        """Trains at given learning rates; see `Engine.follow`."""
        replicas = Replicas(task, seeds, self.device)
        with replicas.randomness():
            for step in range(task.horizon if steps is None else steps):
                replicas.backward()
                replicas.update(lr(step).to(replicas.device))
        return _losses(replicas)


ON_CPU = VectorEngine()


def _losses(replicas: Replicas) -> Losses:
    task = replicas.task
    with replicas.randomness():
        return Losses(replicas.evaluate(task.train_data), replicas.evaluate(task.validation_data))
