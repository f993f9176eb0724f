"""Compares a policy with itself under another setting of the controller, on validation tasks.

    python benchmarks/changed_settings.py lightning_dqnlr/policy/default --set trials=null

Both train the same tasks from the same weights and batches. The figure is the difference of the
final log loss (whole data set, eval mode, plus 1% of the initial loss), the setting's less the
policy's own. It is the difference of regrets, and needs no tuned rival.
"""

from __future__ import annotations

import torch
from many_runs import parser_of, tasks_of
from torch import Tensor
from tqdm import tqdm

from lightning_dqnlr.bench.report.content import Table
from lightning_dqnlr.control.features import compressed_loss
from lightning_dqnlr.envs.environment import Terms
from lightning_dqnlr.envs.vector import VectorEngine
from lightning_dqnlr.policy.policy import LRPolicy, with_settings
from lightning_dqnlr.scoring.statistics import interquartile_mean
from lightning_dqnlr.tasks.task import Task

LARGEST = 2.0  # a difference of log losses counts as this much at most


def levels(task: Task, policy: LRPolicy, seeds: int, engine: VectorEngine) -> Tensor:
    """Final log losses of a policy's runs, training and validation, (2, seeds)."""
    terms = Terms(circuit_breaker=policy.circuit_breaker)
    env = engine.open(task, policy.spec, range(seeds), terms)
    observation = env.reset()
    while not env.finished:
        observation = env.step(policy.act(observation)).observation
    initial = env.controller.history.initial_loss
    return compressed_loss(torch.stack(env.losses()), initial).nan_to_num(1e3, 1e3).cpu()


def main() -> None:
    """Prints each task that changes, and a table of the differences."""
    torch.set_num_threads(1)
    parser = parser_of(__doc__, tasks=120, seeds=4)
    parser.add_argument("--set", action="append", required=True, help="as of dqnlr-combine")
    parser.add_argument("--first", type=int, default=68, help="number of the first task")
    arguments = parser.parse_args()
    policy, seeds, engine = arguments.policy, arguments.seeds, arguments.engine
    other = with_settings(policy, arguments.set)
    found = []
    for task in tasks_of(arguments, "validation", arguments.first):
        change = levels(task, other, seeds, engine) - levels(task, policy, seeds, engine)
        found.append(change.clamp(-LARGEST, LARGEST))
        if bool(change.any()):
            tqdm.write(f"{task.name}, {task.horizon} steps: {found[-1].mean(-1).tolist()}")
    rows = zip(("training", "validation"), torch.stack(found, 1), strict=True)
    table = tuple(_row(name, change) for name, change in rows)
    print(Table(("loss", "mean", "IQM", "90th percentile", "worst task"), table).markdown())


def _row(name: str, change: Tensor) -> tuple[str, ...]:
    flat = change.flatten()
    figures = (flat.mean(), interquartile_mean(flat), flat.quantile(0.9), change.mean(-1).max())
    return (name, *(f"{float(figure):.4f}" for figure in figures))


if __name__ == "__main__":
    main()
