"""The pictures of README and documentation, drawn from the records and from runs of today's code.

    python benchmarks/pictures.py              # all: half a minute on two cores
    python benchmarks/pictures.py mistuning    # one of them

`mistuning` is what a wrong learning rate costs. It takes the records that ship with the repository.
`floors` takes the contract of `lint-imports`, `libraries` the runs of `examples/libraries`.
`memory` is five runs of the same network.
`run` and `blow_up` are runs of the network of `dqnlr demo`.
"""

from __future__ import annotations

import argparse
import json
import logging
import math
import re
import statistics
import tempfile
import warnings
from functools import partial
from pathlib import Path
from typing import Any

import tomllib
import torch
from hydra import compose, initialize_config_module
from hydra.utils import instantiate
from matplotlib.patches import Rectangle

from lightning_dqnlr import DQNLRCallback
from lightning_dqnlr.bench.methods import with_policies
from lightning_dqnlr.bench.report.comparison import Comparison
from lightning_dqnlr.bench.report.content import Picture
from lightning_dqnlr.bench.report.drawing import picture
from lightning_dqnlr.bench.report.sensitivity import mistuned
from lightning_dqnlr.bench.runs.archive import Archive, Store
from lightning_dqnlr.bench.runs.suite import plan
from lightning_dqnlr.bench.tasks import TASKS
from lightning_dqnlr.cli.demo import Demo, NextCharacter
from lightning_dqnlr.cli.memory import models_of
from lightning_dqnlr.files import write_atomically
from lightning_dqnlr.memory.folder import Memory
from lightning_dqnlr.memory.picture import draw_runs
from lightning_dqnlr.svg import INK, standalone

ROOT = Path(__file__).parents[1]
OURS, THEIRS, PLAIN = "#d55e00", "#0072b2", "#8a8a8a"
PLACES = (-0.27, -0.09, 0.09, 0.27)  # of the four arms beside a library's line
BEYOND = 3.0  # figures further off are drawn there, those of diverged runs too
POISONED = 300  # the step before which the weights are destroyed
LINES = {
    "constant": ("constant rate", "#8a8a8a", "-"),
    "plateau": ("ReduceLROnPlateau", "#b07d00", (0, (6, 2))),
    "wsd": ("warm-up, hold, decay", "#56b4e9", (0, (1.5, 1.2))),
    "cosine": ("cosine", THEIRS, "-"),
}


def shipped() -> Comparison:
    """The comparison of the records in the repository, as `dqnlr-bench suite=shipped` reads it."""
    with initialize_config_module("lightning_dqnlr.conf", version_base="1.3"):
        suite = instantiate(compose("bench", ["suite=shipped"]).suite)
    with tempfile.TemporaryDirectory() as folder:
        store = Store(folder, Archive(ROOT / "benchmarks/records"))
        found = [store.get(run.key) for run in plan(suite, TASKS, with_policies({}))]
    return Comparison([each for each in found if each], race_margin=suite.race_margin)


def mistuning() -> Picture:
    """Final training loss against the rate that was given, both relative to the best cosine's."""
    comparison = shipped()

    def draw(figure: Any) -> None:
        axes = figure.subplots()
        for name, (label, colour, dash) in LINES.items():
            curve = mistuned(comparison, name)
            losses = [math.exp(regret) for regret in curve.values()]
            axes.plot(list(curve), losses, color=colour, linestyle=dash, linewidth=1.8, label=label)
        ours = mistuned(comparison, "dqnlr")
        losses = [math.exp(regret) for regret in ours.values()]
        axes.plot(list(ours), losses, color=OURS, linewidth=4)
        axes.text(1.3e-3, 0.83, "DQNLRCallback()", color=OURS, weight="bold", fontsize=11)
        axes.set(xscale="log", yscale="log", ylim=(0.75, 12), xlim=(9e-4, 11))
        axes.set_xticks([1e-3, 1e-2, 1e-1, 1, 10], ["1/1000", "1/100", "1/10", "best", "x 10"])
        axes.set_yticks([1, 2, 5, 10], ["best", "x 2", "x 5", "x 10"])
        axes.minorticks_off()
        axes.set_xlabel("learning rate in the optimizer, relative to the cosine's best")
        axes.set_ylabel("final training loss, relative to that")
        axes.grid(True)
        axes.legend(frameon=False, loc="upper center", fontsize=9)

    return picture("mistuning", "What a wrong learning rate costs.", draw, width=7.4, height=3.8)


