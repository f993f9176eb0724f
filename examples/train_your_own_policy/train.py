"""Train a policy on your own LightningModules, use it, and see what it brings.

    python examples/train_your_own_policy/train.py

It takes some minutes on two cores. The modules and their data are in models.py, and the few lines
that name them in conf/tasks/mine.yaml. To do the same for your project, copy the folder, put your
modules in the place of these, and keep the rest.
"""

from __future__ import annotations

import argparse
import logging
import os
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
from lightning import LightningModule, Trainer, seed_everything
from models import DigitClassifier, Forecaster, digit_images, seasonal_series
from torch.utils.data import DataLoader

from lightning_dqnlr import DQNLRCallback

HERE = Path(__file__).parent
TASKS: dict[str, tuple[Callable[[], LightningModule], Callable[[], DataLoader]]] = {
    "digits": (DigitClassifier, digit_images),
    "forecast": (Forecaster, seasonal_series),
}


def train_policy(folder: Path, episodes: int, workers: int, overrides: list[str]) -> Path:
    """Meta-trains on the tasks of conf/tasks/mine.yaml; returns the folder of the best policy."""
    command = [
        str(Path(sys.executable).with_name("dqnlr-train")),
        *("--config-dir", str(HERE / "conf"), "tasks=mine", f"folder={folder}"),
        *(f"train.episodes={episodes}", "env.collect.replicas=32", f"collector.workers={workers}"),
        *("train.round=4", "train.updates=60", f"train.evaluate_every={max(1, episodes // 3)}"),
        *("train.evaluation_tasks=6", "train.evaluation_seeds=4", *overrides),
    ]
    print(" ".join(command), flush=True)
    path = os.pathsep.join([str(HERE), *sys.path])  # where `models` is found
    subprocess.run(command, check=True, env={**os.environ, "PYTHONPATH": path})
    return folder / "best"


def final_loss(task: str, seed: int, steps: int, callback: DQNLRCallback | None) -> float:
    """Trains one module, as you would, and returns the mean loss over its training data."""
    build, data = TASKS[task]
    seed_everything(seed, verbose=False)
    module = build()
    trainer = Trainer(
        max_steps=steps,
        callbacks=[callback] if callback is not None else [],
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, data())
    return mean_loss(module, data())


@torch.no_grad()
def mean_loss(module: LightningModule, data: DataLoader) -> float:
    """Mean loss over a whole data set, in eval mode."""
    module.eval()
    module.log = lambda *_, **__: None  # type: ignore[method-assign]  # no Trainer listens
    total = count = 0.0
    for index, batch in enumerate(data):
        outputs = module.training_step(batch, index)
        loss = outputs["loss"] if isinstance(outputs, dict) else outputs
        size = len(next(iter(batch.values()) if isinstance(batch, dict) else iter(batch)))
        total, count = total + loss.item() * size, count + size
    return total / count


def compare(policy: Path, seeds: int, steps: int) -> dict[str, dict[str, float]]:
    """Mean final losses per task and way of setting the learning rate."""
    ways: dict[str, Callable[[], DQNLRCallback | None]] = {
        "its own LR": lambda: None,
        "bundled policy": DQNLRCallback,
        "your policy": lambda: DQNLRCallback(policy=policy),
    }
    return {
        task: {
            name: sum(final_loss(task, seed, steps, way()) for seed in range(seeds)) / seeds
            for name, way in ways.items()
        }
        for task in TASKS
    }


def show(results: dict[str, dict[str, float]]) -> None:
    """A table: the lower, the better."""
    names = list(next(iter(results.values())))
    print(f"\n{'final training loss':<20}" + "".join(f"{name:>16}" for name in names))
    for task, losses in results.items():
        print(f"{task:<20}" + "".join(f"{losses[name]:>16.4f}" for name in names))


def main() -> None:
    """Trains, compares, and says where the policy is."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, default=Path("outputs/my_policy"))
    parser.add_argument("--episodes", type=int, default=60)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--seeds", type=int, default=3, help="runs of each comparison")
    parser.add_argument("--steps", type=int, default=400, help="of each of these runs")
    parser.add_argument("overrides", nargs="*", help="more for dqnlr-train, as in train.updates=80")
    arguments = parser.parse_args()
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="lightning")
    policy = train_policy(
        arguments.folder.resolve(), arguments.episodes, arguments.workers, arguments.overrides
    )
    show(compare(policy, arguments.seeds, arguments.steps))
    print(f'\nUse it: Trainer(callbacks=[DQNLRCallback(policy="{policy}")])')


if __name__ == "__main__":
    main()
