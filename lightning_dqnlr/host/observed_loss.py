"""`ObservedLoss`: the training loss of one optimizer step, in a loop that hands over none.

A loop that knows torch's schedulers calls `step()` without a loss. It must come another way then:
from whoever computes it, or from the output of a module.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from lightning_dqnlr.errors import ConfigurationError


class ObservedLoss:
    """Averages the losses of one optimizer step's batches.

    Args:
        module: whose output is the loss or holds it; None for what is given to `add` only.

    Example:
        >>> losses = ObservedLoss()
        >>> losses.add(torch.tensor(1.0))
        >>> losses.add(3.0)
        >>> losses.take()
        tensor(2.)
    """

    def __init__(self, module: nn.Module | None = None) -> None:
        self._sum: Tensor | None = None
        self._batches = 0
        self._hook = None if module is None else module.register_forward_hook(self._look)

    def add(self, loss: Tensor | float) -> None:
        """Takes the loss of a batch.

        Raises:
            ConfigurationError: if it is not a scalar.
        """
        value = as_scalar(loss)
        self._sum = value if self._sum is None else self._sum + value
        self._batches += 1

    def take(self) -> Tensor | None:
        """The mean, shape (), of the losses since the last call; None if there are none."""
        mean = None if self._sum is None else self._sum / self._batches
        self.forget()
        return mean

    def forget(self) -> None:
        """Drops the losses of a step that is not to be counted."""
        self._sum, self._batches = None, 0

    def close(self) -> None:
        """Looks at the module no more."""
        if self._hook is not None:
            self._hook.remove()

    def _look(self, module: nn.Module, inputs: Any, output: Any) -> None:
        """Leaves validation out: its losses have no gradient."""
        loss = _loss_in(output)
        if torch.is_grad_enabled() and loss is not None and loss.requires_grad:
            self.add(loss)


def as_scalar(loss: Tensor | float) -> Tensor:
    """A loss as a detached tensor of shape ().

    Raises:
        ConfigurationError: if it is not a scalar.

    Example:
        >>> as_scalar(torch.ones(1))
        tensor(1.)
    """
    scalar = torch.as_tensor(loss)
    if scalar.numel() != 1:
        raise ConfigurationError(
            f"loss must be a scalar, got shape {tuple(scalar.shape)}; pass its mean."
        )
    return scalar.detach().reshape(())


def _loss_in(output: Any) -> Tensor | None:
    """The scalar that a module returns, alone, as `loss`, or first of several."""
    if isinstance(output, Mapping):
        output = output.get("loss")
    elif isinstance(output, tuple | list):
        output = output[0] if output else None
    else:
        output = getattr(output, "loss", output)
    return output if isinstance(output, Tensor) and output.numel() == 1 else None
