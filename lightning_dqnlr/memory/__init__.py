"""Memory of earlier runs: their rates, what came of them, and the factor of the next run."""

from lightning_dqnlr.memory.folder import Memory
from lightning_dqnlr.memory.runs import Model, RememberedRun
from lightning_dqnlr.memory.suggest import Suggestion, suggest

__all__ = ["Memory", "Model", "RememberedRun", "Suggestion", "suggest"]
