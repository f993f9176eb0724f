"""`ShownRun`: what a callback and a scheduler show of a run: picture, table and report."""

from __future__ import annotations

from pathlib import Path
from typing import Any, overload

from lightning_dqnlr.host.decisions import DecisionRecord
from lightning_dqnlr.host.report import write_report
from lightning_dqnlr.host.run_facts import RunFacts
from lightning_dqnlr.host.trace import figure_of, save_trace, write_figure


class ShownRun:
    """Shows the run that `trace` and `facts` tell of.

    Attributes:
        trace: one plain record per decision.
        facts: what else is known of the run.

    Example:
        class Control(ShownRun):
            trace = [...]
            facts = RunFacts()

        Control().report("run.html")
    """

    @property
    def trace(self) -> list[DecisionRecord]:
        """One plain record per decision."""
        raise NotImplementedError

    @property
    def facts(self) -> RunFacts:
        """What is known of the run beside its decisions: policy, horizon, time, the run's end."""
        raise NotImplementedError

    @overload
    def plot(self, path: None = None) -> Any: ...

    @overload
    def plot(self, path: str | Path) -> Path: ...

    def plot(self, path: str | Path | None = None) -> Any:
        """Draws training loss and learning rate over the steps, and the runs of a memory.

        Args:
            path: the picture; its suffix chooses the format (png, svg, pdf). None for a figure of
                matplotlib, which a notebook shows.

        Returns:
            The path, or the figure.

        Raises:
            CallOrderError: before the first decision.
            ConfigurationError: without matplotlib, or if the file cannot be written.
        """
        runs = self.facts.remembered if self.trace else []
        figure = figure_of(self.trace, runs)
        return figure if path is None else write_figure(figure, path)

    def save_trace(self, path: str | Path) -> Path:
        """Writes the trace as CSV, one line per decision; returns the path.

        Three more columns name the policy: `policy`, `policy_version` and `policy_hash`.

        Raises:
            CallOrderError: before the first decision.
            ConfigurationError: if the file cannot be written.
        """
        return save_trace(self.trace, path, self.facts.policy)

    def report(self, path: str | Path) -> Path:
        """Writes a report of the run as one HTML page that needs nothing else; returns the path.

        It has loss and learning rate over the steps, and every decision with its reason. It tells
        of what was undone, of the run's end, and where the time went.

        Args:
            path: the page.

        Raises:
            CallOrderError: before the first decision.
            ConfigurationError: without matplotlib, or if the file cannot be written.
        """
        return write_report(self.trace, self.facts, path)
