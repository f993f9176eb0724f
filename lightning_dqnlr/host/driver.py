"""`OptimizerDriver`: the learning-rate controller at the wheel of one torch optimizer.

`DQNLRCallback` and `DQNLRScheduler` differ only in how they learn of an optimizer step; what
follows from it is here, once, and follows the vectorised environment step for step. Per step:
`before_step` with the gradients in place, `after_step` once the optimizer has moved the weights,
`finish_step` with the training loss. At the end of an interval the statistics travel to the host
in one transfer; controller and policy live there. On the steps that are not observed only the loss
is added up.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from lightning_dqnlr.control.controller import LRController
from lightning_dqnlr.control.probe import Probe, norm
from lightning_dqnlr.control.spec import StartRate, check_arguments
from lightning_dqnlr.control.telemetry import Telemetry
from lightning_dqnlr.errors import (
    ConfigurationError,
    NonFiniteLossError,
    UnsupportedTrainingError,
)
from lightning_dqnlr.host.decisions import Outcome, Record, Recorder
from lightning_dqnlr.host.optimizer import GroupRates
from lightning_dqnlr.host.snapshot import Snapshot
from lightning_dqnlr.policy.choice import Policy

_STATE = (
    "base_lrs", "probed", "sizes", "controller", "telemetry", "snapshot", "generator", "record",
)  # fmt: skip
_LOGGER = logging.getLogger("lightning_dqnlr")


class OptimizerDriver:
    """Sets the learning rates of one optimizer.

    The group with the largest learning rate is the reference; the others keep their ratio to it.
    Groups that join later keep their ratio to the reference's rate of that moment; the statistics
    go on describing the parameters that were there, and trainable, at the first step.

    Args:
        optimizer: any `torch.optim` optimizer but LBFGS.
        policy: chooses the actions.
        start: "auto" for the controller's safe start, "optimizer" for the optimizer's own rate,
            None for what the policy was trained with.
        horizon: optimizer steps of the run; None if unknown.
        min_lr, max_lr: bounds of the reference group's learning rate.
        circuit_breaker: whether blown-up intervals are undone, None for what the policy was
            trained with. It keeps two copies of the trained weights, their optimizer state and
            the rest of the training state.
        epsilon: probability of a random action.
        seed: of these random actions.
        module: whose buffers and frozen followers belong to the training state; None for none.
        averages: averages of that module, which belong to it too.
        across_ranks: whether this is one process of a data-parallel run. Statistics are then
            averaged over all processes, and all follow rank 0.

    Attributes:
        stepped: whether the optimizer has stepped since the last `finish_step`.

    Raises:
        ConfigurationError: for an argument out of range, or if all learning rates are zero.
        UnsupportedTrainingError: for LBFGS.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        policy: Policy,
        *,
        start: StartRate | None = None,
        horizon: int | None = None,
        min_lr: float | None = None,
        max_lr: float | None = None,
        circuit_breaker: bool | None = None,
        epsilon: float = 0.0,
        seed: int = 0,
        module: nn.Module | None = None,
        averages: Sequence[nn.Module] = (),
        across_ranks: bool = False,
    ) -> None:
        start = start if start is not None else policy.start
        if circuit_breaker is None:
            circuit_breaker = policy.circuit_breaker
        check_arguments(start=start, horizon=horizon, min_lr=min_lr, max_lr=max_lr, epsilon=epsilon)
        self.optimizer, self.policy = optimizer, policy
        self.stepped = False
        self._start, self._epsilon, self._across_ranks = start, epsilon, across_ranks
        self._generator = torch.Generator().manual_seed(seed)
        self._rates = GroupRates(optimizer)
        self.controller = LRController(
            policy.spec,
            horizon=horizon,
            min_lr=min_lr,
            max_lr=max_lr,
            circuit_breaker=circuit_breaker,
        )
        self._snapshot = Snapshot(optimizer, module, averages) if circuit_breaker else None
        self._recorder = Recorder(self.controller, climbing=start == "auto")
        self._probed: list[int] = []
        self._parameters: list[Tensor] = []
        self._before: tuple[Tensor, Tensor] | None = None
        self._after: Tensor | None = None

    @property
    def trace(self) -> list[Record]:
        """One plain record per decision."""
        return self._recorder.trace

    @property
    def lr(self) -> float:
        """The reference group's learning rate, which the coming step uses."""
        return self._rates.lr

    @property
    def observing(self) -> bool:
        """Whether the coming step's gradient will be looked at."""
        return not self._probed or self._telemetry.observing

    def before_step(self, gradient_scale: float | Tensor | None = None) -> None:
        """Looks at gradients and weights just before an optimizer step.

        Args:
            gradient_scale: what the gradients are still multiplied by (mixed precision).
        """
        if not self._probed:
            self._begin()
        self._rates.hold()
        if self._snapshot is not None:
            self._snapshot.adopt()
        if self._telemetry.observing:
            self._look(gradient_scale)

    def _look(self, gradient_scale: float | Tensor | None) -> None:
        gradient = self._probe.read([p.grad for p in self._parameters])
        if gradient_scale is not None:
            gradient /= gradient_scale
        self._before = gradient, self._probe.read_parameters(self._parameters)
        if self._telemetry.total_steps == 0:
            self._set_start(gradient_scale)

    def after_step(self) -> None:
        """Notes a real optimizer step, and looks at the weights."""
        # A fused optimizer is called even for a step that the gradient scaler makes it skip.
        found_inf = getattr(self.optimizer, "found_inf", None)
        if found_inf is not None and bool(found_inf):
            return
        self.stepped = True
        if self._before is not None:
            self._after = self._probe.read_parameters(self._parameters)

    def finish_step(self, loss: Tensor) -> bool:
        """Takes the training loss of the step just made; at an interval's end, decides.

        Args:
            loss: scalar, on any device, detached.

        Returns:
            Whether a decision was taken.

        Raises:
            NonFiniteLossError: if the very first loss is NaN or infinite.
        """
        before, after = self._before, self._after
        self.forget_step()
        if not self._probed:
            return False
        if self._telemetry.observing:
            if before is None or after is None:
                return False  # a step made behind our back
            self._telemetry.before(*before)
            self._telemetry.after(after)
        self._telemetry.add_loss(loss)
        decides = self._telemetry.complete
        if decides:
            self._decide()
        return decides

    def forget_step(self) -> None:
        """Drops what was seen of a step that is not to be counted."""
        self.stepped, self._before, self._after = False, None, None

    def _begin(self, probed: Sequence[int] | None = None) -> None:
        """Fixes the probe. Late, because lazy layers get their shapes in the first forward pass."""
        everything = [p for group in self.optimizer.param_groups for p in group["params"]]
        if probed is None:
            probed = [i for i, p in enumerate(everything) if p.requires_grad and p.numel()]
        self._parameters = [everything[i] for i in probed]
        devices = {p.device for p in self._parameters}
        if len(devices) != 1:
            raise UnsupportedTrainingError(
                f"optimizer holds trainable parameters on {len(devices)} devices; it must hold "
                "some, and all on one device (or replicated by DDP)."
            )
        self._probed = list(probed)
        self._rates.adopt_new_groups()
        shapes = [p.shape for p in self._parameters]
        self._probe = probe = Probe(shapes, self.policy.spec.probe_size)
        scales = (probe.lecun_norm, probe.weight_floor)
        self._telemetry = Telemetry(len(probe), (), devices.pop(), *scales)
        if self._snapshot is not None:
            self._snapshot.take(0)

    def _set_start(self, gradient_scale: float | Tensor | None) -> None:
        """Once, so that all of the first gradient can be looked at: the probe may miss it."""
        if self._start == "optimizer":
            self.controller.start(torch.tensor(self._rates.reference))
        else:
            gradient = norm([p.grad for p in self._parameters]).cpu()
            if gradient_scale is not None:
                gradient = gradient / float(gradient_scale)
            weights = norm(self._parameters).cpu()
            follows_gradient = isinstance(self.optimizer, torch.optim.SGD)
            self.controller.safe_start(gradient, weights, self._probe, follows_gradient)
        self._rates.set(float(self.controller.lr))

    @torch.no_grad()
    def _decide(self) -> None:
        self._rates.adopt_new_groups()
        reduce = mean_over_ranks if self._across_ranks else None
        stats = self._telemetry.read(self._probe.read_parameters(self._parameters), "cpu", reduce)
        if self.controller.decisions == 0 and not bool(stats.losses[..., 0].isfinite()):
            raise NonFiniteLossError(
                f"the training loss of the very first step is {stats.losses[..., 0].item()}; no "
                "learning rate can mend that. Look for NaN or infinite inputs, a log or a division "
                "of zero in the loss, or an initialisation that overflows."
            )
        used, decision = self.lr, self.controller.observe(stats)
        restored = self._restore_or_keep(bool(decision.tripped), bool(decision.healthy))
        choice = self.policy.choose(decision.observation, self._epsilon, self._generator)
        action = choice.action
        if self._across_ranks:
            action = from_rank_zero(action, self._parameters[0].device)
        before = self.controller.history.log_scale
        self.controller.apply(action)
        self._rates.set(float(self.controller.lr))
        self._telemetry.begin(self.controller.interval)
        outcome = Outcome(
            action=int(action),
            q_values=choice.q_values,
            used=used,
            lr=self.lr,
            applied=float(self.controller.history.log_scale - before),
            tripped=bool(decision.tripped),
            restored_step=restored,
        )
        self._recorder.add(stats, outcome)

    def _restore_or_keep(self, tripped: bool, healthy: bool) -> int | None:
        if self._snapshot is None:
            return None
        if tripped:
            return self._snapshot.restore()
        if healthy:
            self._snapshot.take(self.controller.step)
        return None

    def state_dict(self) -> dict[str, Any]:
        """Tensors and builtins: everything to go on exactly, in the middle of an interval too."""
        return {
            "base_lrs": list(self._rates.base),
            "probed": list(self._probed),
            "sizes": [p.numel() for p in self._parameters],
            "controller": self.controller.state_dict(),
            "telemetry": self._telemetry.state_dict() if self._probed else None,
            "snapshot": self._snapshot.state_dict() if self._snapshot is not None else None,
            "generator": self._generator.get_state(),
            "record": self._recorder.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restores what `state_dict` returned, and sets the learning rates.

        Weights and optimizer state are the host's to restore, before this. The horizon becomes the
        saved one.

        Raises:
            ConfigurationError: if the state is of another optimizer or model.
        """
        self._check_state(state)
        self._rates.base = list(state["base_lrs"])
        self.controller.load_state_dict(state["controller"])
        self._generator.set_state(state["generator"].cpu())
        self._recorder.load_state_dict(state["record"])
        if state["probed"]:
            self._begin(state["probed"])
            self._telemetry.load_state_dict(state["telemetry"])
            self._rates.set(float(self.controller.lr))
        if self._snapshot is not None and state["snapshot"] is not None:
            self._snapshot.load_state_dict(state["snapshot"])

    def change_horizon(self, horizon: int | None) -> None:
        """Sets the horizon of a restored run, with a warning if it was another."""
        saved = self.controller.horizon
        if horizon != saved:
            _LOGGER.warning(
                "the run's horizon was %s steps when its state was saved and is %s steps now; the "
                "learning rate follows the new one.",
                saved,
                horizon,
            )
            self.controller.horizon = horizon

    def _check_state(self, state: Mapping[str, Any]) -> None:
        missing = [name for name in _STATE if name not in state]
        if missing:
            raise ConfigurationError(
                f"state: it lacks {missing}; it was saved by another version of lightning-dqnlr. "
                "Go on with that version, or without the saved control."
            )
        groups = self.optimizer.param_groups
        sizes = [p.numel() for group in groups for p in group["params"]]
        known = [sizes[i] if i < len(sizes) else 0 for i in state["probed"]]
        if len(state["base_lrs"]) > len(groups) or known != list(state["sizes"]):
            raise ConfigurationError(
                "state: the saved learning-rate control is of another model or of an optimizer "
                "with other parameter groups; resume with those it was saved with."
            )


def mean_over_ranks(values: Tensor) -> Tensor:
    """The mean of a tensor over all processes; NaN where any of them has NaN."""
    total = values.clone()
    dist.all_reduce(total)
    return total / dist.get_world_size()


def from_rank_zero(value: Tensor, device: torch.device) -> Tensor:
    """Rank 0's value, on the host.

    Args:
        value: of the same shape and type on every process.
        device: where the process group communicates (the device of the weights).
    """
    on_device = value.to(device)
    dist.broadcast(on_device, src=0)
    return on_device.cpu()


def several_ranks() -> bool:
    """Whether this is one of several processes of an initialised process group."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1
