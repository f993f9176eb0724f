"""What `DQNLRCallback` costs, as ratios within one run.

    python benchmarks/overhead.py
    python benchmarks/overhead.py --device cuda

Prints (1) the callback's share of the step time of a model of a million parameters, (2) its host
time per batch on a tiny model. The share is measured within one run, by a clock around everything
that the callback does: its decisions are as many in a run of any length, so that longer runs pay
less per step. Beside it, runs with and without the callback alternate; that figure is the median
of the paired ratios, because the machine's speed drifts, and still differs by several percent from
one call to the next.
"""

from __future__ import annotations

import argparse
import logging
import platform
import statistics
import time
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import nn
from torch.utils.data import DataLoader

from lightning_dqnlr import DQNLRCallback


class Regression(LightningModule):
    """A multilayer perceptron of a chosen width."""

    def __init__(self, width: int, inputs: int = 64) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Linear(inputs, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(),
            nn.Linear(width, 10),
        )  # fmt: skip

    def training_step(self, batch: list[torch.Tensor], batch_idx: int) -> torch.Tensor:
        return nn.functional.mse_loss(self.net(batch[0]), batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=1e-3)


class Batches(torch.utils.data.IterableDataset):
    """The same batch for ever: the data loader's cost would only dilute the ratio."""

    def __init__(self, *tensors: torch.Tensor) -> None:
        self.tensors = list(tensors)

    def __iter__(self) -> Iterator[list[torch.Tensor]]:
        while True:
            yield self.tensors


class Clocked(DQNLRCallback):
    """Adds up the seconds spent within the callback, its hook on the optimizer included."""

    seconds = 0.0

    def on_train_start(self, *arguments: Any) -> None:
        """The driver exists from here on."""
        self._clocked(super().on_train_start)(*arguments)
        self._driver.after_step = self._clocked(self._driver.after_step)

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


def seconds_per_step(
    width: int, batch: int, steps: int, callbacks: list[Callback], device: str
) -> float:
    """Wall-clock time of a Trainer's step."""
    torch.manual_seed(0)
    data = Batches(torch.randn(batch, 64, device=device), torch.randn(batch, 10, device=device))
    trainer = quiet_trainer(steps, callbacks, device)
    began = time.perf_counter()
    trainer.fit(Regression(width), DataLoader(data, batch_size=None))
    if device == "cuda":
        torch.cuda.synchronize()
    return (time.perf_counter() - began) / steps


def share(width: int, batch: int, steps: int, device: str) -> tuple[float, float]:
    """Seconds per step, and the share of them spent within the callback."""
    callback = Clocked()
    each = seconds_per_step(width, batch, steps, [callback], device)
    return each, callback.seconds / steps / each


def quiet_trainer(steps: int, callbacks: list[Callback], device: str) -> Trainer:
    """A Trainer with nothing else to pay for."""
    return Trainer(
        max_steps=steps,
        max_epochs=-1,
        callbacks=callbacks,
        accelerator=device,
        devices=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )


def paired(
    width: int, batch: int, steps: int, repeats: int, device: str
) -> tuple[float, float, float]:
    """Median step time without, median of the paired ratios, median of the paired differences."""
    seconds_per_step(width, batch, max(20, steps // 20), [DQNLRCallback()], device)  # warm-up
    pairs = []
    for repeat in range(repeats):
        order = (False, True) if repeat % 2 == 0 else (True, False)
        times = {
            with_it: seconds_per_step(
                width, batch, steps, [DQNLRCallback()] if with_it else [], device
            )
            for with_it in order
        }
        pairs.append((times[False], times[True]))
    return (
        statistics.median(a for a, _ in pairs),
        statistics.median(b / a for a, b in pairs),
        statistics.median(b - a for a, b in pairs),
    )


def main() -> None:
    """Prints both figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    arguments = parser.parse_args()
    device = arguments.device
    warnings.filterwarnings("ignore")
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)
    torch.set_num_threads(arguments.threads)
    where = torch.cuda.get_device_name() if device == "cuda" else platform.machine()
    print(f"{where}, {arguments.threads} threads, torch {torch.__version__}")

    width = 956  # 64 w + w^2 + 12 w + 10 = 986,602 parameters
    for steps in (arguments.steps, 5 * arguments.steps):
        each, spent = share(width, 128, steps, device)
        print(f"a million parameters, {steps} steps: {spent:.2%} of {1e3 * each:.2f} ms per step")
    base, ratio, _ = paired(width, 128, arguments.steps, arguments.repeats, device)
    size = sum(p.numel() for p in Regression(width).parameters())
    print(f"model of {size:,} parameters: {1e3 * base:.2f} ms per step, x{ratio:.4f} with callback")
    torch.set_num_threads(1)  # a tiny model's kernels do not pay for a second thread
    for steps in (arguments.steps, 5 * arguments.steps, 10 * arguments.steps):
        base, ratio, extra = paired(16, 16, steps, arguments.repeats, device)
        print(
            f"tiny model, {steps} steps: {1e6 * base:.0f} us per batch, x{ratio:.3f} with "
            f"callback, {1e6 * extra:+.0f} us per batch"
        )


if __name__ == "__main__":
    main()
