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
_ADDED_LATER = ("cuts_in_decay", "decay_share")


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

    def __post_init__(self) -> None:
        check_settings(self, "")
        check_kind("cuts_in_decay", self.cuts_in_decay, bool)  # 1 would pass for True otherwise
        # Otherwise the cap would lower the rate from the first update on.
        check_number("max_update_ratio", self.max_update_ratio, f"[{self.start_ratio}, 1e9]")

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
        """Plain JSON data; `from_dict` is the inverse."""
        return asdict(self)

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
        specs = {"features": FeatureSpec(**features), "actions": ActionSpec(**actions)}
        return cls(**{**data, **specs})


def check_limits(horizon: int | None, min_lr: float | None, max_lr: float | None) -> None:
    """Raises ConfigurationError unless horizon >= 1 and 0 < min_lr <= max_lr, where given."""
    check_integer("horizon", horizon, 1, optional=True)
    check_number("min_lr", min_lr, POSITIVE, optional=True)
    check_number("max_lr", max_lr, POSITIVE, optional=True)
    if min_lr is not None and max_lr is not None and min_lr > max_lr:
        raise ConfigurationError(f"min_lr={min_lr} > max_lr={max_lr}; swap them or drop one.")
