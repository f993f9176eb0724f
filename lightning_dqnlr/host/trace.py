"""The trace of a run as a CSV table and as a picture."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from lightning_dqnlr.errors import CallOrderError, ConfigurationError, needs_package
from lightning_dqnlr.files import write_atomically
from lightning_dqnlr.host.decisions import DECAY_BEGINS, DecisionRecord

_LR, _LOSS, _TRIP = "#1b6ca8", "#c8553d", "#7d2e8d"
_KEPT, _UNDONE = "#2f8f4e", "#9a9a9a"  # trials


def save_trace(
    trace: Sequence[DecisionRecord], path: str | Path, more: Mapping[str, str] | None = None
) -> Path:
    """Writes one line per decision as CSV, atomically; the Q-values are a JSON list in one column.

    Example:
        save_trace(callback.trace, "run.csv", identity(callback.policy))

    Args:
        trace: the decisions.
        path: the file.
        more: columns that are the same in every line, by name.

    Raises:
        CallOrderError: if there is no decision yet.
        ConfigurationError: if the file cannot be written.
    """
    _check(trace)
    text = io.StringIO()
    same = more or {}
    writer = csv.DictWriter(text, fieldnames=[*trace[0], *same], lineterminator="\n")
    writer.writeheader()
    for record in trace:
        writer.writerow({**record, **same, "q_values": json.dumps(record["q_values"])})
    return write_atomically(path, text.getvalue().encode())


def plot_trace(trace: Sequence[DecisionRecord], path: str | Path) -> Path:
    """Draws learning rate and training loss over the steps, with restores and trials marked.

    Trials of a higher rate are shaded: green if it was kept, grey if not.

    Example:
        plot_trace(callback.trace, "run.png")

    Args:
        trace: the decisions.
        path: the file; its suffix chooses the format (png, svg, pdf), png if it has none.

    Raises:
        CallOrderError: if there is no decision yet.
        ConfigurationError: if matplotlib is not installed, the suffix is unknown to it, or the
            file cannot be written.
    """
    _check(trace)
    with needs_package("plot", "matplotlib", "plot"):
        from matplotlib.figure import Figure
        from matplotlib.ticker import LogLocator, NullFormatter
    figure = Figure(figsize=(8.0, 5.2), layout="constrained")
    losses = _draw(figure, trace)
    if losses.get_yscale() == "log":  # 0.2 and 0.5 rather than powers of ten
        low, high = losses.get_ylim()
        losses.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if high < 1000 * low else (1,)))
        losses.yaxis.set_major_formatter("{x:g}")
        losses.yaxis.set_minor_formatter(NullFormatter())
    suffix = Path(path).suffix.lstrip(".") or "png"
    image = io.BytesIO()
    try:
        figure.savefig(image, format=suffix, dpi=150)
    except ValueError as error:
        raise ConfigurationError(
            f"path={str(path)!r}: {error}; end it in .png, .svg or .pdf."
        ) from error
    return write_atomically(path, image.getvalue())


def _draw(figure: Any, trace: Sequence[DecisionRecord]) -> Any:
    upper, lower = figure.subplots(2, 1, sharex=True, gridspec_kw={"height_ratios": (3, 2)})
    finite = [record["loss"] for record in trace if math.isfinite(record["loss"])]
    optimizers = sorted({record.get("optimizer", 0) for record in trace})
    for index in optimizers:
        own = [record for record in trace if record.get("optimizer", 0) == index]
        label = f"optimizer {index}" if len(optimizers) > 1 else None
        steps = [record["step"] for record in own]
        losses = [record["loss"] for record in own]
        rates = [record["lr"] for record in own]
        style = {"linewidth": 1.6, "alpha": 1.0 if index == 0 else max(0.2, 0.6 - 0.1 * index)}
        upper.plot(steps, losses, color=_LOSS, marker="o", markersize=2.5, label=label, **style)
        lower.stairs(rates, [0, *steps], color=_LR, baseline=None, label=label, **style)
    if len(optimizers) > 1:
        lower.legend(frameon=False, loc="upper right", fontsize="small")
    if finite and min(finite) > 0:
        upper.set_yscale("log")
    lower.set_yscale("log")
    upper.set_ylabel("training loss")
    lower.set_ylabel("learning rate")
    lower.set_xlabel("optimizer step")
    lower.set_xlim(0, max(record["step"] for record in trace))
    for axes in (upper, lower):
        axes.set_axisbelow(True)
        axes.grid(True, which="major", color="0.9", linewidth=0.8)
        axes.spines[["top", "right"]].set_visible(False)
    trips = [record["step"] for record in trace if record["tripped"]]
    endings = [before["step"] for before, r in pairwise(trace) if DECAY_BEGINS in r["reason"]]
    _mark((upper, lower), trips, _TRIP, "circuit breaker: weights restored")
    _mark((upper, lower), endings, _LR, DECAY_BEGINS)
    if trips or endings:
        upper.legend(frameon=False, loc="upper right", fontsize="small")
    for index in optimizers:
        _mark_trials(lower, [r for r in trace if r.get("optimizer", 0) == index])
    return upper


def _mark_trials(axes: Any, trace: Sequence[DecisionRecord]) -> None:
    """Shades the steps in which a higher rate was tried, by what became of it."""
    begun = None
    for record in trace:
        news = record.get("trial", "")
        colour = _KEPT if "kept" in news else _UNDONE
        if begun is not None and news != "going on":
            axes.axvspan(begun, record["step"], color=colour, alpha=0.2, linewidth=0)
            begun = None
        if "begun" in news:
            begun = record["step"]


def _mark(panels: Sequence[Any], steps: Sequence[int], color: str, label: str) -> None:
    for index, step in enumerate(steps):
        for panel in panels:
            named = label if index == 0 else None
            panel.axvline(step, color=color, linestyle="--", linewidth=1.0, label=named)


def _check(trace: Sequence[DecisionRecord]) -> None:
    if not trace:
        raise CallOrderError(
            "there is no trace yet: no decision has been taken. Train for at least one optimizer "
            "step with this object, or with a deep copy of it, first."
        )
