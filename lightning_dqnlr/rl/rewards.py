"""Rewards for learning-rate control: what each decision of an episode is paid.

`LogProgress` and `LossChange` pay each interval by itself. `FinalScore` pays once, where a run
ends, and compares the runs with each other. `LossChange` is the reward of the classic recipe;
`LogProgress` pays the same for each halving of the loss, whatever the task's units.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, ClassVar, NamedTuple, Protocol

import torch
from torch import Tensor

from lightning_dqnlr.checks import POSITIVE, NotNegative, Positive, check_number, check_settings
from lightning_dqnlr.control.features import compressed_loss
from lightning_dqnlr.errors import ConfigurationError

TRIP_PENALTY = 0.02
_FAILED = 20.0  # compressed loss of a run without a finite loss: 5 million times the initial

IntervalReward = Callable[[Tensor, Tensor, Tensor], Tensor]
"""The reward of an interval, elementwise: (previous loss, loss, initial loss) -> reward."""


class TrainingInterval(NamedTuple):
    """What happened between two decisions of R runs; (R,) each, or (T, R) for T intervals.

    Attributes:
        previous_loss: of the interval before, in the task's own units.
        loss: mean of the interval.
        initial_loss: of the run's first interval.
        tripped: bool, whether the circuit breaker undid the interval.
        alive: bool, whether the run has not failed.
    """

    previous_loss: Tensor
    loss: Tensor
    initial_loss: Tensor
    tripped: Tensor
    alive: Tensor


class End(NamedTuple):
    """The end of R runs: loss over the whole training set in eval mode, and trips; (R,) each."""

    loss: Tensor
    trips: Tensor


class Reward(Protocol):
    """What the decisions of an episode are paid."""

    least_replicas: ClassVar[int]
    """How many runs there must be for the reward to tell good actions from bad ones."""

    def pay(self, intervals: TrainingInterval, end: End) -> Tensor:
        """The rewards, (T, R), of T intervals; what comes after a run's failure is not read."""


def interval_rewards(
    reward: IntervalReward, interval: TrainingInterval, trip_penalty: float = TRIP_PENALTY
) -> Tensor:
    """What each interval is paid by itself: `reward - trip_penalty * tripped`; -1 for a failure.

    Args:
        reward: of an interval that went well or badly.
        interval: one or several, of shape S, as the rewards are.
        trip_penalty: of an undone interval, in the reward's units.
    """
    value = reward(interval.previous_loss, interval.loss, interval.initial_loss)
    return torch.where(interval.alive, value - trip_penalty * interval.tripped, -1.0)


@dataclass(frozen=True, kw_only=True)
class _EachInterval(ABC):
    """The settings that all rewards by intervals share.

    Attributes:
        trip_penalty: of an undone interval, in the reward's units.
        final_evaluation: whether the last reward also pays the step from the last interval's loss
            to that of the whole training set in eval mode. A user measures a run by the latter.
    """

    least_replicas: ClassVar[int] = 1
    trip_penalty: NotNegative = TRIP_PENALTY
    final_evaluation: bool = False

    def __post_init__(self) -> None:
        check_settings(self, "")

    @abstractmethod
    def __call__(self, previous_loss: Tensor, loss: Tensor, initial_loss: Tensor) -> Tensor:
        """The reward of an interval, of the shape of `loss`."""

    def pay(self, intervals: TrainingInterval, end: End) -> Tensor:
        rewards = interval_rewards(self, intervals, self.trip_penalty)
        if self.final_evaluation:
            last = self(intervals.loss[-1], end.loss, intervals.initial_loss[-1])
            rewards[-1] += last.nan_to_num(-1.0, -1.0, -1.0)
        return rewards


@dataclass(frozen=True)
class LogProgress(_EachInterval):
    """Decrease of the compressed loss in each interval, `y(L_{t-1}) - y(L_t)`, in nats.

    y(L) = log((L + e) / e) with e = 1% of the initial loss for L >= 0. It is continued as an odd
    function below zero (see `compressed_loss`). The rewards of a run sum to y(first) - y(last), so
    the undiscounted return is the benchmark's own score.

    Example:
        >>> losses = torch.tensor([100.0]), torch.tensor([49.5])
        >>> LogProgress()(*losses, torch.tensor([100.0])).exp()
        tensor([2.])
    """

    def __call__(self, previous_loss: Tensor, loss: Tensor, initial_loss: Tensor) -> Tensor:
        before = compressed_loss(previous_loss, initial_loss)
        return before - compressed_loss(loss, initial_loss)


