"""A Trainer's part in a memory: what it trains, what it is judged by, and who writes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import EarlyStopping
from torch import Tensor

from lightning_dqnlr.errors import ConfigurationError
from lightning_dqnlr.host.driver import OptimizerDriver
from lightning_dqnlr.host.remembering import TRAINING_LOSS, Remembering, trained_model
from lightning_dqnlr.host.step_loss import Metric
from lightning_dqnlr.host.trainer_queries import is_a
from lightning_dqnlr.memory.folder import Memory


class RunMemory:
    """Remembers a Trainer's run. All processes hold one rate, and rank 0 writes.

    Args:
        trainer: of the run, about to train.
        drivers: of its optimizers; there must be one.
        memory: of the earlier runs.
        judge: the logged metric that counts; None for what the control follows.
        followed: the metric that it follows; None for the training loss.

    Raises:
        ConfigurationError: with several optimizers, or if the memory cannot be written.

    Example:
        run_memory = RunMemory(trainer, control.drivers, Memory("lr-memory"), None, None)
        run_memory.begin()
    """

    def __init__(
        self,
        trainer: Trainer,
        drivers: Sequence[OptimizerDriver],
        memory: Memory,
        judge: Metric | None,
        followed: Metric | None,
    ) -> None:
        if len(drivers) > 1:
            raise ConfigurationError(
                f"memory: there are {len(drivers)} optimizers, and it remembers the rate of one; "
                "leave memory out."
            )
        self._trainer = trainer
        self._judge = judge
        if followed is None:
            own = Metric(TRAINING_LOSS, "min")
        else:  # a validation may log one of the same name
            own = Metric(f"training {followed.name}", followed.mode)
        name, mode = judge or own
        size = examples_per_step(trainer)
        model = trained_model(drivers[0], trainer.lightning_module, memory.name, size)
        validates = judge is not None
        self._part = Remembering(memory, model, drivers[0], name, mode, validates=validates)

    def begin(self) -> None:
        """Has the run hold what the earlier ones teach."""
        self._part.apply(self._trainer.strategy.broadcast(self._part.suggestion.held))

    def resume(self, saved: Mapping[str, Any]) -> None:
        """Leaves the rate to the checkpoint that the run goes on from.

        Args:
            saved: what `state_dict` returned then; empty if the run had no memory.
        """
        self._part.resume(saved)

    def state_dict(self) -> dict[str, Any]:
        """Builtins."""
        return self._part.state_dict()

    @property
    def told(self) -> list[dict[str, Any]]:
        """The runs of this model, for those who show the run."""
        return self._part.told

    def look(self, metrics: Mapping[str, Tensor]) -> None:
        """Takes in what has been logged, after a validation and after an epoch."""
        judge = self._judge
        if judge is not None and judge.name in metrics and not self._trainer.sanity_checking:
            self._part.add(metrics[judge.name])

    def finish(self, interrupted: bool = False) -> None:
        """Writes the run down."""
        self._part.finish(interrupted, stopped=_stopped_early(self._trainer))


def examples_per_step(trainer: Trainer) -> int | None:
    """Examples of one optimizer step over all processes; None if the loader does not say."""
    size = getattr(trainer.train_dataloader, "batch_size", None)
    if not isinstance(size, int):
        return None
    return size * trainer.accumulate_grad_batches * trainer.world_size


def _stopped_early(trainer: Trainer) -> bool:
    """Whether it was EarlyStopping that has stopped training."""
    callbacks: list[Any] = trainer.callbacks  # type: ignore[attr-defined]
    watching = [c for c in callbacks if is_a(c, EarlyStopping)]
    return trainer.should_stop and any(
        c.stopped_epoch or c.wait_count >= c.patience for c in watching
    )
