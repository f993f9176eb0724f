"""`dqnlr demo`: a minute of training that shows what a user would look at.

A small network learns the next character of Python's own source code. The text is on every machine,
meta-training never reads these files, and one run sees a part of them once, so nothing is
memorised. Three rivals train it: Adam at 1e-3, a cosine schedule with the best of nine peaks, and
`DQNLRCallback()` at two absurd learning rates.
"""

from __future__ import annotations

import argparse
import logging
import math
import time
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm  # type: ignore[import-untyped]

from lightning_dqnlr import DQNLRCallback
from lightning_dqnlr.checks import check_integer
from lightning_dqnlr.cli.errors import errors_in_one_line
from lightning_dqnlr.errors import ConfigurationError, needs_package
from lightning_dqnlr.host.trace import write_figure
from lightning_dqnlr.tasks.data.examples import four_fifths
from lightning_dqnlr.tasks.data.text import VOCABULARY, encode, source_files

CONTEXT = 16  # characters that the network sees
BATCH_SIZE = 256
VALIDATION_WINDOWS = 8192
BEST_GUESS = 10**-2.5  # the middle of the cosine's peaks
COLUMNS = ("", "runs", "train loss", "val. loss", "val. accuracy", "seconds")

NEXT = """\
Next, in your own script:    Trainer(callbacks=[DQNLRCallback()])
on your own LightningModule: dqnlr bench suite=mine ...   (dqnlr bench --help)
when it does not fit:        "Use it when, leave it when" in the README"""


