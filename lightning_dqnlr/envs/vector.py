"""Learning-rate control of R replicas of one task, side by side in one vmapped training step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from lightning_dqnlr.control.controller import LRController
from lightning_dqnlr.control.probe import Probe
from lightning_dqnlr.control.spec import ControllerSpec
from lightning_dqnlr.control.telemetry import Telemetry
from lightning_dqnlr.envs.environment import Engine, Losses, LREnvironment, RateSchedule, Terms
from lightning_dqnlr.envs.replicas import Replicas
from lightning_dqnlr.tasks.task import Task


class VectorLREnv(LREnvironment):
    """R replicas in one training step."""

    def _prepare(self, spec: ControllerSpec, seeds: Sequence[int], terms: Terms) -> None:
        task = self.task
        self.replicas = Replicas(task, seeds, self.device)
        self.probe = probe = Probe(self.replicas.shapes, spec.probe_size)
        lead = (len(self.replicas),)
        scales = (probe.lecun_norm, probe.weight_floor)
        self.telemetry = Telemetry(len(probe), lead, self.device, *scales)
        self.controller = LRController(
            spec,
            horizon=task.horizon if task.known_horizon else None,
            lead=lead,
            circuit_breaker=terms.circuit_breaker,
            device=self.device,
        )
        if terms.multiplier is not None:
            self.controller.start_multiplier = terms.multiplier.to(self.device)
        self._lr = terms.lr
        self._probed_weights: Tensor | None = None

    def reset(self) -> Tensor:
        if self.controller.circuit_breaker:
            self.replicas.snapshot(self.alive)
        return self._run_interval(1)

    def evaluate(self, data: Any) -> Tensor:
        return self.replicas.evaluate(data)

    def _advance(self, action: Tensor) -> Tensor:
        self.controller.apply(action)
        left = self.task.horizon - self.controller.step
        return self._run_interval(min(self.controller.interval, left))

    def _run_interval(self, steps: int) -> Tensor:
        self.telemetry.begin(steps)
        with self.replicas.stream.active():
            for _ in range(steps):
                self._inner_step()
        decision = self.controller.observe(self.telemetry.read(self._read_weights()))
        if self.controller.circuit_breaker:
            # Worth waiting for the device: a restore reads and writes everything.
            if bool(decision.tripped.any()):
                self.replicas.restore(decision.tripped)
                self._probed_weights = None
            self.replicas.snapshot(decision.healthy)
        return decision.observation

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
        if self._lr is not None:
            self.controller.start(self._lr.to(self.replicas.device))
            return
        self.controller.safe_start(
            self.replicas.gradient.norm(dim=-1),
            self.replicas.weights.norm(dim=-1),
            self.probe,
            self.replicas.follows_gradient,
        )


@dataclass(frozen=True)
class VectorEngine(Engine):
    """Replicas side by side on a device.

    Example:
        >>> task = lightning_dqnlr.tasks.NoisyQuadratics().sample(0)
        >>> env = VectorEngine().open(task, ControllerSpec(), seeds=(0, 1), terms=Terms())
        >>> env.reset().shape
        torch.Size([2, 42])
    """

    _environment = VectorLREnv

    def follow(
        self, task: Task, seeds: Sequence[int], lr: RateSchedule, steps: int | None = None
    ) -> Losses:
        replicas = Replicas(task, seeds, self.device)
        with replicas.stream.active():
            for step in range(task.horizon if steps is None else steps):
                replicas.backward()
                replicas.update(lr(step).to(replicas.device))
        return Losses.over(task, replicas.evaluate)


ON_CPU = VectorEngine()