@dataclass(frozen=True)
class LossChange(_EachInterval):
    """Signed and plain decrease of the loss, `a1*sign(L_{t-1} - L_t) + a2*(L_{t-1} - L_t)`.

    The reward is in the task's own units, and the initial loss plays no part in it.

    Attributes:
        alpha_1: weight of the sign; an unchanged loss has sign 0.
        alpha_2: weight of the decrease.
        limit: the reward is clipped to +- this (Mnih et al. 2015 clip to +-1). The squared error of
            a raw loss that diverged would be infinite in float32. `math.inf` never clips.

    Raises:
        ConfigurationError: limit is not positive, or both weights are 0.

    Example:
        >>> LossChange(limit=5.0)(torch.tensor(4.0), torch.tensor(3.5), torch.tensor(9.0))
        tensor(1.5000)
    """

    alpha_1: float = 1.0
    alpha_2: float = 1.0
    limit: Annotated[float, "(0, inf]"] = 10.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.alpha_1 == 0 and self.alpha_2 == 0:
            raise ConfigurationError(
                "alpha_1=0 and alpha_2=0 would pay nothing for anything; set one of them."
            )

    def __call__(self, previous_loss: Tensor, loss: Tensor, initial_loss: Tensor) -> Tensor:
        decrease = previous_loss - loss
        reward = self.alpha_1 * torch.sign(decrease) + self.alpha_2 * decrease
        return reward.clamp(-self.limit, self.limit)


@dataclass(frozen=True)
class FinalScore:
    """`group_final_score` of the runs' ends, paid where each of them ends, and 0 before.

    The level of a run is y_i + trip_penalty * trips_i, where y_i is the compressed loss of the
    whole training set in eval mode.

    Attributes:
        temperature: the difference in level below which runs count as equally good.
        trip_penalty: of an undone interval, in units of log loss.

    Raises:
        ConfigurationError: a value out of range.

    Example:
        >>> start, on = torch.ones(1, 3), torch.ones(1, 3, dtype=torch.bool)
        >>> interval = TrainingInterval(start, start, start, ~on, on)
        >>> FinalScore().pay(interval, End(torch.tensor([0.1, 0.2, 0.5]), torch.zeros(3)))
        tensor([[ 1.3370, -0.2694, -1.0676]])
    """

    least_replicas: ClassVar[int] = 2
    temperature: Positive = 0.2
    trip_penalty: NotNegative = TRIP_PENALTY

    def __post_init__(self) -> None:
        check_settings(self, "")

    def pay(self, intervals: TrainingInterval, end: End) -> Tensor:
        level = compressed_loss(end.loss, intervals.initial_loss[-1])
        score = group_final_score(level + self.trip_penalty * end.trips, self.temperature)
        # The reward of a failed run belongs to the step of its failure.
        last = intervals.alive[:-1].sum(0)
        step = torch.arange(len(intervals.alive), device=last.device).unsqueeze(-1)
        return torch.where(last == step, score, 0.0)


def group_final_score(levels: Tensor, temperature: float, *, min_spread: float = 0.1) -> Tensor:
    """Scores the ends of one task's runs against the best of them: -log(tau + y_i - min_j y_j).

    The scores (R,) are standardised over the replicas. Many runs end ten times above the best. Next
    to them progress alone hardly tells 5% above the best from 20% above it; the logarithm does. The
    score falls as the level rises, so the ordering of the runs is that of their losses.

    Args:
        levels: (R,) final compressed losses y; those that are not finite count as 20.
        temperature: tau > 0, the difference in level below which runs count as equally good.
        min_spread: floor of the divisor.

    Raises:
        ConfigurationError: levels are not (R,), or temperature <= 0.
    """
    check_number("temperature", temperature, POSITIVE)
    if levels.dim() != 1:
        raise ConfigurationError(f"levels must be (R,); got shape {tuple(levels.shape)}.")
    levels = levels.nan_to_num(_FAILED, _FAILED, _FAILED).clamp_max(_FAILED)
    score = -(temperature + levels - levels.min()).log()
    return (score - score.mean()) / score.std(correction=0).clamp_min(min_spread)
