"""A run's report: one HTML page that needs nothing else."""

from __future__ import annotations

import math
from collections.abc import Sequence
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import NamedTuple

from jinja2 import Environment, StrictUndefined

from lightning_dqnlr.files import write_atomically
from lightning_dqnlr.host.decisions import DecisionRecord
from lightning_dqnlr.host.run_facts import RunFacts
from lightning_dqnlr.host.trace import check_trace, confidence, draw_trace
from lightning_dqnlr.memory.picture import draw_runs
from lightning_dqnlr.memory.suggest import suggestion_of
from lightning_dqnlr.svg import themed_svg

_TEMPLATE = Path(__file__).with_name("report.html.jinja")
_NOTHING = "—"  # in the place of a figure that is missing
# What the time went to, by its name in `RunFacts.seconds`.
_OURS = {
    "steps": ("dqnlr: gradients, weights and losses looked at", "#1b6ca8"),
    "decisions": ("dqnlr: decisions", "#56a0d8"),
    "checks": ("dqnlr: checks and copies ahead of validation and checkpoints", "#7d2e8d"),
    "shown": ("dqnlr: logging and live view", "#b98ac4"),
}
_BATCHES = ("batches: forward, backward, optimizer, other callbacks", "#9a9a9a")
_REST = {
    True: ("between batches: data, validation, checkpoints", "#cfcfcf"),
    False: ("the training loop itself", "#cfcfcf"),
}


class Tile(NamedTuple):
    """One figure of the page's head."""

    value: str
    meaning: str


class Grid(NamedTuple):
    """Cells as text; the last column holds words."""

    header: tuple[str, ...]  # (C,)
    rows: tuple[tuple[str, ...], ...]  # (R, C)
    marked: frozenset[int] = frozenset()  # numbers of the rows that stand out


class Piece(NamedTuple):
    """A part of a bar."""

    percent: float
    colour: str


class Part(NamedTuple):
    """A heading and what stands under it."""

    title: str
    points: tuple[str, ...] = ()
    svg: str = ""
    bar: tuple[Piece, ...] = ()
    table: Grid | None = None
    folded: bool = False  # whether the page shows the heading alone until it is clicked


def write_report(trace: Sequence[DecisionRecord], facts: RunFacts, path: str | Path) -> Path:
    """Writes the page, atomically; returns the path.

    Args:
        trace: the decisions.
        facts: what else is known of the run.
        path: the page.

    Raises:
        CallOrderError: if there is no decision yet.
        ConfigurationError: if matplotlib is not installed, or the file cannot be written.

    Example:
        write_report(callback.trace, callback.facts, "run.html")
    """
    check_trace(trace)
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    template = environment.from_string(_TEMPLATE.read_text(encoding="utf-8"))
    parts = [
        _picture(trace),
        _undone(trace),
        _ending(trace, facts),
        _remembered(facts),
        _time(facts),
        _decisions(trace),
    ]
    page = template.render(
        title=f"A run of {facts.model}" if facts.model else "A training run",
        origin=_origin(facts),
        tiles=_tiles(trace, facts),
        parts=[part for part in parts if part is not None],
    )
    return write_atomically(path, page.encode())


def _origin(facts: RunFacts) -> str:
    policy = facts.policy
    parts = (
        ", ".join(facts.optimizers),
        f"policy {policy['policy']} {policy['policy_hash']}".strip() if policy else "",
        f"lightning-dqnlr {policy['policy_version']}" if policy else "",
        f"written {datetime.now():%Y-%m-%d %H:%M}",
    )
    return " · ".join(part for part in parts if part)


def _tiles(trace: Sequence[DecisionRecord], facts: RunFacts) -> list[Tile]:
    steps = max(record["step"] for record in trace)
    of_all = f" of {facts.horizon:,}" if facts.horizon and facts.horizon > steps else ""
    several = any("optimizer" in record for record in trace)
    first = [record for record in trace if record.get("optimizer", 0) == 0]
    whose = ", first optimizer" if several else ""
    rates = [record["lr"] for record in first]
    losses = [record["loss"] for record in first if math.isfinite(record["loss"])]
    ends = f"highest learning rate; first {rates[0]:.1e}, last {rates[-1]:.1e}{whose}"
    trips = sum(record["tripped"] for record in trace)
    tiles = [
        Tile(f"{steps:,}{of_all}", "optimizer steps"),
        Tile(f"{max(rates):.1e}", ends),
        Tile(str(len(trace)), "decisions"),
        Tile(str(trips), "blown-up intervals undone"),
    ]
    if losses:
        fall = f"{losses[0]:.3g} → {losses[-1]:.3g}"
        tiles.insert(1, Tile(fall, f"training loss: first, last interval{whose}"))
    share = _our_share(facts)
    return (
        tiles
        if share is None
        else [*tiles, Tile(f"{share:.1%}", "of the batches' time is dqnlr's")]
    )


def _picture(trace: Sequence[DecisionRecord]) -> Part:
    svg = themed_svg("run", partial(draw_trace, trace=trace), (10.0, 5.6))
    return Part("Training loss and learning rate", svg=svg)


