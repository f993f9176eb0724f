"""The trace of a run as a CSV table and as a picture."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Mapping, Sequence
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

from lightning_dqnlr.errors import CallOrderError, ConfigurationError, needs_package
from lightning_dqnlr.files import write_atomically
from lightning_dqnlr.host.decisions import DECAY_BEGINS, DecisionRecord
from lightning_dqnlr.memory.picture import draw_runs
from lightning_dqnlr.memory.suggest import suggestion_of

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
    check_trace(trace)
    text = io.StringIO()
    same = more or {}
    # Records that another version saved have fewer columns.
    columns = [*dict.fromkeys(chain.from_iterable(trace)), *same]
    writer = csv.DictWriter(text, fieldnames=columns, lineterminator="\n")
    writer.writeheader()
    for record in trace:
        writer.writerow({**record, **same, "q_values": json.dumps(record["q_values"])})
    return write_atomically(path, text.getvalue().encode())


def figure_of(trace: Sequence[DecisionRecord], remembered: Sequence[Mapping[str, Any]] = ()) -> Any:
    """Learning rate and training loss over the steps, as a figure that notebooks show.

    Trials of a higher rate are shaded: green if it was kept, grey if not. Lines mark restores, and
    where the decay began early. Below stand the runs of the model that a memory holds.

    Example:
        figure_of(callback.trace)

    Args:
        trace: the decisions.
        remembered: runs, as `RunFacts` has them.

    Raises:
        CallOrderError: if there is no decision yet.
        ConfigurationError: if matplotlib is not installed.
    """
    check_trace(trace)
    with needs_package("plot", "matplotlib", "plot"):
        from matplotlib import rc_context
        from matplotlib.figure import Figure
    suggestion = suggestion_of(remembered)
    figure: Any = Figure(figsize=(8.0, 8.2 if suggestion else 5.2), layout="constrained")
    upper = figure
    with rc_context({"grid.color": "0.9", "grid.linewidth": 0.8}):
        if suggestion is not None:
            upper, lower = figure.subfigures(2, 1, height_ratios=(5, 3))
            draw_runs(lower.subplots(), suggestion)
        draw_trace(upper, trace)
    figure._repr_png_ = partial(image_of, figure)  # for notebooks that have not loaded pyplot
    return figure


def write_figure(figure: Any, path: str | Path) -> Path:
    """Writes a figure of matplotlib, atomically; returns the path.

    Example:
        write_figure(figure_of(callback.trace), "run.png")

    Args:
        figure: what is drawn.
        path: the file; its suffix chooses the format (png, svg, pdf), png if it has none.

    Raises:
        ConfigurationError: if the suffix is unknown to matplotlib, or the file cannot be written.
    """
    suffix = Path(path).suffix.lstrip(".") or "png"
    try:
        image = image_of(figure, suffix)
    except ValueError as error:
        raise ConfigurationError(
            f"path={str(path)!r}: {error}; end it in .png, .svg or .pdf."
        ) from error
    return write_atomically(path, image)


def image_of(figure: Any, format: str = "png") -> bytes:
    """A figure of matplotlib as the content of a file.

    Example:
        image_of(figure_of(callback.trace), "svg")

    Raises:
        ValueError: for a format that matplotlib does not know.
    """
    image = io.BytesIO()
    figure.savefig(image, format=format, dpi=150)
    return image.getvalue()


def draw_trace(figure: Any, trace: Sequence[DecisionRecord]) -> None:
    """Draws into a figure of matplotlib what `figure_of` describes.

    Example:
        draw_trace(matplotlib.figure.Figure(), callback.trace)
    """
    with needs_package("plot", "matplotlib", "plot"):
        from matplotlib.ticker import LogLocator, NullFormatter
    losses = _draw(figure, trace)
    if losses.get_yscale() == "log":  # 0.2 and 0.5 rather than powers of ten
        low, high = losses.get_ylim()
        losses.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if high < 1000 * low else (1,)))
        losses.yaxis.set_major_formatter("{x:g}")
        losses.yaxis.set_minor_formatter(NullFormatter())


def decay_begins(trace: Sequence[DecisionRecord]) -> list[int]:
    """The steps at which a decay began ahead of its time: in a run that ends early.

    It falls between two decisions, and the interval of the next one begins there.

    Example:
        >>> decay_begins([{"step": 60, "steps": 18, "reason": "the decay begins early; keep"}])
        [42]
    """
    found = (record for record in trace if DECAY_BEGINS in record["reason"])
    return sorted({record["step"] - record.get("steps", 0) for record in found})


def _draw(figure: Any, trace: Sequence[DecisionRecord]) -> Any:
    upper, lower = figure.subplots(2, 1, sharex=True, gridspec_kw={"height_ratios": (3, 2)})
    finite = [record["loss"] for record in trace if math.isfinite(record["loss"])]
    optimizers = sorted({record.get("optimizer", 0) for record in trace})
    for index in optimizers:
        own = [record for record in trace if record.get("optimizer", 0) == index]
        label = f"optimizer {index}" if len(optimizers) > 1 else None
        steps = [record["step"] for record in own]
        losses = [record["loss"] for record in own]
        rates, edges = _stairs(own)
        style = {"linewidth": 1.6, "alpha": 1.0 if index == 0 else max(0.2, 0.6 - 0.1 * index)}
        upper.plot(steps, losses, color=_LOSS, marker="o", markersize=2.5, label=label, **style)
        lower.stairs(rates, edges, color=_LR, baseline=None, label=label, **style)
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
        axes.grid(True, which="major")
        axes.spines[["top", "right"]].set_visible(False)
    trips = [record["step"] for record in trace if record["tripped"]]
    _mark((upper, lower), trips, _TRIP, "circuit breaker: weights restored")
    endings = decay_begins(trace)
    _mark((upper, lower), endings, _LR, DECAY_BEGINS)
    if trips or endings:
        upper.legend(frameon=False, loc="upper right", fontsize="small")
    for index in optimizers:
        _mark_trials(lower, [r for r in trace if r.get("optimizer", 0) == index])
    return upper


def _stairs(trace: Sequence[DecisionRecord]) -> tuple[list[float], list[int]]:
    """The rates of one optimizer, and the steps between them.

    Steps of an interval that ended without a decision were made at the rate of the one before.
    """
    rates: list[float] = []
    edges = [0]
    coming = trace[0]["lr"]
    for record in trace:
        begun = record["step"] - record.get("steps", record["step"] - edges[-1])
        if begun > edges[-1]:
            rates.append(coming)
            edges.append(begun)
        rates.append(record["lr"])
        edges.append(record["step"])
        coming = record["next_lr"]
    return rates, edges


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


def confidence(q_values: Sequence[float]) -> float:
    """The gap between the two largest Q-values; 0 for a single one.

    Example:
        >>> confidence([0.5, 2.0, 1.25])
        0.75
    """
    best = sorted(q_values)[-2:]
    return best[-1] - best[0]


def check_trace(trace: Sequence[DecisionRecord]) -> None:
    """Refuses to show a run without a decision.

    Raises:
        CallOrderError: if there is none.

    Example:
        check_trace(callback.trace)
    """
    if not trace:
        raise CallOrderError(
            "there is no trace yet: no decision has been taken. Train for at least one optimizer "
            "step with this object, or with a deep copy of it, first."
        )
