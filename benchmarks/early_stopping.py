"""Ends of runs that nobody has planned: EarlyStopping under a generous `max_epochs`.

    python benchmarks/early_stopping.py --result early.json

Six tasks with few data, each with its usual optimizer and learning rate, in real Trainers. The
callback is compared with a constant rate and with ReduceLROnPlateau (half of the patience, a tenth
of the rate). All stop by the same EarlyStopping. What counts is the best validation loss, as
ModelCheckpoint would keep it, and the number of epochs. With `--turned` nothing stops a run: five
constant rates, over two decades, against the callback, which follows the validation loss by
`validate`.
"""

from __future__ import annotations

import argparse
import json
import logging
import statistics
import warnings
from collections.abc import Callable, Iterator
from itertools import pairwise, product
from pathlib import Path
from typing import Any, NamedTuple

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import EarlyStopping
from sklearn import datasets
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset
from tqdm import tqdm

from lightning_dqnlr import DQNLRCallback
from lightning_dqnlr.files import write_atomically
from lightning_dqnlr.tasks.data.text import source_files

RATES = (0.1, 0.316, 1.0, 3.16, 10.0)  # of the constant rates with `--turned`, times the usual
_CONTEXT = 32  # characters


class Problem(NamedTuple):
    """A task: its data (inputs, targets), how many of them train, network, loss and optimizer."""

    data: Callable[[], tuple[Tensor, Tensor]]
    training: int
    net: Callable[[], nn.Module]
    loss: Callable[[Tensor, Tensor], Tensor]
    optimizer: Callable[..., torch.optim.Optimizer]
    lr: float
    batch: int
    max_epochs: int


def mlp(*widths: int, dropout: float = 0.0) -> nn.Module:
    """Linear layers with ReLU between them."""
    layers: list[nn.Module] = []
    for before, after in pairwise(widths):
        layers += [nn.Linear(before, after), nn.ReLU(), nn.Dropout(dropout)]
    return nn.Sequential(*layers[:-2])


def convolutions() -> nn.Module:
    """A small convolutional network with BatchNorm and dropout for images of 8 x 8."""
    first = [nn.Unflatten(1, (1, 8, 8)), nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16)]
    second = [nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(16, 32, 3, padding=1), nn.BatchNorm2d(32)]
    last = [nn.ReLU(), nn.Flatten(), nn.Dropout(0.3), nn.Linear(512, 10)]
    return nn.Sequential(*first, *second, *last)


