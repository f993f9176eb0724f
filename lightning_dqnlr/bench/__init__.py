"""Rival methods, tasks to compare them on, and the report."""

from lightning_dqnlr.bench.runs.suite import Suite

__all__ = [
    "Suite",
]
