"""The pictures of the report: SVG text in which colours follow the reader's light or dark page.

Every method has one colour and line style in all pictures, from the palette of Okabe & Ito, which
people with colour-blindness can tell apart; where it runs out, the line styles differ.
"""

from __future__ import annotations

import io
import math
import re
from collections.abc import Callable, Sequence
from typing import Any

from lightning_dqnlr.bench.report.comparison import Comparison, Roles, Runs
from lightning_dqnlr.bench.report.numbers import Standing, duels, mean_regrets, standings
from lightning_dqnlr.bench.runs.losses import TRAIN, VALIDATION
from lightning_dqnlr.errors import ConfigurationError
from lightning_dqnlr.scoring.statistics import LIMIT, area, fractions

Style = dict[str, Any]

# Stand-ins that the page replaces by its own colours.
INK, _GRID, _PAPER = "#010203", "#040506", "#070809"
_CSS = {INK: "currentColor", _GRID: "var(--grid, #d8d8d8)", _PAPER: "var(--paper, #ffffff)"}

_SUBJECT, _RIVAL, _PLAIN = "#d55e00", "#0072b2", "#8a8a8a"
_OTHERS = ("#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#8c6bb1", "#a6761d")
_LR_RANGE = 3e4
_DASHES = ("-", (0, (5, 1.5)), (0, (1.5, 1.2)), (0, (6, 1.5, 1.5, 1.5)))