def run() -> Picture:
    """A run's learning rate, with what decides it in each part."""
    found = Demo(600, 0).run(partial(NextCharacter, 1e-6), DQNLRCallback())
    validations = found.recorder.validations
    notes = (
        (10, 4e-6, "safe start, then the\npolicy climbs"),
        (200, 1.6e-2, "the policy holds, raises or cuts"),
        (445, 1.6e-2, "built-in decay,\nlast 30%"),
    )

    def draw(figure: Any) -> None:
        rates, losses = figure.subplots(2, 1, sharex=True)
        rates.plot(found.recorder.rates, color=OURS, linewidth=2.2, drawstyle="steps-post")
        for step, rate, text in notes:
            rates.text(step, rate, text, color=INK, fontsize=9)
        for axes in (rates, losses):
            axes.axvspan(420, 600, color=THEIRS, alpha=0.1, linewidth=0)
            axes.grid(True)
        rates.set(yscale="log", ylabel="learning rate", ylim=(2e-6, 1e-1), xlim=(0, 600))
        losses.plot(found.recorder.losses, color=PLAIN, linewidth=0.8, label="training, each batch")
        losses.plot(*zip(*validations, strict=True), color=OURS, linewidth=2.2, label="validation")
        losses.set(ylabel="loss", xlabel="optimizer step")
        losses.legend(frameon=False)

    return picture("run", "Learning rate and losses of a run.", draw, width=7.4, height=4.6)


class Poisoned(NextCharacter):
    """Its weights become thirty times as large in the middle of the run."""

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """The blow-up."""
        if batch_idx == POISONED:
            with torch.no_grad():
                for weight in self.parameters():
                    weight.mul_(30)


def blow_up() -> Picture:
    """The same blow-up with and without the circuit breaker."""
    demo = Demo(600, 0)
    controls = {"undone": None, "circuit_breaker=False": False}
    found = {
        name: demo.run(partial(Poisoned, 1e-6), DQNLRCallback(circuit_breaker=breaker))
        for name, breaker in controls.items()
    }

    def draw(figure: Any) -> None:
        losses, rates = figure.subplots(2, 1, sharex=True)
        looks = zip(found.items(), (OURS, PLAIN), (2.0, 1.2), strict=True)
        for (name, each), colour, width in looks:
            losses.plot(each.recorder.losses, color=colour, linewidth=width, label=name)
            rates.plot(each.recorder.rates, color=colour, linewidth=width, drawstyle="steps-post")
        losses.set(yscale="log", ylabel="training loss", xlim=(0, 600))
        losses.legend(frameon=False)
        losses.annotate(
            "weights x 30",
            (POISONED, 20),
            (170, 100),
            color=INK,
            arrowprops={"arrowstyle": "->", "color": INK},
        )
        rates.set(yscale="log", ylabel="learning rate", xlabel="optimizer step", ylim=(1e-4, None))
        for axes in (losses, rates):
            axes.grid(True)

    return picture("blow_up", "A blow-up, undone and not.", draw, width=7.4, height=4.4)


def memory() -> Picture:
    """Five runs of one model with a memory, and the next one that it proposes."""
    with tempfile.TemporaryDirectory() as folder:
        for seed in range(5):
            callback = DQNLRCallback(memory=folder, validate="val_loss")
            Demo(600, seed).run(partial(NextCharacter, 1e-3), callback)
        ((_, _, suggestion),) = models_of(Memory(folder))

    def draw(figure: Any) -> None:
        axes = figure.subplots()
        draw_runs(axes, suggestion)
        axes.set_ylabel("best validation loss")

    return picture("memory", "Five runs that remember, and the next.", draw, width=7.4, height=3.8)


