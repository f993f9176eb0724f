"""What `DQNLRCallback` costs, as ratios within one run.

    python benchmarks/overhead.py
    python benchmarks/overhead.py --device cuda

Prints (1) the callback's share of the step time of a model of a million parameters, (2) its host
time per batch on a tiny model. The share is measured within one run, by a clock around everything
that the callback does. A longer run pays less per step, because it has as many decisions. Beside
it, runs with and without the callback alternate; that figure is the median of the paired ratios,
because the machine's speed drifts. It still differs by several percent from one call to the next.
"""

from __future__ import annotations

import argparse
import itertools
import logging
import platform
import time
import warnings
from collections.abc import Callable, Iterator
from statistics import median
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import nn
from torch.utils.data import DataLoader, IterableDataset

from lightning_dqnlr import DQNLRCallback

MILLION = 956  # width of a model with 64 w + w^2 + 12 w + 10 = 986,602 parameters
TINY = 16


class Regression(LightningModule):
    """A multilayer perceptron of a chosen width."""

    def __init__(self, width: int) -> None:
        super().__init__()
        layers = (nn.Linear(64, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU())
        self.net = nn.Sequential(*layers, nn.Linear(width, 10))

    def training_step(self, batch: list[torch.Tensor], batch_idx: int) -> torch.Tensor:
        return nn.functional.mse_loss(self.net(batch[0]), batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=1e-3)


class Batches(IterableDataset):
    """The same batch for ever: the data loader's cost would only dilute the ratio."""

    def __init__(self, *tensors: torch.Tensor) -> None:
        self.tensors = list(tensors)

    def __iter__(self) -> Iterator[list[torch.Tensor]]:
        return itertools.repeat(self.tensors)


class Clocked(DQNLRCallback):
    """Adds up the seconds spent within the callback, its hook on the optimizer included."""

    seconds = 0.0

    def on_train_start(self, *arguments: Any) -> None:
        """The driver exists from here on."""
        self._clocked(super().on_train_start)(*arguments)
        (driver,) = self._control.drivers
        driver.after_step = self._clocked(driver.after_step)

    def on_before_optimizer_step(self, *arguments: Any) -> None:
        """Before each step."""
        self._clocked(super().on_before_optimizer_step)(*arguments)

    def on_train_batch_end(self, *arguments: Any) -> None:
        """After each batch."""
        self._clocked(super().on_train_batch_end)(*arguments)

    def _clocked(self, method: Callable[..., Any]) -> Callable[..., Any]:
        def clocked(*arguments: Any) -> Any:
            began = time.perf_counter()
            try:
                return method(*arguments)
            finally:
                self.seconds += time.perf_counter() - began

        return clocked


def seconds_per_step(width: int, steps: int, device: str, *callbacks: Callback) -> float:
    """Wall-clock time of the step of a Trainer with nothing else to pay for."""
    torch.manual_seed(0)
    batch = TINY if width == TINY else 128
    data = Batches(torch.randn(batch, 64, device=device), torch.randn(batch, 10, device=device))
    trainer = Trainer(
        max_steps=steps,
        max_epochs=-1,
        callbacks=list(callbacks),
        accelerator=device,
        devices=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    began = time.perf_counter()
    trainer.fit(Regression(width), DataLoader(data, batch_size=None))
    if device == "cuda":
        torch.cuda.synchronize()
    return (time.perf_counter() - began) / steps


def paired(width: int, steps: int, device: str, repeats: int) -> str:
    """Median step time without, and medians of the paired ratios and differences."""
    seconds_per_step(width, max(20, steps // 20), device, DQNLRCallback())  # warm-up
    without, ratios, extra = [], [], []
    for repeat in range(repeats):
        seconds = {}
        for with_it in (False, True) if repeat % 2 == 0 else (True, False):
            callbacks = [DQNLRCallback()] if with_it else []
            seconds[with_it] = seconds_per_step(width, steps, device, *callbacks)
        without.append(seconds[False])
        ratios.append(seconds[True] / seconds[False])
        extra.append(seconds[True] - seconds[False])
    return (
        f"{1e6 * median(without):.0f} us per step, x{median(ratios):.4f} with callback, "
        f"{1e6 * median(extra):+.0f} us per step"
    )


def main() -> None:
    """Prints both figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    arguments = parser.parse_args()
    device, repeats = arguments.device, arguments.repeats
    warnings.filterwarnings("ignore")
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)
    torch.set_num_threads(arguments.threads)
    where = torch.cuda.get_device_name() if device == "cuda" else platform.machine()
    print(f"{where}, {arguments.threads} threads, torch {torch.__version__}")
    for steps in (arguments.steps, 5 * arguments.steps):
        callback = Clocked()
        each = seconds_per_step(MILLION, steps, device, callback)
        spent = callback.seconds / steps / each
        print(f"a million parameters, {steps} steps: {spent:.2%} of {1e3 * each:.2f} ms per step")
    print(f"a million parameters: {paired(MILLION, arguments.steps, device, repeats)}")
    torch.set_num_threads(1)  # a tiny model's kernels do not pay for a second thread
    for steps in (arguments.steps, 5 * arguments.steps, 10 * arguments.steps):
        print(f"tiny model, {steps} steps: {paired(TINY, steps, device, repeats)}")


if __name__ == "__main__":
    main()
