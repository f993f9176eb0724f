"""Do a policy's rates follow the batch size? Calibration on generated tasks, by batch and length.

    python benchmarks/batch_sizes.py lightning_dqnlr/policy/default --tasks 4

Calibration is log2(upper quartile of a run's rates / best peak of the cosine); zero is right, below
zero the rates are too low. The tasks have ordinary weights and inputs. Every row of the table has
the same ones, but for batch size and length.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from statistics import mean, median

import torch
from many_runs import parser_of
from tqdm import tqdm

from lightning_dqnlr.bench.report.content import Table
from lightning_dqnlr.policy.policy import LRPolicy
from lightning_dqnlr.scoring.cosine import regret, tune_cosine
from lightning_dqnlr.scoring.evaluate import run_policy
from lightning_dqnlr.tasks import DigitsMLPs, TableMLPs, TeacherMLPs
from lightning_dqnlr.tasks.task import Task

FAMILIES = (TeacherMLPs, DigitsMLPs, TableMLPs)
BATCHES = (16, 64, 256)
LENGTHS = (300, 1500)
PEAKS = tuple(10.0 ** (exponent / 2) for exponent in range(-8, 3))  # half decades, 1e-4 to 10
QUARTILE = 0.75


def measured(task: Task, policy: LRPolicy, seeds: int) -> tuple[float, float, float]:
    """log2 of the rate that a policy uses, of the best peak, and the policy's regret."""
    run = run_policy(task, policy, range(seeds))
    used = run.log_scale.quantile(QUARTILE, dim=0).mean().item() / math.log(2)
    rival = tune_cosine(task, peaks=PEAKS, seeds=range(seeds))
    above = regret(run.train_loss, rival.train_loss, rival.initial_loss).mean().item()
    return used, math.log2(rival.peak), above


def tasks_of(number: int, batch: int, steps: int) -> Iterator[Task]:
    """The tasks of this number, one of each family."""
    for family in FAMILIES:
        yield family(
            optimizers=("adamw",),
            min_horizon=steps,
            max_horizon=steps,
            batch_sizes=(batch,),
            ordinary_probability=1.0,
            known_horizon_probability=1.0,
        ).sample(number, "validation")


def main() -> None:
    """Prints a row for each batch size and length."""
    torch.set_num_threads(1)
    arguments = parser_of(__doc__, tasks=4, seeds=2).parse_args()
    rows = []
    for steps, batch in tqdm([(s, b) for s in LENGTHS for b in BATCHES], desc="settings"):
        tasks = [t for n in range(arguments.tasks) for t in tasks_of(n, batch, steps)]
        found = [measured(task, arguments.policy, arguments.seeds) for task in tasks]
        octaves = [used - best for used, best, _ in found]
        cells = (median(octaves), mean(best for _, best, _ in found), median(r for *_, r in found))
        rows.append((str(steps), str(batch), *(f"{cell:.2f}" for cell in cells)))
        tqdm.write(str(rows[-1]))
    columns = ("steps", "batch", "calibration, median", "log2 of the best peak", "regret, median")
    print(Table(columns, tuple(rows)).markdown())


if __name__ == "__main__":
    main()
