"""`ControllerSpec`: what a controller must share with the policy it was trained with."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Annotated, Any, Literal

import torch
from torch import Tensor

from lightning_dqnlr.checks import (
    POSITIVE,
    NotNegative,
    Share,
    check_fields,
    check_integer,
    check_kind,
    check_number,
    check_settings,
)
from lightning_dqnlr.control.features import FeatureSpec
from lightning_dqnlr.errors import ConfigurationError

Decay = Literal["wsd", "cosine", "none"]
# A run's first learning rate: the controller's safe one, or the optimizer's own.
StartRate = Literal["auto", "optimizer"]

DEFAULT_MULTIPLIERS = (0.25, 0.5, 0.8, 1.0, 1.25, 2.0, 4.0)
CLASSIC_MULTIPLIERS = (0.8, 1.0, 1.25)
_MOST_ACTIONS = 256
_Fraction = Annotated[float, "(0, 1]"]
# Policies of earlier versions lack these and mean the defaults.
_ADDED_LATER = ("cuts_in_decay", "decay_share", "trials")


@dataclass(frozen=True)
class ActionSpec:
    """The table of LR multipliers, ascending; exactly one of them is 1 ("keep").

    Raises:
        ConfigurationError: if the table is not ascending, has no 1 or more than 256 entries, or
            one outside 0.001..1000.

    Example:
        >>> ActionSpec((0.5, 1.0, 2.0)).log_multiplier(torch.tensor([1, 2]))
        tensor([0.0000, 0.6931])
    """

    multipliers: tuple[Annotated[float, "[0.001, 1000]"], ...] = DEFAULT_MULTIPLIERS

    def __post_init__(self) -> None:
        check_integer("number of multipliers", len(self.multipliers), 1, _MOST_ACTIONS)
        check_settings(self, "")
        table = tuple(map(float, self.multipliers))
        object.__setattr__(self, "multipliers", table)
        if list(table) != sorted(set(table)) or 1.0 not in table:
            raise ConfigurationError(
                f"multipliers={table!r} must be ascending, without repetition, and contain 1.0 "
                "(keep the learning rate)."
            )

    def __len__(self) -> int:
        return len(self.multipliers)

    @property
    def keep(self) -> int:
        """The action that keeps the learning rate."""
        return self.multipliers.index(1.0)

    def nearest(self, change: Tensor) -> Tensor:
        """The actions whose log multipliers are nearest to changes of any shape."""
        table = self.log_multiplier(torch.arange(len(self), device=change.device))
        return (change.unsqueeze(-1) - table).abs().argmin(-1)

    def log_multiplier(self, action: Tensor) -> Tensor:
        """Natural log of the multiplier of each action, any shape."""
        logs = [math.log(m) for m in self.multipliers]
        return torch.tensor(logs, device=action.device)[action]


@dataclass(frozen=True)
class TrialSpec:
    """When a run tries a higher rate, and what it takes to keep it (`control.trials`).

    Args:
        factor: what the rate is multiplied by; an action, as its inverse is.
        first, last: shares of the run between which trials may begin.
        window: intervals over which the fall of the loss is measured, before and during a trial.
        margin: standard errors by which the loss must fall faster.
        abort: standard errors by which it may lie above its level at the beginning.
        pause: intervals after a failure until the next trial; they double with each in a row.
        least_steps: of an interval. In shorter ones a rate has not arrived in the optimizer's
            momentum before the comparison begins.

    Raises:
        ConfigurationError: naming the field that is out of range.

    Example:
        >>> ControllerSpec(trials=TrialSpec(pause=8)).trials.factor
        2.0
    """

    factor: Annotated[float, "(1, 16]"] = 2.0
    first: Share = 0.06
    last: Share = 0.6
    window: Annotated[int, 2, 100] = 3
    margin: NotNegative = 1.0
    abort: NotNegative = 2.0
    pause: Annotated[int, 1, 10_000] = 5
    least_steps: Annotated[int, 1, 10_000] = 10

    def __post_init__(self) -> None:
        check_settings(self, "trials.")

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> TrialSpec:
        """The settings in plain data that anybody may have written; `ConfigurationError`."""
        check_fields("controller.trials", data, (), [each.name for each in fields(cls)])
        return cls(**data)


@dataclass(frozen=True)
class ControllerSpec:
    """All that the controller must share with the policy it was trained with.

    Args:
        features: what the observation holds.
        actions: the multipliers.
        decisions: how many intervals a run of known horizon is cut into once past its start.
        growth: an early interval is this share of the steps so far (known horizon).
        unknown_growth: every interval is this share of the steps so far (unknown horizon).
        decay: built-in decay under the policy's scale when the horizon is known. "wsd" holds the
            scale and then lets it fall linearly to zero (Hu et al. 2024, arXiv:2404.06395). It is
            short for warm-up, stable, decay; the warm-up is the policy's. "cosine" is half a
            cosine.
        decay_share: share of the run over which "wsd" falls.
        cuts_in_decay: whether actions may lower the scale while "wsd" falls. A cut lowers the loss
            at once and harms the end of the run, so a policy would cut too early and too deep.
        probe_size: sampled coordinates.
        start_ratio: norm of the first update over the weights' norm.
        max_update_ratio: cap on that ratio at any time.
        scale_floor: lower bound of the scale, relative to the largest that proved healthy.
        trials: of higher rates within a run of known horizon; None for none.

    Raises:
        ConfigurationError: naming the field that is out of range.

    Example:
        >>> ControllerSpec(decisions=10).interval(step=100, horizon=1000)
        50
    """

    features: FeatureSpec = field(default_factory=FeatureSpec)
    actions: ActionSpec = field(default_factory=ActionSpec)
    decisions: Annotated[int, 1, 100_000] = 64
    growth: _Fraction = 0.5
    unknown_growth: _Fraction = 0.125
    decay: Decay = "wsd"
    decay_share: _Fraction = 0.3
    cuts_in_decay: bool = False
    probe_size: Annotated[int, 1, 2**20] = 1024
    # Inside these every rate is finite and above zero. The classic recipe, with next to no cap and
    # next to no floor, stands at two of the ends.
    start_ratio: Annotated[float, "[1e-9, 1]"] = 1e-4
    max_update_ratio: Annotated[float, "[1e-6, 1e9]"] = 0.2
    scale_floor: Annotated[float, "[1e-12, 1]"] = 1 / 256
    trials: TrialSpec | None = None

    def __post_init__(self) -> None:
        check_settings(self, "")
        check_kind("cuts_in_decay", self.cuts_in_decay, bool)  # 1 would pass for True otherwise
        # Otherwise the cap would lower the rate from the first update on.
        check_number("max_update_ratio", self.max_update_ratio, f"[{self.start_ratio}, 1e9]")
        if self.trials is not None:
            self._check_trials(self.trials)

    def _check_trials(self, trials: TrialSpec) -> None:
        """Else nothing could learn from what a trial did."""
        for multiplier in (trials.factor, 1 / trials.factor):
            if multiplier not in self.actions.multipliers:
                raise ConfigurationError(
                    f"trials.factor={trials.factor}: {multiplier:g} is not among the multipliers; "
                    "choose a factor that is there with its inverse, or add them."
                )

    def interval(self, step: int, horizon: int | None) -> int:
        """Steps from a decision at `step` to the next one: short first, then horizon/decisions."""
        if horizon is None or step >= horizon:
            return max(1, math.ceil(step * self.unknown_growth))
        regular = max(1, round(horizon / self.decisions))
        early = max(1, math.ceil(step * self.growth))
        interval = min(regular, early)
        # A remainder shorter than half an interval joins the last one.
        left = horizon - step
        return left if left < 1.5 * interval else interval

    def decay_at(self, step: int, interval: int, horizon: int | None) -> float:
        """The built-in decay, in the middle of an interval."""
        if self.decay == "none" or horizon is None:
            return 1.0
        progress = min((step + interval / 2) / horizon, 1 - 1 / (4 * self.decisions))
        if self.decay == "wsd":
            return min(1.0, (1 - progress) / self.decay_share)
        return 0.5 * (1 + math.cos(math.pi * progress))

    def may_cut(self, step: int, interval: int, horizon: int | None) -> bool:
        """Whether an action may lower the scale for the coming interval."""
        falling = self.decay == "wsd" and self.decay_at(step, interval, horizon) < 1.0
        return self.cuts_in_decay or not falling

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON data; `from_dict` is the inverse. What is off is left out."""
        return {name: value for name, value in asdict(self).items() if value is not None}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> ControllerSpec:
        """The inverse of `to_dict`, of data that anybody may have written.

        Raises:
            ConfigurationError: naming the field that is absent, unknown, of another type or out of
                range.
            PolicyFileError: the features are unknown, or of another version.
        """
        names = {each.name for each in fields(cls)}
        check_fields("controller", data, names.difference(_ADDED_LATER), _ADDED_LATER)
        features, actions = data["features"], data["actions"]
        check_fields("controller.features", features, ("names", "version"))
        check_kind("controller.features.names", features["names"], list, each=str)
        for name in features["names"]:
            check_integer("length of a feature's name", len(name), 1, 100)
        check_integer("controller.features.version", features["version"], 1)
        check_fields("controller.actions", actions, ("multipliers",))
        check_kind("controller.actions.multipliers", actions["multipliers"], list)
        trials = data.get("trials")
        return cls(
            **{
                **data,
                "features": FeatureSpec(**features),
                "actions": ActionSpec(**actions),
                "trials": None if trials is None else TrialSpec.from_dict(trials),
            }
        )


def check_limits(horizon: int | None, min_lr: float | None, max_lr: float | None) -> None:
    """Raises ConfigurationError unless horizon >= 1 and 0 < min_lr <= max_lr, where given."""
    check_integer("horizon", horizon, 1, optional=True)
    check_number("min_lr", min_lr, POSITIVE, optional=True)
    check_number("max_lr", max_lr, POSITIVE, optional=True)
    if min_lr is not None and max_lr is not None and min_lr > max_lr:
        raise ConfigurationError(f"min_lr={min_lr} > max_lr={max_lr}; swap them or drop one.")
