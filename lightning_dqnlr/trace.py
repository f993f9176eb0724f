"""The record of a run's decisions: each one's reason in words, as a table, as a picture."""

from __future__ import annotations

import csv
import io
import json
import logging
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from lightning_dqnlr.errors import CallOrderError, ConfigurationError
from lightning_dqnlr.files import write_atomically

Record = dict[str, Any]

_LOGGER = logging.getLogger("lightning_dqnlr")
_LONG_STREAK = 20
_LR, _LOSS, _TRIP = "#1b6ca8", "#c8553d", "#7d2e8d"


class Circumstances(NamedTuple):
    """What is known about a decision besides the action itself."""

    climbing: bool  # nothing but raises so far, from the safe start
    explored: bool  # the action is not the greedy one (epsilon > 0)
    finite: bool  # no loss, gradient or weight of the interval was NaN or infinite
    restored_step: int | None  # where the circuit breaker went back to
    wanted: float  # natural log of the multiplier chosen
    applied: float  # the change of the scale that came of it, natural log
    capped: bool  # the update cap limited it, or the ceiling that a trip leaves
    may_cut: bool  # the built-in decay has not begun, which forbids cuts
    bound: str | None  # "min_lr" or "max_lr" where that limited the learning rate


def explain(
    action: int, q_values: Sequence[float], multipliers: Sequence[float], seen: Circumstances
) -> str:
    """The reason of one decision in words.

    Args:
        action: index of the multiplier chosen.
        q_values: one per multiplier.
        multipliers: the action table.
        seen: the circumstances.
    """
    parts = [_trip(seen), _choice(action, q_values, multipliers, seen), _limit(seen)]
    return "; ".join(part for part in parts if part)


def _trip(seen: Circumstances) -> str:
    what = "loss blew up" if seen.finite else "loss not finite"
    if seen.restored_step is not None:
        return f"{what}: restored step {seen.restored_step}, LR cut to a quarter"
    return "" if seen.finite else f"{what}, circuit breaker off"


def _choice(
    action: int, q_values: Sequence[float], multipliers: Sequence[float], seen: Circumstances
) -> str:
    multiplier, keep = multipliers[action], multipliers.index(1.0)
    if seen.explored:
        return f"exploring: x{multiplier:g}"
    if action == keep:
        rest = [i for i in range(len(q_values)) if i != keep]
        rival = max(rest, key=lambda i: q_values[i], default=keep)
        if rival == keep:
            return "keep"
        return f"keep: Q {q_values[keep] - q_values[rival]:+.2g} over x{multipliers[rival]:g}"
    verb = "raise" if multiplier > 1 else "cut"
    gain = f"{verb} x{multiplier:g}: Q {q_values[action] - q_values[keep]:+.2g} over keep"
    return f"climbing from the safe start: {gain}" if seen.climbing else gain


def _limit(seen: Circumstances) -> str:
    if seen.bound is not None:
        return f"held at {seen.bound}"
    if seen.capped:
        return "limited by the update cap, or by the ceiling that a trip leaves"
    if seen.applied < seen.wanted - 1e-3:
        return "held back right after a restore"
    if seen.applied > seen.wanted + 1e-3:
        return "held at the scale's floor" if seen.may_cut else "no cuts while the decay falls"
    return ""


class TripLog:
    """Warns of every undone interval, and once more when they do not end. Never stops a run.

    Attributes:
        streak: intervals in a row that blew up.
    """

    def __init__(self) -> None:
        self.streak = 0

    def note(self, record: Record, seen: Circumstances) -> None:
        """Takes in a decision; warns of a trip, or (no breaker) of the first non-finite loss."""
        if not record["tripped"] and seen.finite:
            self.streak = 0
            return
        self.streak += 1
        if record["tripped"] or self.streak == 1:
            _LOGGER.warning("step %d: %s", record["step"], record["reason"])
        if record["tripped"] and self.streak == _LONG_STREAK:
            _LOGGER.warning(
                "%d intervals in a row blew up although the learning rate is down to %.3g; the "
                "cause is probably not the learning rate but the data or the loss.",
                self.streak,
                record["next_lr"],
            )


