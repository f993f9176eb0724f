"""`HeldStops`: a Trainer's EarlyStopping callbacks, which do not stop it for lack of progress."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import EarlyStopping

from lightning_dqnlr.host.trainer_queries import is_a


class HeldStops:
    """Gives EarlyStopping endless patience, and tells when the user's would be at its end.

    A metric that is not finite and the two thresholds still stop training at once. Checkpoints
    hold the user's patience.

    Args:
        trainer: whose callbacks to hold, once `hold` is called.
        held: whether to; False for none of them.

    Example:
        held = HeldStops(trainer)
        held.hold()
        ...  # validate
        if held.exhausted:
            ...  # come down
        held.release()
    """

    def __init__(self, trainer: Trainer, held: bool = True) -> None:
        self._trainer = trainer
        callbacks: list[Any] = trainer.callbacks  # type: ignore[attr-defined]
        held_ones = [c for c in callbacks if held and is_a(c, EarlyStopping)]
        self._patience = {callback: callback.patience for callback in held_ones}

    def hold(self) -> None:
        """Has them wait for ever."""
        for callback in self._patience:
            callback.patience = sys.maxsize

    def release(self) -> None:
        """Gives them the user's patience back."""
        for callback, patience in self._patience.items():
            callback.patience = patience

    @property
    def exhausted(self) -> bool:
        """Whether one of them would stop training now."""
        return any(callback.wait_count >= patience for callback, patience in self._patience.items())

    @property
    def best(self) -> list[float]:
        """The best score that each has seen."""
        return [float(callback.best_score) for callback in self._patience]

    def stop(self) -> None:
        """Stops training in their name."""
        for callback in self._patience:
            callback.stopped_epoch = self._trainer.current_epoch
        self._trainer.should_stop = True

    def mend(self, checkpoint: Mapping[str, Any]) -> None:
        """Puts the user's patience into a checkpoint that is about to be written."""
        saved = checkpoint.get("callbacks", {})
        for callback, patience in self._patience.items():
            if callback.state_key in saved:
                saved[callback.state_key]["patience"] = patience
