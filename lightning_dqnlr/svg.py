"""Pictures as SVG text whose colours follow the reader's light or dark page."""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from typing import Any

from lightning_dqnlr.errors import needs_package

# Stand-ins that the page replaces by its own colours.
INK = "#010203"
_GRID = "#040506"
_CSS = {INK: "currentColor", _GRID: "var(--grid, #d8d8d8)"}

_SETTINGS = {
    "svg.fonttype": "none",
    "font.size": 9,
    "axes.titlesize": 10,
    **dict.fromkeys(("text.color", "axes.labelcolor", "axes.edgecolor"), INK),
    **dict.fromkeys(("xtick.color", "ytick.color"), INK),
    "grid.color": _GRID,
    "grid.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
}


def themed_svg(name: str, draw: Callable[[Any], None], size: tuple[float, float]) -> str:
    """The bare <svg> element of what `draw` makes of a new figure.

    The SVG's identifiers begin with the name, so that a page may hold many pictures.

    Args:
        name: of the picture.
        draw: takes a figure of matplotlib.
        size: width and height in inches.

    Raises:
        MissingPackageError: if matplotlib is not installed.

    Example:
        svg = themed_svg("loss", lambda figure: figure.subplots().plot([1, 2]), (7.4, 3.0))
    """
    with needs_package("the report", "matplotlib", "plot"):
        from matplotlib import rc_context
        from matplotlib.figure import Figure
    settings: Any = {**_SETTINGS, "svg.hashsalt": name}
    with rc_context(settings):
        figure = Figure(figsize=size, layout="constrained")
        draw(figure)
        for axes in figure.axes:
            axes.set_axisbelow(True)
        svg = io.StringIO()
        figure.savefig(svg, format="svg", transparent=True, metadata={"Date": None})
    return _themed(svg.getvalue(), re.sub(r"\W+", "-", name))


def _themed(svg: str, prefix: str) -> str:
    """The bare <svg> element with the page's colours and identifiers of its own."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'(\bid="|url\(#|href="#)', rf"\1{prefix}-", svg)
    for colour, css in _CSS.items():
        svg = svg.replace(colour, css)
    return svg.strip()


def standalone(svg: str) -> str:
    """A file of its own: with its own background, dark where the reader's system is dark."""
    style = (
        "<style>svg{background:#fff;color:#1b1b1b;--grid:#d8d8d8}"
        "@media (prefers-color-scheme:dark){svg{background:#161a1f;color:#e4e4e4;--grid:#3a3f46}}"
        "</style>"
    )
    end = svg.index(">") + 1
    return f'<?xml version="1.0" encoding="utf-8"?>\n{svg[:end]}{style}{svg[end:]}\n'
