"""What meta-training asks of a learner, whatever it learns with."""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from lightning_dqnlr.control.spec import ControllerSpec
from lightning_dqnlr.policy.network import Network
from lightning_dqnlr.rl.replay import Transitions


class Update(NamedTuple):
    """What one update found before it changed anything; both stay on the device.

    Attributes:
        loss: 0-dim, the (weighted) mean over the batch.
        errors: (B,) temporal-difference errors, not weighted.
    """

    loss: Tensor
    errors: Tensor


class Learner(Protocol):
    """Learns Q-values from batches of transitions."""

    @property
    def online(self) -> Network:
        """What explores."""

    @property
    def average(self) -> Network:
        """What is evaluated and shipped."""

    @property
    def updates(self) -> int:
        """How many there were."""

    def update(self, batch: Transitions, weights: Tensor | None = None) -> Update:
        """Learns from B transitions.

        Args:
            batch: on the learner's device. Observations are finite; next observations are finite
                unless the discount is 0.
            weights: (B,) factors of the transitions' losses; the mean stays over B.
        """

    def state_dict(self) -> dict[str, Any]:
        """A snapshot in plain containers and tensors, loadable with `weights_only=True`."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continues from a snapshot exactly as the learner it was taken from would have."""


class LearnerConfig(Protocol):
    """The settings of a kind of learner, and how to make one."""

    @property
    def batch_size(self) -> int:
        """Transitions per update."""

    def build(self, spec: ControllerSpec, device: torch.device | str = "cpu") -> Learner:
        """An untrained learner for a controller's observations and actions.

        Raises:
            ConfigurationError: the settings do not fit the specification.
        """