class Characters(nn.Module):
    """A GRU that predicts the next character."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(128, 32)
        self.gru = nn.GRU(32, 96, batch_first=True)
        self.output = nn.Linear(96, 128)

    def forward(self, codes: Tensor) -> Tensor:
        """Codes (batch, time) -> scores (batch, 128, time)."""
        return self.output(self.gru(self.embedding(codes))[0]).transpose(1, 2)


def table(load: Callable[..., Any], classes: bool) -> tuple[Tensor, Tensor]:
    """A table of scikit-learn with standardised columns."""
    inputs, targets = load(return_X_y=True)
    columns = torch.tensor(inputs, dtype=torch.float32)
    labels = torch.tensor(targets)
    return standard(columns), labels.long() if classes else standard(labels.float()[:, None])


def standard(values: Tensor) -> Tensor:
    """Each column with mean 0 and standard deviation 1."""
    return (values - values.mean(0)) / (values.std(0) + 1e-6)


def friedman() -> tuple[Tensor, Tensor]:
    """A regression with noise (Friedman 1991)."""
    inputs, targets = datasets.make_friedman1(2500, 10, noise=1.0, random_state=0)
    return standard(torch.tensor(inputs).float()), standard(torch.tensor(targets).float()[:, None])


def text() -> tuple[Tensor, Tensor]:
    """Forty thousand characters of the standard library, in windows."""
    content = b"".join(path.read_bytes() for path in source_files("train")[:2])[:40_000]
    codes = torch.tensor([min(byte, 127) for byte in content])
    windows = codes[: len(codes) // (_CONTEXT + 1) * (_CONTEXT + 1)].view(-1, _CONTEXT + 1)
    return windows[:, :-1], windows[:, 1:]


PROBLEMS = {
    "digits MLP": Problem(
        lambda: table(datasets.load_digits, classes=True), 700, lambda: mlp(64, 128, 128, 10),
        functional.cross_entropy, torch.optim.Adam, 1e-3, 32, 200,
    ),
    "digits CNN": Problem(
        lambda: table(datasets.load_digits, classes=True), 600, convolutions,
        functional.cross_entropy, torch.optim.AdamW, 1e-3, 32, 150,
    ),
    "diabetes": Problem(
        lambda: table(datasets.load_diabetes, classes=False), 300, lambda: mlp(10, 64, 64, 1),
        functional.mse_loss, torch.optim.Adam, 1e-3, 16, 300,
    ),
    "breast cancer": Problem(
        lambda: table(datasets.load_breast_cancer, classes=True), 350,
        lambda: mlp(30, 64, 64, 2, dropout=0.1), functional.cross_entropy,
        lambda parameters, lr: torch.optim.SGD(parameters, lr, momentum=0.9), 1e-2, 16, 300,
    ),
    "friedman": Problem(
        friedman, 1500, lambda: mlp(10, 128, 128, 1), functional.mse_loss, torch.optim.AdamW,
        1e-3, 32, 200,
    ),
    "characters": Problem(
        text, 960, Characters, functional.cross_entropy, torch.optim.Adam, 2e-3, 32, 120,
    ),
}  # fmt: skip


class Learner(LightningModule):
    """Trains a problem's network; logs `val_loss`."""

    def __init__(self, problem: Problem, factor: float, patience: int | None) -> None:
        super().__init__()
        self.problem = problem
        self.net = problem.net()
        self.factor = factor
        self.plateau_patience = patience  # None for no ReduceLROnPlateau

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        """The loss of a batch."""
        return self.problem.loss(self.net(batch[0]), batch[1])

    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
        """Logs the loss of all validation examples at once."""
        self.log("val_loss", self.problem.loss(self.net(batch[0]), batch[1]))

    def configure_optimizers(self) -> Any:
        """The usual optimizer at the usual rate, times `factor`."""
        optimizer = self.problem.optimizer(self.parameters(), lr=self.problem.lr * self.factor)
        if self.plateau_patience is None:
            return optimizer
        plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(
            optimizer, factor=0.1, patience=self.plateau_patience
        )
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": plateau, "monitor": "val_loss"},
        }


