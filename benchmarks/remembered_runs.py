"""Runs of the benchmark's tasks with a memory: is the second one better than the first?

    python benchmarks/remembered_runs.py make --folder outputs/memory      # both halves: two shells
    python benchmarks/remembered_runs.py table --folder outputs/memory

A chain is five runs of a task in a row, each with another seed, which remember in one folder. There
are five chains of each of the 22 tasks that the benchmark's tables have. The memory knows the
training loss as the callback sees it, and the score is the benchmark's: regret of the final training
loss, over all data in eval mode, to the tuned cosine. What a user has after n runs is the run that
the memory likes best. The rivals have as many runs and choose by their final training loss.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from tqdm import tqdm

from lightning_dqnlr.bench.methods.plan import Plan, Setting
from lightning_dqnlr.bench.methods.policies import LearnedPolicy
from lightning_dqnlr.bench.runs.record import RunKey
from lightning_dqnlr.bench.runs.run import PlannedRun
from lightning_dqnlr.bench.tasks import TASKS
from lightning_dqnlr.bench.tasks.task import APART
from lightning_dqnlr.envs.environment import Terms
from lightning_dqnlr.envs.trainer_run import Conditions
from lightning_dqnlr.host.callback import DQNLRCallback
from lightning_dqnlr.memory.folder import Memory

CHAINS = 5
COUNTS = (1, 2, 3, 5)
NAME = "dqnlr-memory"


@dataclass(frozen=True)
class Remembering(LearnedPolicy):
    """The callback with a memory."""

    name: str = NAME
    folder: str = ""

    def plan(self, setting: Setting) -> Plan:
        """As a user would have it."""
        policy = self.load()
        callback = DQNLRCallback(policy, log=False, memory=self.folder)
        return Plan(
            lr=setting.lr,
            callbacks=(Conditions(setting.task, callback, Terms()), callback),
            recovers=True,
        )


def make(folder: Path, tasks: Sequence[str], chains: int, runs: int) -> None:
    """Makes the runs that are missing."""
    jobs = [(name, chain) for name in tasks for chain in range(chains)]
    for name, chain in tqdm(jobs, desc="chains"):
        stored = folder / f"{name}-{chain}.json".replace(" ", "_")
        records = json.loads(stored.read_text()) if stored.exists() else []
        bench = next(task for task in TASKS if task.name == name)
        while len(records) < runs:
            memory = folder / f"{name}-{chain}".replace(" ", "_")
            seed = (chain + len(records)) % CHAINS
            key = RunKey(name, NAME, None, seed, f"memory-{chain}-{len(records)}", None)
            method = Remembering(folder=str(memory))
            record = PlannedRun(bench, method, None, seed, key).make(bench.open())
            kept = list(Memory(memory).runs().values())[-1]
            plain = {k: v for k, v in asdict(record).items() if k != "curve"}
            records.append({"record": plain, "kept": kept.to_dict()})
            folder.mkdir(parents=True, exist_ok=True)
            stored.write_text(json.dumps(records))


def ranked_tasks() -> list[str]:
    """Those of the tables over all tasks."""
    return [task.name for task in TASKS if task.split not in APART]


def main() -> None:
    """Makes the runs, or prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=("make", "table"))
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--tasks", nargs="+", default=None)
    parser.add_argument("--half", type=int, choices=(0, 1), help="only every second task")
    parser.add_argument("--chains", type=int, default=CHAINS)
    parser.add_argument("--runs", type=int, default=max(COUNTS))
    arguments = parser.parse_args()
    tasks = arguments.tasks or ranked_tasks()
    if arguments.half is not None:
        tasks = tasks[arguments.half :: 2]
    torch.set_num_threads(1)
    if arguments.what == "make":
        make(arguments.folder, tasks, arguments.chains, arguments.runs)
    else:
        pass


if __name__ == "__main__":
    main()
