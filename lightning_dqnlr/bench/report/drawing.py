"""How the pictures of the benchmark are drawn.

Every method has one colour and line style in all pictures. The palette is that of Okabe & Ito,
which people with colour-blindness can tell apart; where it runs out, the line styles differ.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from lightning_dqnlr.bench.report.comparison import PLAIN, RIVAL, SUBJECT, Comparison
from lightning_dqnlr.bench.report.content import Gallery, Picture
from lightning_dqnlr.scoring.statistics import Estimate, Interval
from lightning_dqnlr.svg import INK, themed_svg

Style = dict[str, Any]

_OTHERS = ("#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#8c6bb1", "#a6761d")
_DASHES = ("-", (0, (5, 1.5)), (0, (1.5, 1.2)), (0, (6, 1.5, 1.5, 1.5)))


def styles(comparison: Comparison) -> dict[str, Style]:
    """Colour, dash and width of each method's line."""
    fixed: dict[str, Style] = {
        PLAIN: {"color": "#8a8a8a", "linestyle": "-", "linewidth": 1.4},
        RIVAL: {"color": "#0072b2", "linestyle": "-", "linewidth": 2.2},
        SUBJECT: {"color": "#d55e00", "linestyle": "-", "linewidth": 2.6},
    }
    others = [name for name in sorted(comparison.methods) if name not in fixed]
    for i, name in enumerate(others):
        dash = _DASHES[(i // len(_OTHERS)) % len(_DASHES)]
        fixed[name] = {"color": _OTHERS[i % len(_OTHERS)], "linestyle": dash, "linewidth": 1.4}
    return {name: fixed[name] for name in comparison.methods}


def interval_picture(
    comparison: Comparison,
    methods: Sequence[str],
    panels: Mapping[str, Sequence[Estimate]],
    *,
    name: str,
    text: str,
    middle: float,
    limits: Interval | None = None,
) -> Picture:
    """Panels by label: a dot and a bar for each method, the first on top, beside a middle line."""
    look = styles(comparison)

    def draw(figure: Any) -> None:
        axes = figure.subplots(1, len(panels), sharey=True)
        for panel, (label, estimates) in zip(axes, panels.items(), strict=True):
            for y, (method, estimate) in enumerate(zip(methods, estimates, strict=True)):
                color = look[method]["color"]
                panel.plot(estimate.interval, [y, y], color=color, linewidth=4, alpha=0.45)
                panel.plot([estimate.value], [y], "o", color=color, markersize=6)
            panel.set_yticks(range(len(methods)), methods)
            panel.grid(True, axis="x")
            panel.axvline(middle, color=INK, linewidth=1)
            panel.set_xlabel(label)
            if limits is not None:
                panel.set_xlim(limits)
        axes[0].invert_yaxis()

    return picture(name, text, draw, width=9.2, height=1.0 + 0.3 * len(methods))


def add_legend(
    figure: Any, comparison: Comparison, methods: Sequence[str], *, place: str, columns: int = 1
) -> None:
    from matplotlib.lines import Line2D

    lines = styles(comparison)
    handles = [Line2D([], [], **lines[name]) for name in methods]
    look = {"ncols": columns, "frameon": False, "handlelength": 3}
    figure.legend(handles, list(methods), loc=place, **look)


def gallery(
    comparison: Comparison, methods: Sequence[str], name: str, pictures: Iterable[Picture]
) -> Gallery:
    """Pictures under one legend, the lines of some methods."""
    columns = min(6, max(1, len(methods)))

    def draw(figure: Any) -> None:
        add_legend(figure, comparison, methods, place="center", columns=columns)

    text = "Line styles: " + ", ".join(methods)
    height = 0.1 + 0.25 * math.ceil(len(methods) / columns)
    legend = picture(f"legend-{name}", text, draw, width=1.8 * columns, height=height)
    return Gallery(legend, tuple(pictures))


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


def picture(
    name: str, text: str, draw: Callable[[Any], None], *, width: float, height: float
) -> Picture:
    """What `draw` makes of a new figure; width and height are in inches.

    Raises:
        MissingPackageError: if matplotlib is not installed.
    """
    return Picture(name, themed_svg(name, draw, (width, height)), text)