class NextCharacter(LightningModule):
    """A network as a user would write it; `cosine` adds the rival's schedule."""

    def __init__(self, lr: float, *, cosine: bool = False) -> None:
        super().__init__()
        self.lr = lr
        self.cosine = cosine
        self.net = nn.Sequential(
            nn.Embedding(VOCABULARY, 16),
            nn.Flatten(),
            nn.Linear(16 * CONTEXT, 128),
            nn.GELU(),
            nn.Linear(128, 128),
            nn.GELU(),
            nn.Linear(128, VOCABULARY),
        )

    def training_step(self, windows: Tensor, _: int) -> Tensor:
        """Cross-entropy of the last character of windows (batch, CONTEXT + 1)."""
        return nn.functional.cross_entropy(self.net(windows[:, :-1]), windows[:, -1])

    def validation_step(self, windows: Tensor, _: int) -> None:
        """Logs loss and accuracy."""
        scores = self.net(windows[:, :-1])
        self.log("val_loss", nn.functional.cross_entropy(scores, windows[:, -1]))
        self.log("val_accuracy", (scores.argmax(1) == windows[:, -1]).float().mean())

    def configure_optimizers(self) -> Any:
        """Adam, with or without a schedule."""
        optimizer = torch.optim.Adam(self.parameters(), lr=self.lr)
        if not self.cosine:
            return optimizer
        steps = int(self.trainer.estimated_stepping_batches)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: shape(step, steps))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def shape(step: int, steps: int) -> float:
    """A linear warm-up over 5% of the run, then a cosine to zero, as a share of the peak.

    Example:
        >>> shape(0, 100), shape(4, 100), round(shape(100, 100), 6)
        (0.2, 1.0, 0.0)
    """
    warm_up = max(1, steps // 20)
    if step < warm_up:
        return (step + 1) / warm_up
    return 0.5 * (1 + math.cos(math.pi * (step - warm_up) / max(1, steps - warm_up)))


class Windows(Dataset[Tensor]):
    """Batches of windows at random places of a text, int64 (batch, CONTEXT + 1) each."""

    def __init__(self, text: Tensor, batches: int, size: int, seed: int) -> None:
        places = torch.Generator().manual_seed(seed)
        self.text = text
        self.starts = torch.randint(len(text) - CONTEXT, (batches, size), generator=places)

    def __len__(self) -> int:
        return len(self.starts)

    def __getitem__(self, index: int) -> Tensor:
        return self.text[self.starts[index].unsqueeze(1) + torch.arange(CONTEXT + 1)]


class Recorder(Callback):
    """Keeps what the picture shows: the loss and the rate of each step, and each validation."""

    def __init__(self) -> None:
        self.losses: list[float] = []
        self.rates: list[float] = []
        self.validations: list[tuple[int, float]] = []  # step and loss
        self.accuracy = math.nan

    def on_before_optimizer_step(
        self, trainer: Trainer, pl_module: LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        """The rate that the step will use."""
        self.rates.append(optimizer.param_groups[0]["lr"])

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, *_: Any
    ) -> None:
        """The loss of the batch."""
        self.losses.append(outputs["loss"].item())

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """What the validation found."""
        metrics = trainer.callback_metrics
        self.validations.append((trainer.global_step, metrics["val_loss"].item()))
        self.accuracy = metrics["val_accuracy"].item()


class Run(NamedTuple):
    """One finished training."""

    recorder: Recorder
    seconds: float

    @property
    def validation_loss(self) -> float:
        """At the end of the run; infinite if it is not a number."""
        loss = self.recorder.validations[-1][1]
        return loss if math.isfinite(loss) else math.inf

    @property
    def train_loss(self) -> float:
        """Mean over the last tenth of the steps; the batches are new ones, so it is no memory."""
        last = self.recorder.losses[-max(1, len(self.recorder.losses) // 10) :]
        return sum(last) / len(last)


class Contestant(NamedTuple):
    """A row of the table: the run that is shown, and how many it took to find it."""

    name: str
    run: Run
    runs: int
    seconds: float

    @property
    def cells(self) -> tuple[str, ...]:
        """The row, as texts."""
        run = self.run
        losses = (f"{run.train_loss:.3f}", f"{run.validation_loss:.3f}")
        accuracy = f"{run.recorder.accuracy:.1%}"
        return (self.name, str(self.runs), *losses, accuracy, f"{self.seconds:.0f}")


class Demo:
    """The same network from the same weights on the same batches, over and over.

    Args:
        steps: of each run.
        seed: of weights and batches.

    Raises:
        ConfigurationError: for more steps than there is text.
    """

    def __init__(self, steps: int, seed: int) -> None:
        files = source_files("test")  # those of the two other splits shaped the bundled policy
        parts = [four_fifths(encode(path)) for path in files]
        text, unseen = (torch.cat(each) for each in zip(*parts, strict=True))
        check_integer("--steps", steps, 20, len(text) // BATCH_SIZE)  # each window once, about
        self.steps = steps
        self.seed = seed
        self.share = steps * BATCH_SIZE / len(text)  # of the windows that there are
        self.train = Windows(text, steps, BATCH_SIZE, seed)
        self.validation = Windows(unseen, 1, VALIDATION_WINDOWS, seed)

    def run(
        self, make_module: Callable[[], LightningModule], control: Callback | None = None
    ) -> Run:
        """Trains once, with or without a callback that controls the learning rate."""
        torch.manual_seed(self.seed)
        recorder = Recorder()
        began = time.perf_counter()
        trainer = Trainer(
            max_epochs=1,
            # The recorder comes last: it is to see the rate that the step will use.
            callbacks=[recorder] if control is None else [control, recorder],
            val_check_interval=max(1, self.steps // 20),
            accelerator="cpu",
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            num_sanity_val_steps=0,
        )
        seen = DataLoader(self.train, batch_size=None)
        unseen = DataLoader(self.validation, batch_size=None)
        trainer.fit(make_module(), seen, unseen)
        return Run(recorder, time.perf_counter() - began)


def compare(demo: Demo, peaks: Sequence[float]) -> list[Contestant]:
    """All runs, with a bar on stderr while they last."""
    bar = tqdm(total=len(peaks) + 3, desc="training", unit="run", leave=False)

    def made(lr: float, control: Callback | None = None, *, cosine: bool = False) -> Run:
        run = demo.run(partial(NextCharacter, lr, cosine=cosine), control)
        bar.update()
        return run

    with bar:
        adam = made(1e-3)
        low, high = (made(lr, DQNLRCallback()) for lr in (1e-6, 10.0))
        grid = {peak: made(peak, cosine=True) for peak in peaks}
    best = min(grid, key=lambda peak: grid[peak].validation_loss)
    searched = sum(run.seconds for run in grid.values())
    tuned = f"cosine, best of {len(grid)} peaks: {best:.2g}"
    return [
        Contestant("Adam at 1e-3", adam, 1, adam.seconds),
        Contestant(tuned, grid[best], len(grid), searched),
        Contestant("DQNLRCallback(), given 1e-6", low, 1, low.seconds),
        Contestant("DQNLRCallback(), given 10", high, 1, high.seconds),
    ]


def table(contestants: Sequence[Contestant]) -> str:
    """The rows in columns, numbers to the right."""
    rows = [COLUMNS, *(each.cells for each in contestants)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]) for row in rows
    )


def draw(contestants: Sequence[Contestant], path: Path) -> None:
    """Validation loss and learning rate along the run, in the format of the path's suffix.

    Raises:
        ConfigurationError: if matplotlib is not installed, or the file cannot be written.
    """
    with needs_package("the picture", "matplotlib", "plot"):
        from matplotlib.figure import Figure
    looks = (("#8a8a8a", "-", 1.5), ("#0072b2", "-", 1.8), ("#d55e00", "-", 4.5))
    figure = Figure(figsize=(9.6, 3.8), layout="constrained")
    losses, rates = figure.subplots(1, 2)
    # The last run lies upon the one before: a thin dark line in a thick bright one shows both.
    for each, look in zip(contestants, (*looks, ("#1b1b1b", (0, (2, 2)), 1.2)), strict=True):
        style = dict(zip(("color", "linestyle", "linewidth"), look, strict=True))
        losses.plot(*zip(*each.run.recorder.validations, strict=True), label=each.name, **style)
        rates.plot(each.run.recorder.rates, **style)
    losses.set(xlabel="step", ylabel="validation loss", ylim=_limits(contestants))
    rates.set(xlabel="step", ylabel="learning rate used", yscale="log", ylim=(1e-5, None))
    losses.legend(frameon=False, fontsize="small")
    for axes in (losses, rates):
        axes.grid(True, color="0.9")
        axes.spines[["top", "right"]].set_visible(False)
    write_figure(figure, path)


def _limits(contestants: Sequence[Contestant]) -> tuple[float, float]:
    """From below the best end to the first validation: no run that has blown up spoils the axis."""
    lowest = min(each.run.validation_loss for each in contestants)
    first = [each.run.recorder.validations[0][1] for each in contestants]
    return 0.97 * lowest, min(1.02 * max(first), 2.5 * lowest)


def _quiet() -> None:
    """Nothing but our own lines: what Lightning says of a Trainer would drown them."""
    warnings.filterwarnings("ignore")
    for name in ("lightning", "lightning.pytorch", "lightning.fabric", "lightning_dqnlr"):
        logging.getLogger(name).setLevel(logging.ERROR)


def _show(demo: Demo, contestants: Sequence[Contestant], picture: Path) -> None:
    weights = sum(each.numel() for each in NextCharacter(1.0).parameters())
    print(
        f"\n{weights:,} weights learn the next character of Python's own source code with Adam:\n"
        f"{demo.steps} steps of {BATCH_SIZE} windows. They are {demo.share:.0%} of the text, seen "
        f"once, so nothing is memorised.\n\n{table(contestants)}\n"
    )
    try:
        draw(contestants, picture)
        print(f"Validation loss and learning rate, step by step: {picture}\n")
    except ConfigurationError as error:
        print(f"No picture: {error}\n")
    print(NEXT)


def demo() -> None:
    """The command `dqnlr demo`."""
    parser = argparse.ArgumentParser(prog="dqnlr demo", description=__doc__.split("\n\n")[1])
    parser.add_argument("--steps", type=int, default=600, help="of each run (default 600)")
    parser.add_argument("--peaks", type=int, default=9, help="of the cosine (default 9)")
    parser.add_argument("--seed", type=int, default=0, help="of weights and batches (default 0)")
    parser.add_argument("--picture", type=Path, default=Path("outputs/demo.png"), help="its file")
    arguments = parser.parse_args()
    with errors_in_one_line("nothing was kept, and it takes about a minute"):
        check_integer("--steps", arguments.steps, 20)  # `Demo` knows the most
        check_integer("--peaks", arguments.peaks, 1)
        check_integer("--seed", arguments.seed, 0, 2**63 - 1)
        _quiet()
        torch.set_num_threads(1)  # the layers are small: more threads would wait for each other
        made = Demo(arguments.steps, arguments.seed)
        middle = (arguments.peaks - 1) / 2
        peaks = [BEST_GUESS * 10 ** ((k - middle) / 4) for k in range(arguments.peaks)]
        _show(made, compare(made, peaks), arguments.picture)
