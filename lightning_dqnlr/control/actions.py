"""The discrete actions: multipliers of the learning rate."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_dqnlr.errors import ConfigurationError

DEFAULT_MULTIPLIERS = (0.25, 0.5, 0.8, 1.0, 1.25, 2.0, 4.0)
CLASSIC_MULTIPLIERS = (0.8, 1.0, 1.25)


@dataclass(frozen=True)
class ActionSpec:
    """The table of LR multipliers, ascending; exactly one of them is 1 ("keep").

    Raises:
        ConfigurationError: if the table is not ascending, not positive, or has no 1.
    """

    multipliers: tuple[float, ...] = DEFAULT_MULTIPLIERS

    def __post_init__(self) -> None:
        table = tuple(float(m) for m in self.multipliers)
        object.__setattr__(self, "multipliers", table)
        if list(table) != sorted(set(table)) or not table or table[0] <= 0 or 1.0 not in table:
            raise ConfigurationError(
                f"multipliers={table!r} must be positive, ascending, without repetition, and "
                "contain 1.0 (keep the learning rate)."
            )

    def __len__(self) -> int:
        return len(self.multipliers)

    @property
    def keep(self) -> int:
        """The action that keeps the learning rate."""
        return self.multipliers.index(1.0)

    def log_multiplier(self, action: Tensor) -> Tensor:
        """Natural log of the multiplier of each action, any shape."""
        logs = [math.log(m) for m in self.multipliers]
        return torch.tensor(logs, device=action.device)[action]
