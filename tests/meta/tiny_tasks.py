"""A task family small enough to meta-train on in a test."""

import os
import signal
from dataclasses import dataclass, field
from pathlib import Path

import torch

from lightning_dqnlr.tasks.modules import SupervisedBuilder
from lightning_dqnlr.tasks.networks.mlp_cnn import MLPSpec
from lightning_dqnlr.tasks.optimizers import OptimizerSpec
from lightning_dqnlr.tasks.task import Task


@dataclass
class TinyTasks:
    """Networks of 19 weights for 12 steps, with dropout: every inner step draws random numbers.

    Training tasks of the seeds in `failing` raise when they are built; `asked` notes each call.
    """

    failing: tuple[int, ...] = ()
    asked: list[tuple[int, str]] = field(default_factory=list, repr=False)

    def sample(self, seed, split="train"):
        self.asked.append((seed, split))
        name = f"tiny/{split}/{seed}"
        if split == "train" and seed in self.failing:
            raise LookupError("no such data")
        generator = torch.Generator().manual_seed(2 * seed + (split == "train"))
        inputs = torch.randn(24, 3, generator=generator)
        targets = inputs.sum(1, keepdim=True).expand(-1, 2)
        optimizer = OptimizerSpec("sgd")
        network = MLPSpec(3, 2, 4, depth=1, dropout=0.1)
        return Task(
            name=name,
            family="tiny",
            seed=seed,
            build=SupervisedBuilder(name, network, "mse", optimizer),
            train_data=(inputs[:16], targets[:16]),
            validation_data=(inputs[16:], targets[16:]),
            batch_size=8,
            optimizer=optimizer.name,
            horizon=12,
        )


@dataclass
class Poisoned(TinyTasks):
    """Tiny tasks; those of some seeds and one split have an input that is not a number."""

    seeds: tuple[int, ...] = ()
    split: str = "train"

    def sample(self, seed, split="train"):
        task = super().sample(seed, split)
        if seed in self.seeds and split == self.split:
            task.train_data[0][3, 1] = float("nan")
        return task


@dataclass
class Deadly(TinyTasks):
    """Tiny tasks; the first process that is asked for one seed is killed, the next one is not."""

    marker: Path = Path()
    seed: int = 0

    def sample(self, seed, split="train"):
        if (seed, split) == (self.seed, "train") and not self.marker.exists():
            self.marker.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return super().sample(seed, split)