def styles(methods: Sequence[str], roles: Roles) -> dict[str, Style]:
    """Colour, dash and width of each method's line."""
    fixed: dict[str, Style] = {
        roles.plain: {"color": _PLAIN, "linestyle": "-", "linewidth": 1.4},
        roles.rival: {"color": _RIVAL, "linestyle": "-", "linewidth": 2.2},
        roles.subject: {"color": _SUBJECT, "linestyle": "-", "linewidth": 2.6},
    }
    others = [name for name in sorted(methods) if name not in fixed]
    for i, name in enumerate(others):
        dash = _DASHES[(i // len(_OTHERS)) % len(_DASHES)]
        fixed[name] = {"color": _OTHERS[i % len(_OTHERS)], "linestyle": dash, "linewidth": 1.4}
    return {name: fixed[name] for name in methods}


def regret_picture(comparison: Comparison, rows: Sequence[Standing]) -> str:
    """IQM of the regret of each method with its interval, training and validation loss."""
    look = styles(comparison.methods, comparison.roles)

    def draw(figure: Any) -> None:
        axes = figure.subplots(1, 2, sharey=True)
        names = [row.method for row in rows]
        for panel, which in zip(axes, (TRAIN, VALIDATION), strict=True):
            parts = [row.train if which == TRAIN else row.validation for row in rows]
            values = [(part.iqm, *part.interval) for part in parts]
            _intervals(panel, names, values, look)
            panel.axvline(0, color=INK, linewidth=1)
            panel.set_xlabel(f"regret, {which} loss (IQM, 95% interval)")
        axes[0].invert_yaxis()

    return to_svg(draw, "regret", 9.2, 1.0 + 0.3 * len(rows))


def improvement_picture(comparison: Comparison) -> str:
    """The probability that the subject ends lower than each other method."""
    look = styles(comparison.methods, comparison.roles)
    rows = duels(comparison)

    def draw(figure: Any) -> None:
        axes = figure.subplots(1, 2, sharey=True)
        names = [row.method for row in rows]
        train = [(row.train, *row.train_interval) for row in rows]
        held_out = [(row.validation, *row.validation_interval) for row in rows]
        for panel, values, which in zip(axes, (train, held_out), (TRAIN, VALIDATION), strict=True):
            _intervals(panel, names, values, look)
            panel.set_xlim(-0.02, 1.02)
            panel.axvline(0.5, color=INK, linewidth=1)
            panel.set_xlabel(f"P({comparison.roles.subject} ends lower), {which} loss")
        axes[0].invert_yaxis()

    return to_svg(draw, "improvement", 9.2, 1.0 + 0.3 * len(rows))


def _intervals(
    axes: Any,
    names: Sequence[str],
    values: Sequence[tuple[float, float, float]],
    look: dict[str, Style],
) -> None:
    for y, (name, (middle, low, high)) in enumerate(zip(names, values, strict=True)):
        color = look[name]["color"]
        axes.plot([low, high], [y, y], color=color, linewidth=4, alpha=0.45)
        axes.plot([middle], [y], "o", color=color, markersize=6)
    axes.set_yticks(range(len(names)), names)
    axes.grid(True, axis="x")


def profile_picture(comparison: Comparison) -> str:
    """The performance profiles in steps and in seconds of one run."""
    look = styles(comparison.methods, comparison.roles)
    tasks = comparison.shared
    rows = standings(comparison, tasks, samples=1)

    def draw(figure: Any) -> None:
        axes = figure.subplots(1, 2, sharey=True)
        for panel, seconds in zip(axes, (False, True), strict=True):
            ratios = {r.method: comparison.ratios(r.method, tasks, seconds=seconds) for r in rows}
            _profile(panel, ratios, look)
            unit = "seconds of one run" if seconds else "steps"
            panel.set_xlabel(f"{unit}, relative to the tuned {comparison.roles.rival}")
        axes[0].set_ylabel("share of runs that got there")

    return to_svg(draw, "profile", 11.5, 2.6 + 0.17 * max(8, len(rows)))


def _profile(axes: Any, ratios: dict[str, list[float]], look: dict[str, Style]) -> None:
    factors = [LIMIT ** (i / 100) for i in range(-100, 101)]
    areas = {name: area(values) for name, values in ratios.items()}
    for name in sorted(ratios, key=lambda name: -areas[name]):
        label = f"{name}  {areas[name]:.2f}"
        axes.plot(factors, fractions(ratios[name], factors), label=label, **look[name])
    axes.set_xscale("log", base=2)
    axes.set_xticks([0.25, 0.5, 1, 2, 4], ["1/4", "1/2", "1", "2", "4"])
    axes.set_xlim(1 / LIMIT, LIMIT)
    axes.set_ylim(0, 1.02)
    axes.axvline(1, color=INK, linewidth=0.8)
    axes.grid(True)
    legend = {"loc": "center left", "bbox_to_anchor": (1.0, 0.5), "title": "area"}
    axes.legend(frameon=False, fontsize=8, handlelength=2.6, title_fontsize=8, **legend)


def trajectory_picture(comparison: Comparison, task: str, methods: Sequence[str]) -> str:
    """Learning rate and losses of a task over its steps, stacked; one thin line per seed."""

    def draw(figure: Any) -> None:
        panels = figure.subplots(3, 1, sharex=True)
        _trajectories(comparison, task, methods, panels)
        panels[0].set_title(task)
        panels[2].set_xlabel("optimizer step")
        for panel, label in zip(panels, ("LR", "training", "validation"), strict=True):
            panel.set_ylabel(label)
        figure.align_ylabels()

    return to_svg(draw, f"trajectory-{task}", 3.7, 4.3)


def case_picture(comparison: Comparison, task: str, methods: Sequence[str]) -> str:
    """The same side by side, with a legend of its own."""
    look = styles(comparison.methods, comparison.roles)

    def draw(figure: Any) -> None:
        from matplotlib.lines import Line2D

        panels = figure.subplots(1, 3)
        _trajectories(comparison, task, methods, panels)
        titles = ("learning rate", "training loss", "validation loss")
        for panel, title in zip(panels, titles, strict=True):
            panel.set_title(title)
            panel.set_xlabel("optimizer step")
        handles = [Line2D([], [], **look[name]) for name in methods]
        place = {"loc": "outside right upper", "frameon": False, "handlelength": 3}
        figure.legend(handles, list(methods), **place)

    return to_svg(draw, f"losing-{task}", 11.0, 2.5)


def _trajectories(
    comparison: Comparison, task: str, methods: Sequence[str], panels: Sequence[Any]
) -> None:
    look = styles(comparison.methods, comparison.roles)
    for panel, curve in zip(panels, ("lr", "train", "validation"), strict=True):
        for name in reversed(methods):
            if (task, name) in comparison.entries:
                _curves(panel, comparison.entries[task, name].runs, curve, look[name])
        log_scale(panel)
        panel.grid(True)
    bottom, top = panels[0].get_ylim()
    panels[0].set_ylim(max(bottom, top / _LR_RANGE), top)  # a schedule's last step is almost zero


def _curves(axes: Any, runs: Runs, curve: str, style: Style) -> None:
    thin = {**style, "linewidth": 0.5 * style["linewidth"], "alpha": 0.85}
    for run in runs:
        values = [math.nan if value is None else value for value in run.curve[curve]]
        axes.plot(run.curve["step"], values, **thin)


def sensitivity_picture(comparison: Comparison, task: str) -> str:
    """Mean regret over seeds against the LR given, for each method that was swept there."""
    look = styles(comparison.methods, comparison.roles)

    def draw(figure: Any) -> None:
        axes = figure.subplots()
        axes.axhline(0, color=INK, linewidth=0.8)
        for name in reversed(comparison.methods):
            means = mean_regrets(comparison, task, name)
            axes.plot(list(means), list(means.values()), **look[name])
        axes.set_xscale("log")
        axes.set_title(task)
        axes.set_xlabel("learning rate given")
        axes.set_ylabel("regret, training")
        axes.grid(True)

    return to_svg(draw, f"sensitivity-{task}", 3.7, 2.5)


def legend_picture(comparison: Comparison, methods: Sequence[str], name: str) -> str:
    """The lines of some methods with their names, for pictures that share one legend."""
    look = styles(comparison.methods, comparison.roles)
    columns = min(6, max(1, len(methods)))

    def draw(figure: Any) -> None:
        from matplotlib.lines import Line2D

        handles = [Line2D([], [], **look[method]) for method in methods]
        place = {"loc": "center", "ncols": columns, "frameon": False, "handlelength": 3}
        figure.legend(handles, list(methods), **place)

    return to_svg(draw, name, 1.8 * columns, 0.1 + 0.25 * math.ceil(len(methods) / columns))


def log_scale(axes: Any) -> None:
    """Logarithmic where there is anything positive, with plain ticks on a narrow range."""
    from matplotlib.ticker import LogLocator, NullFormatter

    values = [v for line in axes.get_lines() for v in line.get_ydata() if math.isfinite(v)]
    positive = [value for value in values if value > 0]
    if not positive or len(positive) < 0.5 * len(values):
        return
    axes.set_yscale("log")
    low, high = axes.get_ylim()
    if high < 300 * low:
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if high < 30 * low else (1, 3)))
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_formatter(NullFormatter())


