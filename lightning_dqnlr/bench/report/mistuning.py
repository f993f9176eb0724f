"""What a wrong learning rate costs: regret against how far it is from the best one."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import torch

from lightning_dqnlr.bench.report.blocks import Picture
from lightning_dqnlr.bench.report.comparison import Comparison
from lightning_dqnlr.bench.report.numbers import mean_regrets, swept
from lightning_dqnlr.bench.report.pictures import INK, log_scale, styles, to_svg
from lightning_dqnlr.scoring.statistics import interquartile_mean

FACTORS = tuple(10 ** (quarter / 4) for quarter in range(-12, 13))


def mistuned(comparison: Comparison, method: str) -> list[tuple[float, float]]:
    """Regret on training loss at so many times the rival's best peak, as (factor, regret).

    The mean over seeds, between two rates on the line in log LR that connects them, then the
    interquartile mean over the tasks that were swept. Factors that are beyond the rates of any
    task are left out: the mean over the others would be another one.
    """
    curves = [_curve(comparison, task, method) for task in swept(comparison)]
    if not curves:
        return []
    regrets = {f: torch.tensor([_at(curve, f) for curve in curves]) for f in FACTORS}
    return [(f, interquartile_mean(r)) for f, r in regrets.items() if r.isfinite().all()]


def _curve(comparison: Comparison, task: str, method: str) -> list[tuple[float, float]]:
    """Mean regrets by the power of ten of what the rate is over the best peak, in its order."""
    peak = comparison.entries[task, comparison.roles.rival].lr
    if peak is None:
        return []
    # Rounded, or the last rate of a grid might lie short of the factor that it stands for.
    powers = {
        round(math.log10(lr / peak), 2): regret
        for lr, regret in mean_regrets(comparison, task, method).items()
    }
    return list(powers.items())


def _at(curve: list[tuple[float, float]], factor: float) -> float:
    """On the lines between the points; NaN outside of them."""
    x = round(math.log10(factor), 2)
    for (left, low), (right, high) in pairwise(curve):
        if left <= x <= right:
            return low + (high - low) * (x - left) / (right - left)
    return math.nan


def mistuning_picture(comparison: Comparison) -> tuple[Picture, ...]:
    """All methods that were swept, over all tasks; nothing where none was."""
    look = styles(comparison.methods, comparison.roles)
    curves = {name: mistuned(comparison, name) for name in comparison.methods}
    curves = {name: curve for name, curve in curves.items() if len(curve) > 1}
    rival = comparison.roles.rival

    def draw(figure: Any) -> None:
        axes = figure.subplots()
        axes.axhline(1, color=INK, linewidth=0.8)
        lines = {}
        for name in reversed(curves):  # the subject, which is the first, on top
            factors, regrets = zip(*curves[name], strict=True)
            lines[name] = axes.plot(factors, list(map(math.exp, regrets)), **look[name])[0]
        axes.set_xscale("log")
        log_scale(axes)
        axes.set_xlabel(f"learning rate given, over the best peak of the {rival}")
        axes.set_ylabel(f"training loss, over the tuned {rival}'s")
        axes.grid(True)
        place = {"loc": "outside right center", "frameon": False, "handlelength": 2.6}
        figure.legend([lines[name] for name in curves], list(curves), **place)

    text = "What a wrong learning rate costs each method, over all tasks."
    if not curves:
        return ()
    return (Picture("mistuning", to_svg(draw, "mistuning", 8.2, 3.6), text),)