def _undone(trace: Sequence[DecisionRecord]) -> Part:
    trips = [record for record in trace if record["tripped"]]
    title = "What was undone"
    if not trips:
        return Part(title, ("No interval blew up.",))
    rows = tuple(
        (f"{r['step']:,}", _rate(r["lr"]), _rate(r["next_lr"]), r["reason"]) for r in trips
    )
    return Part(title, table=Grid(("step", "rate", "rate after", "what happened"), rows))


def _ending(trace: Sequence[DecisionRecord], facts: RunFacts) -> Part:
    steps = max(record["step"] for record in trace)
    last = trace[-1]["lr"]
    share = last / max(record["lr"] for record in trace)
    points = [f"Step {each['step']:,}: {each['words']}." for each in facts.news]
    if not points and facts.horizon:
        points.append(
            f"The run has made {min(steps, facts.horizon):,} of its {facts.horizon:,} steps."
        )
    if not points:
        points.append("Nobody has said how long the run is.")
    points.append(f"The last rate is {_rate(last)}, {share:.1%} of the highest.")
    return Part("How the run ended", tuple(points))


def _remembered(facts: RunFacts) -> Part | None:
    suggestion = suggestion_of(facts.remembered)
    if suggestion is None:
        return None
    cells = tuple(
        (
            str(number),
            run.date[:16].replace("T", " "),
            "policy" if run.held is None else _rate(run.held),
            _NOTHING if run.value is None else f"{run.value:.4g}",
            run.why,
        )
        for number, run in enumerate(suggestion.runs, start=1)
    )
    svg = themed_svg("runs", lambda figure: draw_runs(figure.subplots(), suggestion), (10.0, 3.6))
    metric = suggestion.runs[-1].metric if suggestion.runs else "result"
    header = ("run", "date", "rate held", metric, "why that rate")
    return Part("Runs of this model", svg=svg, table=Grid(header, cells))


def _time(facts: RunFacts) -> Part | None:
    seconds = facts.seconds
    whole = seconds.get("run", 0.0)
    if whole <= 0:
        return None
    in_trainer = "batches" in seconds
    rows = [(*_OURS[name], seconds[name]) for name in _OURS if seconds.get(name)]
    if in_trainer:
        rows.append((*_BATCHES, seconds["batches"]))
    rows.append((*_REST[in_trainer], max(0.0, whole - sum(row[2] for row in rows))))
    rows.sort(key=lambda row: -row[2])
    points = [f"Of the {_duration(whole)}, {_duration(facts.ours)} went to dqnlr."]
    share = _our_share(facts)
    if in_trainer and share is not None:
        points[0] = (
            f"Of the time that training batches took, {share:.1%} went to dqnlr. "
            f"The whole run took {_duration(whole)}."
        )
    points.append(
        "This is the host's clock. An accelerator is waited for at decisions and checks, so their "
        "time holds some of the batches' work there."
    )
    if facts.first_step:
        points.append(f"It is that of the part from step {facts.first_step:,} on.")
    bar = tuple(Piece(round(100 * row[2] / whole, 2), row[1]) for row in rows)
    cells = tuple((row[0], _duration(row[2]), f"{row[2] / whole:.1%}") for row in rows)
    return Part(
        "Where the time went", tuple(points), bar=bar, table=Grid(("", "time", "share"), cells)
    )


def _decisions(trace: Sequence[DecisionRecord]) -> Part:
    several = any("optimizer" in record for record in trace)
    header = ("step", "loss", "rate", "next rate", "factor", "Q gap", "update", "reason")
    rows = []
    for record in trace:
        cells = (
            f"{record['step']:,}",
            f"{record['loss']:.4g}",
            _rate(record["lr"]),
            _rate(record["next_lr"]),
            f"{record['multiplier']:g}",
            f"{confidence(record['q_values']):.2g}",
            f"{record['update_ratio']:.1e}" if "update_ratio" in record else _NOTHING,
            record["reason"],
        )
        rows.append((str(record.get("optimizer", 0)), *cells) if several else cells)
    marked = frozenset(i for i, record in enumerate(trace) if record["tripped"])
    points = (
        "Each row is the end of an interval, and the choice of a factor for the next one. The Q "
        "gap is that between the best two actions. The update is the largest, relative to the "
        "weights.",
    )
    grid = Grid(("optimizer", *header) if several else header, tuple(rows), marked)
    return Part(f"All {len(trace)} decisions", points, table=grid, folded=True)


def _our_share(facts: RunFacts) -> float | None:
    """This package's share of its own and the batches' time, or of a whole plain loop's."""
    whole = facts.seconds.get("run", 0.0)
    batches = facts.seconds.get("batches")
    against = whole if batches is None else facts.ours + batches
    return facts.ours / against if whole > 0 and against > 0 else None


def _rate(value: float) -> str:
    return f"{value:.2e}"


def _duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.2g} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 120 else f"{seconds / 3600:.1f} h"
