"""Runs that nobody ends: regret of what the callback makes of them.

    python benchmarks/unknown_end.py lightning_dqnlr/policy/default --tasks 24 --seeds 2

Validation tasks train in real Trainers without any limit. The callback brings the rate down once
the training loss has stopped falling, and the run is over when the rate is. The rival is the cosine
schedule, told that length, with the best of 33 peaks on the same seeds. Runs that have not come
down after ten times the task's own horizon are stopped there, and count.
"""

from __future__ import annotations

import logging

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from many_runs import parser_of, tasks_of
from tqdm import tqdm

from lightning_dqnlr.bench.report.content import Table
from lightning_dqnlr.control.features import compressed_loss
from lightning_dqnlr.envs.process import RandomStream
from lightning_dqnlr.envs.trainer_data import module_losses, quiet, task_loader, task_trainer
from lightning_dqnlr.envs.vector import VectorEngine
from lightning_dqnlr.host.callback import DQNLRCallback
from lightning_dqnlr.policy.policy import LRPolicy
from lightning_dqnlr.scoring.cosine import PEAKS, cosine
from lightning_dqnlr.scoring.statistics import interquartile_mean
from lightning_dqnlr.tasks.task import Task

LONGEST = 10  # times the task's own horizon
LARGEST = 2.0  # a regret counts as this much at most


class Ends(Callback):
    """Stops a run once its rate is down, or after so many steps."""

    def __init__(self, control: DQNLRCallback, most: int) -> None:
        self.control = control
        self.most = most
        self.steps = 0

    def on_train_batch_end(self, trainer: Trainer, module: LightningModule, *_: object) -> None:
        """Looks whether it is over."""
        self.steps = trainer.global_step
        if self.control.controller.at_rest or self.steps >= self.most:
            trainer.should_stop = True


def run(task: Task, policy: LRPolicy, seed: int) -> tuple[int, torch.Tensor]:
    """Steps that a run made, and its final losses: training and validation."""
    module = task.build(seed)
    control = DQNLRCallback(policy, log=False)
    ends = Ends(control, LONGEST * task.horizon)
    with RandomStream(seed, "cpu").active(), quiet():
        trainer = task_trainer(module, task, [control, ends], "cpu", steps=-1)
        trainer.fit_loop.max_epochs = -1
        trainer.fit(module, task_loader(task, seed))
    losses = module_losses(module, task)
    return ends.steps, torch.stack([losses.train, losses.validation])


def rival(task: Task, steps: int, seed: int, engine: VectorEngine) -> torch.Tensor:
    """Final losses (2, peaks) under a cosine of that length; the first row chooses the peak."""
    peaks = torch.tensor(PEAKS)
    seeds = [seed] * len(peaks)
    losses = engine.follow(task, seeds, lambda step: peaks * cosine(step, steps), steps=steps)
    return torch.stack([losses.train, losses.validation])


def main() -> None:
    """Prints each task, and the table."""
    torch.set_num_threads(1)
    logging.getLogger("lightning_dqnlr").setLevel(logging.ERROR)
    parser = parser_of(__doc__, tasks=24, seeds=2)
    parser.add_argument("--first", type=int, default=68, help="number of the first task")
    arguments = parser.parse_args()
    regrets = []
    for task in tasks_of(arguments, "validation", arguments.first):
        start = arguments.engine.follow(task, [0], lambda _: torch.zeros(1), steps=0)
        initial = torch.stack([start.train.mean(), start.validation.mean()])[:, None]
        for seed in range(arguments.seeds):
            steps, own = run(task, arguments.policy, seed)
            tuned = rival(task, steps, seed, arguments.engine).nan_to_num(1e30, 1e30)
            best = tuned[:, int(tuned[0].argmin())]
            both = torch.stack([own.nan_to_num(1e30, 1e30), best], dim=1)
            level = compressed_loss(both, initial)
            regret = (level[:, 0] - level[:, 1]).clamp(-LARGEST, LARGEST)
            regrets.append(regret)
            times = steps / task.horizon
            tqdm.write(f"{task.name}: {steps} steps, {times:.1f} horizons, {regret.tolist()}")
    found = torch.stack(regrets)
    rows = (
        (name, *(f"{float(f):.3f}" for f in (interquartile_mean(r), r.mean(), r.quantile(0.9))))
        for name, r in zip(("training", "validation"), found.T, strict=True)
    )
    print(Table(("loss", "IQM of regret", "mean", "90th percentile"), tuple(rows)).markdown())


if __name__ == "__main__":
    main()
