"""`ControlOptions`: the arguments that callback, scheduler and driver share."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal, get_args

from lightning_dqnlr import __version__
from lightning_dqnlr.checks import check_choice, check_integer, check_number
from lightning_dqnlr.control.breaker import BreakerMode
from lightning_dqnlr.control.spec import StartRate, check_limits
from lightning_dqnlr.policy.choice import Policy

Place = Literal["device", "cpu"]
_BREAKERS = (True, False, "finite")
_PLAIN = {"horizon": int, "min_lr": float, "max_lr": float, "epsilon": float, "seed": int}


@dataclass(frozen=True)
class ControlOptions:
    """How a host controls a run.

    Args:
        start: "auto" for the controller's safe start, "optimizer" for the optimizer's own rate,
            None for what the policy was trained with.
        horizon: optimizer steps of the run; None if unknown.
        min_lr: lower bound of the learning rate of the reference group.
        max_lr: upper bound of it.
        circuit_breaker: whether blown-up intervals are undone, "finite" to undo only those that
            are not finite, None for what the policy was trained with. The breaker keeps two
            copies of the trained weights, of their optimizer state and of the rest of the training
            state.
        epsilon: probability of a random action.
        seed: of these random actions.
        snapshot: where the breaker keeps its two copies: "device" for that of the weights, "cpu"
            for the host's memory.
        save_snapshot: whether saved states hold the two copies.

    Raises:
        ConfigurationError: for an argument out of range.

    Example:
        >>> ControlOptions(horizon=1000, max_lr=0.1).epsilon
        0.0
    """

    start: StartRate | None = None
    horizon: int | None = None
    min_lr: float | None = None
    max_lr: float | None = None
    circuit_breaker: BreakerMode | None = None
    epsilon: float = 0.0
    seed: int = 0
    snapshot: Place = "device"
    save_snapshot: bool = False

    def __post_init__(self) -> None:
        check_choice("start", self.start, get_args(StartRate), optional=True)
        check_limits(self.horizon, self.min_lr, self.max_lr)
        check_choice("circuit_breaker", self.circuit_breaker, _BREAKERS, optional=True)
        check_choice("snapshot", self.snapshot, get_args(Place))
        check_choice("save_snapshot", self.save_snapshot, (True, False))
        check_number("epsilon", self.epsilon, "[0, 1]")
        check_integer("seed", self.seed, 0, 2**63 - 1)
        for name, kind in _PLAIN.items():  # checkpoints hold no numbers of NumPy
            value = getattr(self, name)
            object.__setattr__(self, name, None if value is None else kind(value))

    def filled_in(self, policy: Policy) -> ControlOptions:
        """The options with the policy's own where they leave the choice to it."""
        breaker = self.circuit_breaker
        return replace(
            self,
            start=policy.start if self.start is None else self.start,
            circuit_breaker=policy.circuit_breaker if breaker is None else breaker,
        )


def identity(policy: Policy) -> dict[str, str]:
    """Which policy controls a run: its name, this package's version, and a hash of the policy.

    The hash is empty for a policy without one, such as a scripted one.

    Example:
        >>> from lightning_dqnlr.policy.policy import LRPolicy
        >>> identity(LRPolicy.load("classic"))["policy"]
        'classic'
    """
    return {
        "policy": getattr(policy, "name", type(policy).__name__),
        "policy_version": __version__,
        "policy_hash": getattr(policy, "fingerprint", ""),
    }
