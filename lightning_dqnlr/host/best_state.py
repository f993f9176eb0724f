"""`BestState`: the training state at the best validation so far."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from lightning_dqnlr.control.history import History
from lightning_dqnlr.host.snapshot import Snapshot


class BestState:
    """One copy of weights, optimizer state and control, in the host's memory.

    A run comes down from here if validation has become worse since. The copy is taken only when
    validation improves, and saved states do not hold it.

    Args:
        optimizer: whose parameters and state to keep.
        module: whose buffers to keep; None for none.
        averages: averages of the module.

    Example:
        >>> weight = nn.Parameter(torch.ones(1))
        >>> best = BestState(torch.optim.SGD([weight], lr=0.1))
        >>> best.keep(History.zeros((), "cpu"), step=3)
        >>> weight.data.mul_(7)
        tensor([7.])
        >>> best.restore() is None, weight.item()
        (False, 1.0)
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        module: nn.Module | None = None,
        averages: Sequence[nn.Module] = (),
    ) -> None:
        self._snapshot = Snapshot(optimizer, module, averages, "cpu", copies=1)
        self._history: History | None = None

    def keep(self, history: History, step: int) -> None:
        """Copies the state as it is after `step` steps, in place of an earlier copy."""
        self._snapshot.take(step)
        self._history = history

    def restore(self) -> History | None:
        """Puts the state back; returns the control's history of then, None if there is no copy."""
        if self._history is not None:
            self._snapshot.restore()
        return self._history

    def close(self) -> None:
        """Takes the hooks off the module."""
        self._snapshot.close()
