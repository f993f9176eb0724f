"""Tasks that failed: code and data of others may now and then. They are noted and skipped."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable
from dataclasses import dataclass, field

from lightning_dqnlr.errors import ConfigurationError
from lightning_dqnlr.scoring.evaluate import Rivals
from lightning_dqnlr.tasks.task import Task, TaskFamily

_log = logging.getLogger(__name__)

# If this many tasks fail in a row, the fault is not theirs.
MOST_FAILURES_IN_A_ROW = 10
# A message may hold a whole tensor; of a list that goes into every policy its beginning is enough.
_LONGEST = 300


@dataclass
class Failures:
    """Failures in words (`texts`), and how many training tasks in a row failed (`in_a_row`)."""

    texts: list[str] = field(default_factory=list)
    in_a_row: int = 0

    def note(self, task: str, reason: str) -> str:
        """Takes note of a failure, once; returns it in words."""
        text = " ".join(f"task {task}: {reason}".split())[:_LONGEST]
        if text not in self.texts:
            self.texts.append(text)
        return text

    def note_training(self, task: str, reason: str) -> str:
        """As `note`, for a task that was to be learned from.

        Raises:
            ConfigurationError: if that was one too many in a row.
        """
        text = self.note(task, reason)
        self.in_a_row += 1
        if self.in_a_row >= MOST_FAILURES_IN_A_ROW:
            raise ConfigurationError(
                f"tasks: {self.in_a_row} failed in a row, the last with {text}. "
                "Mend or drop that family of tasks."
            )
        return text


def usable_tasks(
    family: TaskFamily, numbers: Iterable[int], rivals: Rivals, failures: Failures
) -> list[Task]:
    """The validation tasks of these numbers; those that fail are noted and left out.

    A task is tried by tuning its rival, which every evaluation needs anyway. So the same tasks are
    left at every evaluation of a run.

    Raises:
        ConfigurationError: if not one is left. One that a task raises itself passes through: no
            other task would mend it (a package that is not installed, say).
    """
    tasks = []
    for number in numbers:
        name = f"seed {number} (validation)"
        try:
            task = family.sample(number, "validation")
            name = task.name
            rival = rivals[task]
        except ConfigurationError:
            raise
        except Exception as error:
            _log.warning("Skipped %s", failures.note(name, f"{type(error).__name__}: {error}"))
            continue
        if not math.isfinite(rival.initial_loss) or not math.isfinite(rival.train_loss):
            _log.warning("Skipped %s", failures.note(name, "its loss is not finite"))
            continue
        tasks.append(task)
    if not tasks:
        raise ConfigurationError(
            f"tasks: all validation tasks failed, the last with {failures.texts[-1]}. Mend or drop "
            "that family of tasks."
        )
    return tasks
