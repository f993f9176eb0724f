"""Counts the runs that a policy loses: those that diverge or end above their starting loss.

    python benchmarks/many_runs.py lightning_dqnlr/policy/default

On tasks of the test split, which meta-training and selection never draw; losses are those of the
whole training set in eval mode, before the first step and after the last one. The learning rate
that a user set has no part in it, because the controller starts by itself. Where runs are lost,
the same seeds run under the tuned cosine's grid, to tell a bad policy from a task on which nothing
is to be had.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch
from hydra import compose, initialize_config_module
from hydra.utils import instantiate
from torch import Tensor
from tqdm import tqdm

from lightning_dqnlr.envs.environment import Terms
from lightning_dqnlr.envs.vector import VectorEngine
from lightning_dqnlr.policy.policy import LRPolicy
from lightning_dqnlr.scoring.cosine import PEAKS, run_cosine
from lightning_dqnlr.tasks.task import Task, TaskFamily


def family(name: str) -> TaskFamily:
    """The tasks of an option of `conf/tasks`."""
    with initialize_config_module("lightning_dqnlr.conf", version_base="1.3"):
        tasks: TaskFamily = instantiate(compose(f"tasks/{name}").tasks, _convert_="all")
    return tasks


def parser_of(description: str, *, split: str, tasks: int, seeds: int) -> argparse.ArgumentParser:
    """What the scripts that run a policy on many tasks have in common.

    Args:
        description: of the script.
        split: that its tasks are of.
        tasks: their number, unless told.
        seeds: of each, unless told.
    """
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("policy", type=Path)
    parser.add_argument("--tasks", type=int, default=tasks, help=f"of the {split} split")
    parser.add_argument("--seeds", type=int, default=seeds)
    parser.add_argument("--mixture", default="broad", help="an option of conf/tasks")
    parser.add_argument("--device", default="cpu")
    return parser


def ends(
    task: Task, policy: LRPolicy, seeds: Sequence[int], engine: VectorEngine
) -> tuple[Tensor, Tensor]:
    """Training losses (seeds,) before and after a run under greedy control."""
    env = engine.open(task, policy.spec, seeds, Terms())
    before, observation = env.losses().train, env.reset()
    while not env.finished:
        observation = env.step(policy.act(observation)).observation
    return before, env.losses().train


def shares(before: Tensor, after: Tensor) -> Tensor:
    """What is left of the loss, infinite where it is not finite; above 1 a run is lost."""
    return (after / before).nan_to_num(torch.inf, torch.inf)


def shares_under_cosine(task: Task, before: Tensor, engine: VectorEngine) -> Tensor:
    """`shares` (peaks, seeds) of the same seeds under each peak of the tuned cosine's grid."""
    seeds = len(before)
    grid = torch.tensor(PEAKS, device=before.device).repeat_interleave(seeds)
    after = run_cosine(task, grid, list(range(seeds)) * len(PEAKS), engine).train
    return shares(before, after.view(len(PEAKS), seeds))


def describe(task: Task, share: Tensor, rival: Tensor) -> str:
    """A line on the task and one for each of its lost runs.

    Args:
        task: on which runs were lost.
        share: (seeds,) of the starting loss that is left.
        rival: (peaks, seeds) of it under the cosine.
    """
    told = "" if task.known_horizon else " (not told)"
    losing = int((rival > 1).any(-1).sum())
    lines = [
        f"{task.name}, {task.optimizer}, {task.horizon} steps{told}: "
        f"{losing} of {len(rival)} cosine peaks lose a run as well"
    ]
    for seed in (share > 1).nonzero().flatten().tolist():
        here, best = f"{share[seed]:.5f}", f"{rival[:, seed].min():.5f}"
        lines.append(f"  seed {seed}: ends at {here} of its start, at best {best} with a cosine")
    return "\n".join(lines)


def main() -> None:
    """Prints each lost run, what the cosine does with its seed, and the count."""
    parser = parser_of(__doc__.splitlines()[0], split="test", tasks=125, seeds=8)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    policy, engine = LRPolicy.load(arguments.policy), VectorEngine(arguments.device)
    tasks = family(arguments.mixture)
    lost, worst = 0, 0.0
    for index in tqdm(range(arguments.tasks), desc="tasks"):
        task = tasks.sample(index, "test")
        before, after = ends(task, policy, range(arguments.seeds), engine)
        share = shares(before, after)
        worst = max(worst, share.max().item())
        lost += int((share > 1).sum())
        if bool((share > 1).any()):
            tqdm.write(describe(task, share, shares_under_cosine(task, before, engine)))
    count = arguments.tasks * arguments.seeds
    print(f"{lost} of {count:,} runs lost; the worst ended at {worst:.3f} of its starting loss.")


if __name__ == "__main__":
    main()
