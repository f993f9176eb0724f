"""How fast each method is: performance profiles (Dolan & Moré 2002, arXiv:cs/0102001)."""

from __future__ import annotations

from typing import Any

from lightning_dqnlr.bench.report.comparison import Comparison
from lightning_dqnlr.bench.report.content import Picture, Section
from lightning_dqnlr.bench.report.drawing import INK, picture, styles
from lightning_dqnlr.scoring.statistics import LIMIT, area, fractions

_FACTORS = [LIMIT ** (i / 100) for i in range(-100, 101)]


def how_fast(comparison: Comparison) -> Section:
    """The profiles of all methods that have all tasks."""
    rival = comparison.roles.rival
    text = (
        f"Performance profiles: the share of (task, seed) on which a method reaches the tuned "
        f"{rival}'s final validation loss within a factor of the time it took {rival}. The area is "
        f"the mean over log factor from 1/{LIMIT:.0f} to {LIMIT:.0f}: 0.5 is the tuned {rival} "
        "itself. A run that never gets there counts as infinitely slow; a method exactly as good "
        "gets there about every other time. Searching for an LR is not in here, but under the cost."
    )
    return Section("How fast", (text, _picture(comparison)) if comparison.complete() else ())


def _picture(comparison: Comparison) -> Picture:
    """In steps, and in seconds of one run."""
    names = comparison.complete()

    def draw(figure: Any) -> None:
        axes = figure.subplots(1, 2, sharey=True)
        for panel, seconds in zip(axes, (False, True), strict=True):
            _profiles(panel, comparison, seconds)
            unit = "seconds of one run" if seconds else "steps"
            panel.set_xlabel(f"{unit}, relative to the tuned {comparison.roles.rival}")
        axes[0].set_ylabel("share of runs that got there")

    text = "Performance profiles of all methods."
    return picture("profile", text, draw, width=11.5, height=2.6 + 0.17 * max(8, len(names)))


def _profiles(axes: Any, comparison: Comparison, seconds: bool) -> None:
    look = styles(comparison)
    names, tasks = comparison.complete(), comparison.shared
    ratios = {name: comparison.ratios(name, tasks, seconds=seconds) for name in names}
    areas = {name: area(values) for name, values in ratios.items()}
    for name in sorted(ratios, key=lambda name: -areas[name]):
        label = f"{name}  {areas[name]:.2f}"
        axes.plot(_FACTORS, fractions(ratios[name], _FACTORS), label=label, **look[name])
    axes.set_xscale("log", base=2)
    axes.set_xticks([0.25, 0.5, 1, 2, 4], ["1/4", "1/2", "1", "2", "4"])
    axes.set_xlim(1 / LIMIT, LIMIT)
    axes.set_ylim(0, 1.02)
    axes.axvline(1, color=INK, linewidth=0.8)
    axes.grid(True)
    legend = {"loc": "center left", "bbox_to_anchor": (1.0, 0.5), "title": "area"}
    axes.legend(frameon=False, fontsize=8, handlelength=2.6, title_fontsize=8, **legend)
