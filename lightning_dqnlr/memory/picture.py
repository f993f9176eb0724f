"""The runs of a model as a picture: metric over learning rate, what is believed, the next run."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from lightning_dqnlr.errors import needs_package
from lightning_dqnlr.memory.runs import RememberedRun
from lightning_dqnlr.memory.suggest import Suggestion, metric_of

_RUN, _FIT, _NEXT = "#1b6ca8", "#8a8a8a", "#c8553d"


def draw_runs(axes: Any, suggestion: Suggestion) -> None:
    """Draws the runs that a suggestion goes by, the fit, and the next rate, on axes.

    Args:
        axes: of matplotlib.
        suggestion: of a model with at least one run.

    Example:
        figure = Figure()
        draw_runs(figure.subplots(), suggest(runs, model, "val_loss"))
    """
    runs = [run for run in suggestion.runs if run.value is not None]
    if not runs or suggestion.reference is None:
        axes.text(0.5, 0.5, "no run yet", ha="center", va="center", transform=axes.transAxes)
        return
    from matplotlib.ticker import LogLocator, NullFormatter

    _draw_fit(axes, suggestion, runs)
    for number, run in enumerate(suggestion.runs, start=1):
        if run.value is None:  # diverged: it has its number, as in the table, and no place
            continue
        rate = run.upper_quartile if run.held is None else run.held
        axes.plot(rate, run.value, "o", color=_RUN, markersize=5)
        axes.annotate(str(number), (rate, run.value), xytext=(5, 4), textcoords="offset points")
    if suggestion.held is not None:
        label = f"next: {suggestion.held:.2g} ({suggestion.why})"
        axes.axvline(suggestion.held, color=_NEXT, linestyle="--", linewidth=1.2, label=label)
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_xlabel("learning rate held (first run: typical rate of the policy)")
    axes.set_ylabel(runs[0].metric)
    axes.grid(True, which="major", color="0.9", linewidth=0.8)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize="small")


def figure_of_models(suggestions: Sequence[tuple[str, Suggestion]]) -> Any:
    """One panel for each model, with its name, as a figure of matplotlib.

    Args:
        suggestions: names and suggestions of the models; at least one.

    Raises:
        MissingPackageError: if matplotlib is not installed.

    Example:
        figure_of_models([("tagger", suggest(runs, model, "val_loss"))])
    """
    with needs_package("the picture", "matplotlib", "plot"):
        from matplotlib.figure import Figure
    rows = len(suggestions)
    figure = Figure(figsize=(7.0, 3.4 * rows), layout="constrained")
    panels = figure.subplots(rows, squeeze=False)[:, 0]
    for axes, (name, suggestion) in zip(panels, suggestions, strict=True):
        draw_runs(axes, suggestion)
        axes.set_title(name, loc="left")
    return figure


def _draw_fit(axes: Any, suggestion: Suggestion, runs: Sequence[RememberedRun]) -> None:
    """The fit between a quarter of the lowest and four times the highest rate that was run."""
    assert suggestion.reference is not None
    found = suggestion.fit
    tried = [math.log2((run.held or run.upper_quartile) / suggestion.reference) for run in runs]
    near = (found.x >= min(tried) - 2) & (found.x <= max(tried) + 2)
    rates = [suggestion.reference * 2.0**x for x in found.x[near].tolist()]
    means = found.mean[near]
    spread = found.deviation[near]
    metric = metric_of(runs)
    axes.plot(rates, [metric(y) for y in means.tolist()], color=_FIT, label="fit")
    low = [metric(y) for y in (means - spread).tolist()]
    high = [metric(y) for y in (means + spread).tolist()]
    axes.fill_between(rates, low, high, color=_FIT, alpha=0.2, linewidth=0)
