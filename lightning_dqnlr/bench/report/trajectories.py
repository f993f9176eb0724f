"""Learning rates and losses over the steps of the runs, one thin line per seed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from lightning_dqnlr.bench.report.comparison import PLAIN, RIVAL, SUBJECT, Comparison, Runs
from lightning_dqnlr.bench.report.content import Picture, Section
from lightning_dqnlr.bench.report.drawing import add_legend, gallery, log_scale, picture, styles

_LR_RANGE = 3e4


def learning_rates_and_losses(comparison: Comparison) -> Section:
    named = dict.fromkeys((SUBJECT, RIVAL, PLAIN))
    methods = [name for name in named if name in comparison.methods]
    pictures = (_stacked(comparison, task, methods) for task in comparison.ranked)
    text = "Learning rate, training loss and validation loss; one line per seed."
    small = gallery(comparison, methods, "trajectories", pictures)
    return Section("Learning rates and losses", (text, small))


def _stacked(comparison: Comparison, task: str, methods: Sequence[str]) -> Picture:
    def draw(figure: Any) -> None:
        panels = figure.subplots(3, 1, sharex=True)
        _plot(comparison, task, methods, panels)
        panels[0].set_title(task)
        panels[2].set_xlabel("optimizer step")
        for panel, label in zip(panels, ("LR", "training", "validation"), strict=True):
            panel.set_ylabel(label)
        figure.align_ylabels()

    text = f"Learning rate, training and validation loss on {task}."
    return picture(f"trajectory-{task}", text, draw, width=3.7, height=4.3)


def side_by_side(comparison: Comparison, task: str, methods: Sequence[str]) -> Picture:
    def draw(figure: Any) -> None:
        panels = figure.subplots(1, 3)
        _plot(comparison, task, methods, panels)
        titles = ("learning rate", "training loss", "validation loss")
        for panel, title in zip(panels, titles, strict=True):
            panel.set(title=title, xlabel="optimizer step")
        add_legend(figure, comparison, methods, place="outside right upper")

    text = f"Learning rate and losses on {task}: {', '.join(methods)}."
    return picture(f"losing-{task}", text, draw, width=11.0, height=2.5)


def _plot(comparison: Comparison, task: str, methods: Sequence[str], panels: Sequence[Any]) -> None:
    look = styles(comparison)
    for panel, curve in zip(panels, ("lr", "train", "validation"), strict=True):
        for name in reversed(methods):
            if (task, name) in comparison.entries:
                _curves(panel, comparison.entries[task, name].runs, curve, look[name])
        log_scale(panel)
        panel.grid(True)
    bottom, top = panels[0].get_ylim()
    panels[0].set_ylim(max(bottom, top / _LR_RANGE), top)  # a schedule's last step is almost zero


def _curves(axes: Any, runs: Runs, curve: str, style: dict[str, Any]) -> None:
    thin = {**style, "linewidth": 0.5 * style["linewidth"], "alpha": 0.85}
    for run in runs:
        values = [math.nan if value is None else value for value in run.curve[curve]]
        axes.plot(run.curve["step"], values, **thin)
