"""Counts the runs that a policy loses: those that diverge or end above their starting loss.

    python benchmarks/many_runs.py lightning_dqnlr/policy/default

The tasks are of the test split, which meta-training and selection never draw. Losses are those of
the whole training set in eval mode, before the first step and after the last one. The controller
starts by itself, so the user's learning rate has no part in it. Where runs are lost, the same seeds
run under the tuned cosine's grid: a task on which nothing is to be had is no fault of the policy.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator

import torch
from hydra import compose, initialize_config_module
from hydra.utils import instantiate
from torch import Tensor
from tqdm import tqdm

from lightning_dqnlr.envs.vector import VectorEngine
from lightning_dqnlr.policy.policy import LRPolicy
from lightning_dqnlr.scoring.cosine import PEAKS, run_cosine
from lightning_dqnlr.scoring.evaluate import run_policy
from lightning_dqnlr.tasks.task import Task


def parser_of(description: str, *, tasks: int, seeds: int) -> argparse.ArgumentParser:
    """The arguments of scripts that run a policy on so many tasks, with so many seeds of each."""
    parser = argparse.ArgumentParser(description=description.splitlines()[0])
    parser.add_argument("policy", type=LRPolicy.load)
    parser.add_argument("--tasks", type=int, default=tasks)
    parser.add_argument("--seeds", type=int, default=seeds)
    parser.add_argument("--mixture", default="broad", help="an option of conf/tasks")
    parser.add_argument("--device", dest="engine", type=VectorEngine, default="cpu")
    return parser


def tasks_of(arguments: argparse.Namespace, split: str, first: int = 0) -> Iterator[Task]:
    """The tasks of a split from a number on, under a progress bar."""
    with initialize_config_module("lightning_dqnlr.conf", version_base="1.3"):
        config = compose(f"tasks/{arguments.mixture}")
    family = instantiate(config.tasks, _convert_="all")
    for number in tqdm(range(first, first + arguments.tasks), desc="tasks"):
        yield family.sample(number, split)


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
    torch.set_num_threads(1)
    arguments = parser_of(__doc__, tasks=125, seeds=8).parse_args()
    policy, engine, seeds = arguments.policy, arguments.engine, range(arguments.seeds)
    found = []
    for task in tasks_of(arguments, "test"):
        before = engine.follow(task, seeds, lambda _: torch.zeros(len(seeds)), steps=0).train
        after = run_policy(task, policy, seeds, engine).train_loss
        share = shares(before, after)
        found.append(share)
        if bool((share > 1).any()):
            tqdm.write(describe(task, share, shares_under_cosine(task, before, engine)))
    share = torch.cat(found)
    lost = int((share > 1).sum())
    worst = f"the worst ended at {share.max():.3f} of its starting loss"
    print(f"{lost} of {len(share):,} runs lost; {worst}.")


if __name__ == "__main__":
    main()
