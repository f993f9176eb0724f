"""Being told of an optimizer's steps."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.utils.hooks import RemovableHandle

from lightning_dqnlr.errors import UnsupportedTrainingError


def watch_steps(
    optimizer: torch.optim.Optimizer,
    after: Callable[..., None],
    before: Callable[..., None] | None = None,
) -> list[RemovableHandle]:
    """Calls `before` and `after` with the arguments of torch's hooks at each of its steps.

    Raises:
        UnsupportedTrainingError: if the optimizer cannot tell.
    """
    try:
        hooks: list[Any] = [] if before is None else [optimizer.register_step_pre_hook(before)]
        return [*hooks, optimizer.register_step_post_hook(after)]
    except AttributeError as error:  # its __init__ did not call torch's
        raise silent_optimizer(optimizer) from error


def silent_optimizer(optimizer: torch.optim.Optimizer) -> UnsupportedTrainingError:
    """What to raise when an optimizer steps without telling."""
    return UnsupportedTrainingError(
        f"{type(optimizer).__name__} does not tell of its steps, so its learning rate cannot be "
        "followed: it wraps another optimizer and its __init__ does not call torch's. Give the "
        "optimizer inside it instead."
    )