def to_svg(draw: Callable[[Any], None], name: str, width: float, height: float) -> str:
    """Draws on a new figure; the identifiers of the SVG get its name, so that pages may hold many.

    Raises:
        ConfigurationError: if matplotlib is not installed.
    """
    try:
        from matplotlib import rc_context
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ConfigurationError(
            "the report needs matplotlib, which is not installed; "
            'run `pip install "lightning-dqnlr[plot]"`.'
        ) from error
    settings: Any = {**_SETTINGS, "svg.hashsalt": name}
    with rc_context(settings):
        figure = Figure(figsize=(width, height), layout="constrained")
        draw(figure)
        for axes in figure.axes:
            axes.set_axisbelow(True)
        text = io.StringIO()
        figure.savefig(text, format="svg", transparent=True, metadata={"Date": None})
    return _themed(text.getvalue(), re.sub(r"\W+", "-", name))


_SETTINGS = {
    "svg.fonttype": "none",
    "font.size": 9,
    "axes.titlesize": 10,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "grid.color": _GRID,
    "grid.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
}


def _themed(svg: str, prefix: str) -> str:
    """The bare <svg> element with the page's colours and identifiers of its own."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'\bid="([^"]+)"', rf'id="{prefix}-\1"', svg)
    svg = re.sub(r"url\(#([^)]+)\)", rf"url(#{prefix}-\1)", svg)
    svg = re.sub(r'href="#([^"]+)"', rf'href="#{prefix}-\1"', svg)
    for colour, css in _CSS.items():
        svg = svg.replace(colour, css)
    return svg.strip()


def standalone(svg: str) -> str:
    """A file of its own: with a paper of its own, dark where the reader's system is dark."""
    style = (
        "<style>svg{background:#fff;color:#1b1b1b;--grid:#d8d8d8}"
        "@media (prefers-color-scheme:dark){svg{background:#161a1f;color:#e4e4e4;--grid:#3a3f46}}"
        "</style>"
    )
    end = svg.index(">") + 1
    return f'<?xml version="1.0" encoding="utf-8"?>\n{svg[:end]}{style}{svg[end:]}\n'
