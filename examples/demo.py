"""One line instead of a learning rate: the digits, four ways, against a tuned cosine.

`make demo` runs it. A small network learns scikit-learn's handwritten digits with a learning rate
of 1e-6 (far too small) and of 10 (far too large), each without and with `DQNLRCallback()`. The
rival is a cosine schedule with the best of 17 peaks in four decades; the price of that search is
counted. The script prints a table and writes `outputs/demo.png`.
"""

from __future__ import annotations

import argparse
import logging
import math
import time
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import torch
from lightning.pytorch import Callback, LightningModule, Trainer, seed_everything
from rich.console import Console
from rich.progress import track
from rich.table import Table
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_dqnlr import DQNLRCallback

EPOCHS = 20
BATCH_SIZE = 64
PEAKS = [10 ** (exponent / 4) for exponent in range(-16, 1)]


class Digits(LightningModule):
    """A network as a user would write it; `cosine` adds the rival schedule."""

    def __init__(self, lr: float, cosine: bool = False) -> None:
        super().__init__()
        self.lr = lr
        self.cosine = cosine
        self.net = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))

    def training_step(self, batch: list[torch.Tensor], batch_idx: int) -> torch.Tensor:
        images, labels = batch
        return nn.functional.cross_entropy(self.net(images), labels)

    def configure_optimizers(self) -> dict:
        optimizer = torch.optim.AdamW(self.parameters(), lr=self.lr)
        if not self.cosine:
            return {"optimizer": optimizer}
        steps = int(self.trainer.estimated_stepping_batches)
        warm_up = max(1, steps // 20)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda t: shape(t, warm_up, steps))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def shape(step: int, warm_up: int, steps: int) -> float:
    """Linear warm-up over 5% of the run, then a cosine to zero."""
    if step < warm_up:
        return (step + 1) / warm_up
    return 0.5 * (1 + math.cos(math.pi * (step - warm_up) / max(1, steps - warm_up)))


class Recorder(Callback):
    """Keeps the loss and the learning rate of every batch, for the picture."""

    def __init__(self) -> None:
        self.losses: list[float] = []
        self.rates: list[float] = []

    def on_before_optimizer_step(
        self, trainer: Trainer, module: LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        self.rates.append(optimizer.param_groups[0]["lr"])

    def on_train_batch_end(
        self, trainer: Trainer, module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self.losses.append(float(outputs["loss"]))


@dataclass
class Run:
    """One finished training."""

    name: str
    losses: list[float]
    rates: list[float]
    train_loss: float
    validation_loss: float
    seconds: float


def train(name: str, lr: float, *, callback: bool = False, cosine: bool = False) -> Run:
    """Trains one network from the same weights on the same batches."""
    seed_everything(0, verbose=False)
    train_set, validation_set = data()
    loader = DataLoader(train_set, BATCH_SIZE, shuffle=True, drop_last=True)
    module = Digits(lr, cosine)
    recorder = Recorder()
    # The recorder comes last: it is to see the learning rate that the first step will use.
    callbacks: list[Callback] = [DQNLRCallback(), recorder] if callback else [recorder]
    began = time.perf_counter()
    trainer = Trainer(
        max_epochs=EPOCHS,
        callbacks=callbacks,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, loader)
    return Run(
        name=name,
        losses=recorder.losses,
        rates=recorder.rates,
        seconds=time.perf_counter() - began,
        train_loss=evaluate(module, train_set),
        validation_loss=evaluate(module, validation_set),
    )


def data() -> tuple[TensorDataset, TensorDataset]:
    """1,437 digits to learn, 360 to validate."""
    images, labels = load_digits(return_X_y=True)
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    x = torch.tensor(images / 16, dtype=torch.float32)[order]
    y = torch.tensor(labels)[order]
    return TensorDataset(x[:1437], y[:1437]), TensorDataset(x[1437:], y[1437:])


@torch.no_grad()
def evaluate(module: Digits, part: TensorDataset) -> float:
    """Mean loss over a whole data set, in eval mode."""
    module.eval()
    return module.training_step(list(part.tensors), 0).item()


def tune_cosine() -> tuple[Run, float]:
    """The grid search that the callback saves; returns the best run and the total seconds."""
    runs = [
        train(f"cosine, tuned: peak {peak:.2g}", peak, cosine=True)
        for peak in track(PEAKS, description="tuning the cosine's peak")
    ]
    best = min(runs, key=lambda run: run.train_loss if run.train_loss > 0 else math.inf)
    return best, sum(run.seconds for run in runs)


def table(runs: list[Run], rival: Run, tuning_seconds: float) -> Table:
    """What a user would compare."""
    grid = Table(title=f"{len(rival.losses)} steps on the digits, AdamW")
    for column in ("learning rate", "train loss", "against tuned cosine", "val. loss", "seconds"):
        grid.add_column(column, justify="left" if column == "learning rate" else "right")
    for run in runs:
        seconds = f"{run.seconds:.1f}"
        if run is rival:
            seconds += f" ({tuning_seconds:.0f} with its grid)"
        ratio = run.train_loss / rival.train_loss - 1
        versus = "-" if run is rival else f"{ratio:+.0%}" if ratio < 10 else f"x{ratio + 1:.0f}"
        values = (f"{run.train_loss:.4f}", versus, f"{run.validation_loss:.4f}", seconds)
        style = "bold" if "callback" in run.name else None
        grid.add_row(run.name, *values, style=style)
    return grid


def plot(runs: list[Run], path: Path) -> None:
    """Smoothed losses above, learning rates below, both logarithmic."""
    colours = ["#b0b0b0", "#d08770", "#1f77b4", "#ffd23f", "#333333"]
    widths = [1.6, 1.6, 5.0, 1.6, 1.6]  # the two runs with the callback lie on each other
    figure, axes = plt.subplots(2, 1, figsize=(9, 7), sharex=True, layout="constrained")
    for run, colour, width in zip(runs, colours, widths, strict=True):
        dashes = "-" if "callback" in run.name else "--"
        style = {"color": colour, "linestyle": dashes, "linewidth": width}
        axes[0].plot(smooth(run.losses), label=run.name, **style)
        axes[1].plot(run.rates, **style)
    axes[0].set(yscale="log", ylabel="training loss (mean of 22 batches)")
    axes[1].set(yscale="log", ylabel="learning rate used", xlabel="step")
    axes[0].legend(loc="lower left", fontsize=8, framealpha=0.9)
    for axis in axes:
        axis.grid(alpha=0.25)
        axis.spines[["top", "right"]].set_visible(False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)


def smooth(values: list[float], window: int = 22) -> list[float]:
    """Running mean over one epoch."""
    sums = torch.tensor([0.0, *values], dtype=torch.float64).cumsum(0)
    return [
        ((sums[i + 1] - sums[max(0, i + 1 - window)]) / min(i + 1, window)).item()
        for i in range(len(values))
    ]


def main() -> None:
    """Runs the comparison."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--picture", type=Path, default=Path("outputs/demo.png"))
    path = parser.parse_args().picture
    warnings.filterwarnings("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    runs = [
        train("1e-6", 1e-6),
        train("10", 10.0),
        train("1e-6 + callback", 1e-6, callback=True),
        train("10 + callback", 10.0, callback=True),
    ]
    rival, seconds = tune_cosine()
    runs.append(rival)
    Console().print(table(runs, rival, seconds))
    plot(runs, path)
    print(f"Loss and learning-rate curves: {path}")


if __name__ == "__main__":
    main()