class Scores(Callback):
    """Notes the validation loss of every epoch."""

    def __init__(self) -> None:
        self.losses: list[float] = []

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Reads what has been logged."""
        self.losses.append(float(trainer.callback_metrics["val_loss"]))


class Setting(NamedTuple):
    """One run: of which task, how, and with which seed."""

    task: str
    method: str
    seed: int
    patience: int
    factor: float = 1.0
    ceiling: float = 1.0  # times the task's `max_epochs`


def train(setting: Setting, turned: bool = False) -> dict[str, Any]:
    """Makes a run; returns its setting and validation losses."""
    problem = PROBLEMS[setting.task]
    inputs, targets = problem.data()
    order = torch.randperm(len(inputs), generator=torch.Generator().manual_seed(0))
    own, held_out = order[: problem.training], order[problem.training :]
    torch.manual_seed(setting.seed)
    plateau = max(1, setting.patience // 2) if setting.method == "plateau" else None
    module = Learner(problem, setting.factor, plateau)
    scores = Scores()
    callbacks: list[Callback] = [scores]
    if setting.method == "dqnlr":
        callbacks.append(DQNLRCallback(validate="val_loss" if turned else None))
    if not turned:
        callbacks.append(EarlyStopping("val_loss", patience=setting.patience))
    trainer = Trainer(
        max_epochs=round(problem.max_epochs * setting.ceiling),
        callbacks=callbacks,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        accelerator="cpu",
        num_sanity_val_steps=0,
    )
    fitted = DataLoader(TensorDataset(inputs[own], targets[own]), problem.batch, shuffle=True)
    held = TensorDataset(inputs[held_out], targets[held_out])
    checked = DataLoader(held, len(held))
    trainer.fit(module, fitted, checked)
    losses = list(scores.losses)
    trainer.validate(module, checked, verbose=False)  # with the weights that the run ends with
    summary = {"best": min(losses), "last": scores.losses[-1], "epochs": len(losses)}
    return {**setting._asdict(), **summary, "losses": [round(loss, 6) for loss in losses]}


def settings(arguments: argparse.Namespace) -> Iterator[Setting]:
    """All runs that are asked for."""
    seeds = range(arguments.seeds)
    if arguments.turned:
        for task, seed in product(arguments.tasks, seeds):
            yield Setting(task, "dqnlr", seed, 0, ceiling=arguments.ceiling)
            for factor in RATES:
                yield Setting(task, "constant", seed, 0, factor, arguments.ceiling)
        return
    for task, patience, seed in product(arguments.tasks, (5, 10), seeds):
        for method in ("constant", "plateau", "dqnlr"):
            yield Setting(task, method, seed, patience, ceiling=arguments.ceiling)


def median_of(runs: list[dict[str, Any]], key: str, **chosen: Any) -> float:
    """The median of a figure over the runs of a kind."""
    kind = [run[key] for run in runs if all(run[name] == chosen[name] for name in chosen)]
    return statistics.median(kind)


def report(runs: list[dict[str, Any]]) -> str:
    """A table of medians over seeds, and the callback's best over the better of the rivals'."""
    lines = [
        "| task | patience | constant | plateau | callback | ratio | epochs |",
        "| --- | ---: | ---: | ---: | ---: | ---: | --- |",
    ]
    ratios = []
    for task, patience in sorted({(run["task"], run["patience"]) for run in runs}):
        names = ("constant", "plateau", "dqnlr")
        same = {"task": task, "patience": patience}
        bests = [median_of(runs, "best", method=name, **same) for name in names]
        epochs = [f"{median_of(runs, 'epochs', method=name, **same):.0f}" for name in names]
        ratios.append(bests[2] / min(bests[:2]))
        cells = [f"{best:.4g}" for best in bests] + [f"{ratios[-1]:.3f}", ", ".join(epochs)]
        lines.append(f"| {task} | {patience} | " + " | ".join(cells) + " |")
    lines.append(f"\nratio: median {statistics.median(ratios):.3f}, worst {max(ratios):.3f}")
    return "\n".join(lines)


def report_turned(runs: list[dict[str, Any]]) -> str:
    """The callback against the constant rate that is best at its best checkpoint."""
    lines = [
        "| task | best constant | callback | ratio | last over best |",
        "| --- | ---: | ---: | ---: | ---: |",
    ]
    for task in sorted({run["task"] for run in runs}):
        rivals = [
            median_of(runs, "best", task=task, method="constant", factor=f)
            for f in sorted({run["factor"] for run in runs if run["method"] == "constant"})
        ]
        own = [run for run in runs if run["task"] == task and run["method"] == "dqnlr"]
        best = median_of(own, "best")
        last = statistics.median(run["last"] / run["best"] for run in own)
        cells = [f"{min(rivals):.4g}", f"{best:.4g}", f"{best / min(rivals):.3f}", f"{last:.3f}"]
        lines.append(f"| {task} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    """Makes the runs, writes them after each, and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tasks", nargs="+", choices=PROBLEMS, default=list(PROBLEMS))
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--ceiling", type=float, default=1.0, help="times a task's max_epochs")
    parser.add_argument("--turned", action="store_true", help="without EarlyStopping")
    parser.add_argument("--result", type=Path)
    arguments = parser.parse_args()
    for name in ("lightning_dqnlr", "lightning.pytorch"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore")
    runs = []
    for setting in tqdm(list(settings(arguments)), desc="runs"):
        runs.append(train(setting, arguments.turned))
        if arguments.result:
            write_atomically(arguments.result, json.dumps(runs).encode())
    print((report_turned if arguments.turned else report)(runs))


if __name__ == "__main__":
    main()
