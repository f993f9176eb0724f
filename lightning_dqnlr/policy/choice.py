"""What a host asks of a policy: an action for an observation, with the Q-values behind it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor, nn

from lightning_dqnlr.control.spec import ControllerSpec, StartRate

Act = Callable[[Tensor], Tensor]  # observations (*lead, features) -> int64 actions of shape `lead`


class Choice(NamedTuple):
    """Actions, and what they were chosen by; `lead` is the observation's leading shape.

    Attributes:
        action: int64, shape `lead`.
        q_values: (*lead, actions).

    Example:
        >>> q_values = torch.tensor([0.1, 0.7, 0.2])
        >>> Choice(q_values.argmax(), q_values).action
        tensor(1)
    """

    action: Tensor
    q_values: Tensor


class Policy(Protocol):
    """Chooses actions, and names the controller that it needs. `LRPolicy` is the learned one.

    Example:
        choice = policy.choose(decision.observation)
        controller.apply(choice.action)
    """

    @property
    def spec(self) -> ControllerSpec:
        """What a controller must share with it."""

    @property
    def start(self) -> StartRate:
        """The first learning rate of a run."""

    @property
    def circuit_breaker(self) -> bool:
        """Whether blown-up intervals are undone."""

    def choose(
        self,
        observation: Tensor,
        epsilon: float | Tensor = 0.0,
        generator: torch.Generator | None = None,
    ) -> Choice:
        """Epsilon-greedy actions and their Q-values.

        Args:
            observation: (*lead, features).
            epsilon: probability of a uniformly random action, broadcastable to `lead`.
            generator: of the exploration, drawn on its own device. The number 0 for epsilon draws
                nothing.
        """


class QPolicy(ABC):
    """Chooses epsilon-greedily by the Q-values that a subclass gives."""

    @abstractmethod
    def q_values(self, observation: Tensor) -> Tensor:
        """Q-values (*lead, actions) of observations (*lead, features)."""

    def choose(
        self,
        observation: Tensor,
        epsilon: float | Tensor = 0.0,
        generator: torch.Generator | None = None,
    ) -> Choice:
        """Epsilon-greedy actions and their Q-values; see `Policy.choose`."""
        q_values = self.q_values(observation)
        if isinstance(epsilon, float | int) and epsilon == 0:
            return Choice(q_values.argmax(dim=-1), q_values)
        return Choice(epsilon_greedy(q_values, epsilon, generator), q_values)


@dataclass(frozen=True)
class ScriptedPolicy(QPolicy):
    """A policy whose actions come from a function.

    Args:
        act: gives the actions.
        spec: of the controller.
        start: the first learning rate of a run.
        circuit_breaker: whether blown-up intervals are undone.

    Example:
        >>> spec = ControllerSpec()
        >>> keep = ScriptedPolicy(lambda seen: torch.full(seen.shape[:-1], spec.actions.keep), spec)
        >>> keep.choose(torch.zeros(2, len(spec.features))).action
        tensor([3, 3])
    """

    act: Act
    spec: ControllerSpec
    start: StartRate = "auto"
    circuit_breaker: bool = True

    def q_values(self, observation: Tensor) -> Tensor:
        """1 for the function's actions and 0 for the others."""
        return nn.functional.one_hot(self.act(observation), len(self.spec.actions)).float()


def epsilon_greedy(
    q_values: Tensor, epsilon: float | Tensor, generator: torch.Generator | None = None
) -> Tensor:
    """With probability epsilon an action drawn evenly from all, otherwise the greedy one.

    Every epsilon draws the same number of random numbers. A schedule of epsilon therefore does not
    change later randomness.

    Args:
        q_values: (..., A). Ties go to the lowest index.
        epsilon: in [0, 1]; a tensor broadcastable to (...) gives each replica its own.
        generator: source of the randomness; drawn on its own device.

    Returns:
        (...) int64 actions on the device of q_values.

    Example:
        >>> epsilon_greedy(torch.tensor([0.1, 0.3, 0.2]), epsilon=0.0)
        tensor(1)
    """
    shape = q_values.shape[:-1]
    device = q_values.device
    source = device if generator is None else generator.device
    explores = torch.rand(shape, generator=generator, device=source).to(device) < epsilon
    anything = torch.randint(q_values.shape[-1], shape, generator=generator, device=source)
    return torch.where(explores, anything.to(device), q_values.argmax(dim=-1))
