"""`History`: what the controller remembers of a run, of constant size however long it is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from lightning_dqnlr.errors import ConfigurationError

UNSEEN = -100.0
# Saved states of version 0.1.0 lack these and mean a run that has begun.
_ADDED = {"offset": 0.0, "start_limit": 0.0, "moved": 1.0, "stalled": 0.0, "streak": 0.0}
NO_CEILING = 100.0  # a natural log of a learning rate, out of reach


@dataclass
class History:
    """What is remembered from one decision to the next; every tensor has the shape `lead`."""

    offset: Tensor  # what losses are measured from: 0 unless zero is no natural origin of theirs
    initial_loss: Tensor  # the largest of the first interval in which not all are zero
    loss: Tensor  # mean loss of the last interval
    level: Tensor  # compressed loss of the last interval (after a restore: of the restored state)
    fast: Tensor  # exponential averages of it
    slow: Tensor
    best: Tensor
    noise: Tensor  # standard deviation of the compressed loss from step to step
    log_gradient: Tensor
    first_log_gradient: Tensor  # UNSEEN before the first gradient that is not zero
    path: Tensor  # sum of squared update norms
    log_scale: Tensor  # natural log of the learning rate before the built-in decay
    start_log_scale: Tensor
    start_limit: Tensor  # largest log_scale that a start without any effect is raised to
    peak_log_scale: Tensor  # largest that survived an interval
    moved: Tensor  # 1 once an update has changed the weights
    stalled: Tensor  # 1 if nothing moved or pulled in the last interval, 2 if nothing ever moved
    last_action: Tensor  # natural log of the last multiplier
    previous_action: Tensor
    since_trip: Tensor  # decisions since the circuit breaker tripped
    trips: Tensor
    restored: Tensor  # 1 right after a restore
    streak: Tensor  # trips on what is not finite, since the last healthy interval
    undone: Tensor  # compressed loss of the interval that was undone last
    reference: Tensor  # compressed loss of the last healthy state
    origin: Tensor  # largest compressed loss of the first few intervals, and of those after a trip
    low: Tensor  # smallest of an interval since the first few
    high: Tensor  # intervals in a row whose loss was above the breaker's limit, noise left aside
    ceiling: Tensor  # largest log_scale that actions may set, since a trip; rises with time
    capped: Tensor  # 1 where the update cap cut the last action
    drop: Tensor  # exponential average of how far the compressed loss fell in an interval
    forecast: Tensor  # the same of how far the gradients said that it would

    @classmethod
    def zeros(cls, lead: tuple[int, ...], device: torch.device | str) -> History:
        """The history of a run that has not begun."""
        values = {f.name: torch.zeros(lead, device=device) for f in fields(cls)}
        values["since_trip"] += 100.0
        values["ceiling"] += NO_CEILING
        values["log_gradient"] += UNSEEN
        values["first_log_gradient"] += UNSEEN
        return cls(**values)

    @classmethod
    def from_state(cls, state: Mapping[str, Tensor], device: torch.device | str) -> History:
        """The inverse of `state_dict`.

        Raises:
            ConfigurationError: if the state is of a version that remembered less.
        """
        level = state.get("level", torch.zeros(()))
        added = {name: torch.full_like(level, value) for name, value in _ADDED.items()}
        state = added | dict(state)
        names = [f.name for f in fields(cls)]
        missing = [name for name in names if name not in state]
        if missing:
            raise ConfigurationError(
                f"state: its history lacks {missing}; it was saved by another version of "
                "lightning-dqnlr. Go on with that version, or without the saved control."
            )
        return cls(**{name: state[name].to(device) for name in names})

    def state_dict(self) -> dict[str, Tensor]:
        return {f.name: getattr(self, f.name).clone() for f in fields(self)}