def save_trace(trace: Sequence[Record], path: str | Path) -> Path:
    """Writes one line per decision as CSV, atomically; Q-values as a JSON list in their column.

    Raises:
        CallOrderError: if there is no decision yet.
        ConfigurationError: if the file cannot be written.
    """
    _check(trace)
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(trace[0]), lineterminator="\n")
    writer.writeheader()
    for record in trace:
        writer.writerow({**record, "q_values": json.dumps(record["q_values"])})
    return write_atomically(path, text.getvalue().encode())


def plot_trace(trace: Sequence[Record], path: str | Path) -> Path:
    """Draws learning rate and training loss over the steps, with the restores marked.

    Args:
        trace: the decisions.
        path: the file; its suffix chooses the format (png, svg, pdf), png if it has none.

    Raises:
        CallOrderError: if there is no decision yet.
        ConfigurationError: if matplotlib is not installed, the suffix is unknown to it, or the
            file cannot be written.
    """
    _check(trace)
    try:
        from matplotlib.figure import Figure
        from matplotlib.ticker import LogLocator, NullFormatter
    except ImportError as error:
        raise ConfigurationError(
            "plot needs matplotlib, which is not installed; "
            'run `pip install "lightning-dqnlr[plot]"`.'
        ) from error
    figure = Figure(figsize=(8.0, 5.2), layout="constrained")
    losses = _draw(figure, trace)
    if losses.get_yscale() == "log":  # 0.2 and 0.5 rather than powers of ten
        low, high = losses.get_ylim()
        losses.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if high < 1000 * low else (1,)))
        losses.yaxis.set_major_formatter("{x:g}")
        losses.yaxis.set_minor_formatter(NullFormatter())
    suffix, image = Path(path).suffix.lstrip(".") or "png", io.BytesIO()
    try:
        figure.savefig(image, format=suffix, dpi=150)
    except ValueError as error:
        raise ConfigurationError(
            f"path={str(path)!r}: {error}; end it in .png, .svg or .pdf."
        ) from error
    return write_atomically(path, image.getvalue())


def _draw(figure: Any, trace: Sequence[Record]) -> Any:
    upper, lower = figure.subplots(2, 1, sharex=True, gridspec_kw={"height_ratios": (3, 2)})
    steps = [record["step"] for record in trace]
    losses, rates = [r["loss"] for r in trace], [r["lr"] for r in trace]
    finite = [loss for loss in losses if math.isfinite(loss)]
    upper.plot(steps, losses, color=_LOSS, linewidth=1.6, marker="o", markersize=2.5)
    if finite and min(finite) > 0:
        upper.set_yscale("log")
    lower.stairs(rates, [0, *steps], color=_LR, linewidth=1.6, baseline=None)
    lower.set_yscale("log")
    upper.set_ylabel("training loss")
    lower.set_ylabel("learning rate")
    lower.set_xlabel("optimizer step")
    lower.set_xlim(0, steps[-1])
    for axes in (upper, lower):
        axes.set_axisbelow(True)
        axes.grid(True, which="major", color="0.9", linewidth=0.8)
        axes.spines[["top", "right"]].set_visible(False)
    _mark_trips(upper, lower, [record["step"] for record in trace if record["tripped"]])
    return upper


def _mark_trips(upper: Any, lower: Any, steps: Sequence[int]) -> None:
    for index, step in enumerate(steps):
        label = "circuit breaker: weights restored" if index == 0 else None
        upper.axvline(step, color=_TRIP, linestyle="--", linewidth=1.0, label=label)
        lower.axvline(step, color=_TRIP, linestyle="--", linewidth=1.0)
    if steps:
        upper.legend(frameon=False, loc="upper right", fontsize="small")


def _check(trace: Sequence[Record]) -> None:
    if not trace:
        raise CallOrderError(
            "there is no trace yet: no decision has been taken. Train for at least one optimizer "
            "step with this object first."
        )