def floors() -> Picture:
    """The rooms by floor, as the contract of `lint-imports` in pyproject.toml has them."""
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]
    layers = [re.findall(r"\w+", layer) for layer in contracts["contracts"][0]["layers"]]

    def draw(figure: Any) -> None:
        axes = figure.subplots()
        for height, rooms in enumerate(reversed(layers)):
            width = 1 / len(rooms)
            for place, room in enumerate(rooms):
                box = (place * width + 0.01, height + 0.1), width - 0.02, 0.75
                axes.add_patch(Rectangle(*box, facecolor=THEIRS, alpha=0.16, edgecolor=THEIRS))
                axes.text((place + 0.5) * width, height + 0.47, room, ha="center", va="center")
        axes.annotate(
            "imports",
            xy=(1.06, 0.1),
            xytext=(1.06, len(layers) - 0.2),
            ha="center",
            arrowprops={"arrowstyle": "->", "color": INK},
        )
        axes.set(xlim=(-0.01, 1.13), ylim=(0, len(layers)))
        axes.axis("off")

    return picture("floors", "The rooms of the package.", draw, width=6.4, height=3.8)


def libraries() -> Picture:
    """Each run of public libraries over the median of their default, by arm."""
    runs = json.loads((ROOT / "examples/libraries/results.json").read_text())
    names = sorted({run["library"] for run in runs})
    colours = {"default": PLAIN, "callback": OURS, "3x": "#56b4e9", "10x": THEIRS}

    def figures(name: str, arm: str) -> list[float]:
        chosen = [run for run in runs if (run["library"], run["arm"]) == (name, arm)]
        found = [next(iter(run["figures"].values()), None) for run in chosen]
        return [math.inf if figure is None else figure for figure in found]

    def draw(figure: Any) -> None:
        axes = figure.subplots()
        for y, name in enumerate(names):
            usual = statistics.median(figures(name, "default"))
            for (arm, colour), place in zip(colours.items(), PLACES, strict=True):
                ratios = [min(value / usual, BEYOND) for value in figures(name, arm)]
                heights = [y + place] * len(ratios)
                axes.plot(ratios, heights, "o", color=colour, markersize=4, alpha=0.45)
                middle = statistics.median(ratios)
                label = arm if y == 0 else None
                axes.plot([middle], [y + place], "|", color=colour, ms=13, mew=3, label=label)
        axes.axvline(1, color=INK, linewidth=0.8)
        axes.set_xlabel("error or loss, relative to the default's median")
        axes.set_yticks(range(len(names)), names)
        axes.grid(True, axis="x")
        axes.legend(frameon=False, loc="upper right", ncols=2)
        axes.invert_yaxis()

    height = 1.2 + 0.6 * len(names)
    return picture("libraries", "Libraries with and without.", draw, width=7.4, height=height)


PICTURES = {
    "floors": (floors, "docs/pictures/floors.svg"),
    "libraries": (libraries, "docs/pictures/libraries.svg"),
    "mistuning": (mistuning, "docs/mistuning.svg"),
    "run": (run, "docs/pictures/run.svg"),
    "blow_up": (blow_up, "docs/pictures/blow-up.svg"),
    "memory": (memory, "docs/pictures/memory.svg"),
}


def main() -> None:
    """Draws what is named, or everything."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(PICTURES))
    names = parser.parse_args().names or list(PICTURES)
    warnings.filterwarnings("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    torch.set_num_threads(1)
    for name in names:
        draw, place = PICTURES[name]
        print(write_atomically(ROOT / place, standalone(draw().svg).encode()))


if __name__ == "__main__":
    main()
