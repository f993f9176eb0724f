"""A Trainer's part in a memory: what it trains, what it is judged by, and who writes."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

from lightning.pytorch import Trainer
from torch import Tensor

from lightning_dqnlr.errors import ConfigurationError
from lightning_dqnlr.host.driver import OptimizerDriver
from lightning_dqnlr.host.remembering import TRAINING_LOSS, Remembering, trained_model
from lightning_dqnlr.host.step_loss import Metric
from lightning_dqnlr.memory.folder import Memory

_LOGGER = logging.getLogger("lightning_dqnlr")


class RunMemory:
    """Remembers a Trainer's run. All processes hold one rate, and rank 0 writes.

    Args:
        trainer: of the run, about to train.
        drivers: of its optimizers; there must be one.
        memory: of the earlier runs.
        judge: the validation metric that counts; None for the training loss.
        resumed: whether the run goes on from a checkpoint, at the rate that it had.

    Raises:
        ConfigurationError: with several optimizers.

    Example:
        run_memory = RunMemory(trainer, control.drivers, Memory("lr-memory"), None, resumed=False)
    """

    def __init__(
        self,
        trainer: Trainer,
        drivers: Sequence[OptimizerDriver],
        memory: Memory,
        judge: Metric | None,
        resumed: bool,
    ) -> None:
        if len(drivers) > 1:
            raise ConfigurationError(
                f"memory: there are {len(drivers)} optimizers, and it remembers the rate of one; "
                "leave memory out."
            )
        self._trainer = trainer
        self._judge = judge or Metric(TRAINING_LOSS, "min")
        size = examples_per_step(trainer)
        model = trained_model(drivers[0], trainer.lightning_module, memory.name, size)
        self._part = Remembering(memory, model, drivers[0], self._judge.name, self._judge.mode)
        if resumed:
            self._part.resume()
        else:
            self._part.apply(trainer.strategy.broadcast(self._part.suggestion.held))

    @property
    def told(self) -> list[dict[str, Any]]:
        """The runs of this model, for those who show the run."""
        return self._part.told

    def validated(self, metrics: Mapping[str, Tensor]) -> None:
        """Takes in what a validation has logged."""
        if self._judge.name in metrics and not self._trainer.sanity_checking:
            self._part.add(metrics[self._judge.name])

    def finish(self, interrupted: bool = False) -> None:
        """Writes the run down; what hinders it must not cost anybody the run itself."""
        try:
            self._part.finish(interrupted)
        except ConfigurationError as error:
            _LOGGER.warning("the run is not remembered: %s", error)


def examples_per_step(trainer: Trainer) -> int | None:
    """Examples of one optimizer step over all processes; None if the loader does not say."""
    size = getattr(trainer.train_dataloader, "batch_size", None)
    if not isinstance(size, int):
        return None
    return size * trainer.accumulate_grad_batches * trainer.world_size
