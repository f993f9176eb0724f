"""Draws the worst runs of a policy on validation tasks, to find the states it does not know.

    python benchmarks/worst_runs.py lightning_dqnlr/policy/default --into outputs/worst.png

For each run: the loss of every interval with the tuned cosine's final loss, the learning rate with
the peak of that cosine, the actions, and every feature of the observation over the decisions.
Tuning the cosines takes most of the time (half an hour for 36 tasks on one core); `--rivals` keeps
them.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from many_runs import parser_of, tasks_of
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from lightning_dqnlr.envs.environment import Terms
from lightning_dqnlr.envs.vector import VectorEngine
from lightning_dqnlr.policy.policy import LRPolicy
from lightning_dqnlr.scoring.cosine import TunedCosine, regret
from lightning_dqnlr.scoring.evaluate import Rivals
from lightning_dqnlr.tasks.task import Task

ACROSS = 5
LOSS, LR, ACTION = "#c8553d", "#1b6ca8", "#444444"


class Run(NamedTuple):
    """What one replica did; decisions lie in the first dimension."""

    task: Task
    seed: int
    regret: float
    rival: TunedCosine
    steps: Tensor
    loss: Tensor
    lr: Tensor
    action: Tensor
    observation: Tensor  # (decisions, features)
    tripped: Tensor


def follow(
    task: Task, policy: LRPolicy, seeds: Sequence[int], rival: TunedCosine, engine: VectorEngine
) -> list[Run]:
    """Trains the task once per seed and keeps what was seen and done at each decision."""
    env = engine.open(task, policy.spec, seeds, Terms())
    observation, rows = env.reset(), []
    while not env.finished:
        seen, action, lr = observation, policy.act(observation), env.controller.lr.clone()
        result = env.step(action)
        observation, step = result.observation, torch.full_like(lr, env.controller.step)
        rows.append((step, env.controller.history.loss, lr, action, seen, result.interval.tripped))
    columns = [torch.stack(column).cpu() for column in zip(*rows, strict=True)]
    found = regret(env.losses().train, rival.train_loss, rival.initial_loss).tolist()
    return [
        Run(task, seed, found[i], rival, *(column[:, i] for column in columns))
        for i, seed in enumerate(seeds)
    ]


def draw(runs: Sequence[Run], policy: LRPolicy) -> Figure:
    """One column of four panels per run, the worst first."""
    names = policy.spec.features.names
    rows = -(-len(runs) // ACROSS)
    figure = Figure(figsize=(4.2 * ACROSS, 8.5 * rows), layout="constrained")
    for part, band in enumerate(figure.subfigures(rows, 1, squeeze=False)[:, 0]):
        grid = band.subplots(4, ACROSS, squeeze=False, height_ratios=(2, 2, 1, 5))
        for column in range(ACROSS):
            index = part * ACROSS + column
            if index < len(runs):
                _draw_run(grid[:, column], runs[index], names, policy, labels=column == 0)
            else:
                for panel in grid[:, column]:
                    panel.set_axis_off()
    return figure


def _draw_run(
    axes: Sequence[Axes], run: Run, names: Sequence[str], policy: LRPolicy, *, labels: bool
) -> None:
    task = run.task
    told = "" if task.known_horizon else ", not told"
    axes[0].set_title(
        f"{task.name} seed {run.seed}: regret {run.regret:.2f}\n"
        f"{task.optimizer}, {task.horizon} steps{told}, batch {task.batch_size}",
        fontsize=8,
    )
    axes[0].semilogy(run.steps, run.loss.clamp_min(1e-12), color=LOSS)
    axes[0].axhline(run.rival.train_loss, color="black", linewidth=0.8, linestyle=":")
    axes[1].semilogy(run.steps, run.lr, color=LR, drawstyle="steps-post")
    axes[1].axhline(run.rival.peak, color="black", linewidth=0.8, linestyle=":")
    for step in run.steps[run.tripped]:
        axes[1].axvline(step, color="#7d2e8d", linewidth=0.6)
    multipliers = policy.spec.actions.multipliers
    axes[2].step(range(len(run.action)), run.action, color=ACTION, linewidth=0.8)
    axes[2].set_yticks(range(len(multipliers)), [f"x{m:g}" for m in multipliers])
    axes[3].imshow(run.observation.T, aspect="auto", cmap="RdBu", vmin=-3, vmax=3)
    axes[3].set_yticks(range(len(names)), names if labels else [""] * len(names))
    for panel, label in zip(axes, ("loss", "learning rate", "action", ""), strict=True):
        panel.tick_params(labelsize=5)
        if labels:
            panel.set_ylabel(label, fontsize=7)


def main() -> None:
    """Writes the picture and prints one line per run in it."""
    parser = parser_of(__doc__, tasks=36, seeds=4)
    parser.add_argument("--into", type=Path, default=Path("outputs/worst.png"))
    parser.add_argument("--count", type=int, default=20)
    parser.add_argument("--rivals", type=Path, default=Path("outputs/rivals-broad"))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    policy, engine, seeds = arguments.policy, arguments.engine, range(arguments.seeds)
    rivals, runs = Rivals(arguments.rivals, engine), []
    for task in tasks_of(arguments, "validation"):
        runs += follow(task, policy, seeds, rivals[task], engine)
    # A regret that is not a number is the worst there is.
    runs.sort(key=lambda run: -run.regret if run.regret == run.regret else -float("inf"))
    for run in runs[: arguments.count]:
        print(f"{run.regret:7.3f}  {run.task.name}, {run.task.optimizer}, seed {run.seed}")
    arguments.into.parent.mkdir(parents=True, exist_ok=True)
    draw(runs[: arguments.count], policy).savefig(arguments.into, dpi=80)
    print(f"Drawn: {arguments.into}")


if __name__ == "__main__":
    main()
