"""`HeldMonitors`: LearningRateMonitor looks at the first rate when it is set, not before."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import LearningRateMonitor

from lightning_dqnlr.host.driver import OptimizerDriver
from lightning_dqnlr.host.trainer_queries import is_a

_HOOKS = ("on_train_epoch_start", "on_train_batch_start")


class HeldMonitors:
    """Puts off what a Trainer's LearningRateMonitor does at the start of the very first step.

    It looks at the rate before the batch. The safe start comes out of the first gradient, so the
    monitor would show a rate that no step has used. Its hooks are called once the start is set.

    Args:
        trainer: of the run, about to train.
        drivers: of its optimizers.

    Example:
        held = HeldMonitors(trainer, control.drivers)
        ...  # the first gradient, and the rate that follows from it
        held.release()
    """

    def __init__(self, trainer: Trainer, drivers: Sequence[OptimizerDriver]) -> None:
        self._drivers = drivers
        callbacks: list[Any] = trainer.callbacks  # type: ignore[attr-defined]
        monitors = [c for c in callbacks if is_a(c, LearningRateMonitor)]
        self._held = [] if all(driver.begun for driver in drivers) else monitors
        self._calls: dict[tuple[int, str], Any] = {}  # the last one of each hook
        for index, monitor in enumerate(self._held):
            for name in _HOOKS:
                setattr(monitor, name, partial(self._put_off, index, name))

    def release_if_set(self, *, by_all: bool) -> None:
        """Lets them look if the optimizers have their first rates.

        Args:
            by_all: whether all optimizers must have theirs; one of them is enough otherwise.
        """
        if self._held:
            begun = [driver.begun for driver in self._drivers]
            if all(begun) if by_all else any(begun):
                self.release(look=True)

    def release(self, *, look: bool = False) -> None:
        """Gives them their hooks back; with `look`, what was put off is done now."""
        held, self._held = self._held, []
        for index, monitor in enumerate(held):
            for name in _HOOKS:
                delattr(monitor, name)
                arguments = self._calls.pop((index, name), None)
                if look and arguments is not None:
                    getattr(monitor, name)(*arguments)

    def _put_off(self, index: int, name: str, *arguments: Any) -> None:
        self._calls[index, name] = arguments
