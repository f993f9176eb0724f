"""Runs of the benchmark's tasks with a memory: is the second one better than the first?

    python benchmarks/remembered_runs.py make --folder outputs/memory      # both halves: two shells
    python benchmarks/remembered_runs.py table --folder outputs/memory
    python benchmarks/remembered_runs.py make --folder outputs/real --tasks U-Net --chains 1

A chain is five runs of a task in a row, each with another seed, which remember in one folder.
There are five chains of each of the 22 tasks that the benchmark's tables have, or of tasks of real
size. The memory knows the training loss as the callback sees it. The score is the benchmark's:
regret of the final training loss, over all data in eval mode, to the tuned cosine. What a user has
after n runs is the one with the lowest final training loss; the same holds for the rivals. Those
that search for a cosine's peak use the benchmark's stored runs, at the nearest of its peaks.
"""

from __future__ import annotations

import argparse
import json
import math
import random
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import optuna
import torch
from tqdm import tqdm

from lightning_dqnlr.bench.methods.plan import Plan, Setting
from lightning_dqnlr.bench.methods.policies import LearnedPolicy
from lightning_dqnlr.bench.report.comparison import SUBJECT, Comparison
from lightning_dqnlr.bench.report.content import Table
from lightning_dqnlr.bench.runs.archive import Archive
from lightning_dqnlr.bench.runs.record import TRAIN, VALIDATION, Record, RunKey
from lightning_dqnlr.bench.runs.run import PlannedRun
from lightning_dqnlr.bench.tasks import TASKS
from lightning_dqnlr.bench.tasks.real import REAL_TASKS
from lightning_dqnlr.bench.tasks.task import APART
from lightning_dqnlr.envs.environment import Terms
from lightning_dqnlr.envs.trainer_run import Conditions
from lightning_dqnlr.files import write_atomically
from lightning_dqnlr.host.callback import DQNLRCallback
from lightning_dqnlr.memory.folder import Memory
from lightning_dqnlr.scoring.statistics import interquartile_mean

CHAINS = 5
COUNTS = (1, 2, 3, 5)
NAME = "dqnlr-memory"
BEST = "memory, lowest final loss"  # chosen as the rivals choose
LIKED = "memory, the run it likes best"  # by the loss that it saw
LAST = "memory, the last run"
WSD = "WSD, tuned"
BY_NAME = {task.name: task for task in (*TASKS, *REAL_TASKS)}
Grid = dict[float, dict[int, Record]]  # by peak and seed


@dataclass(frozen=True)
class WithMemory(LearnedPolicy):
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
        bench = BY_NAME[name]
        while len(records) < runs:
            memory = folder / f"{name}-{chain}".replace(" ", "_")
            seed = (chain + len(records)) % CHAINS
            key = RunKey(name, NAME, None, seed, f"memory-{chain}-{len(records)}", None)
            method = WithMemory(folder=str(memory))
            record = PlannedRun(bench, method, None, seed, key).make(bench.open())
            kept = list(Memory(memory).runs().values())[-1]
            plain = {k: v for k, v in asdict(record).items() if k != "curve"}
            records.append({"record": plain, "kept": kept.to_dict()})
            write_atomically(stored, json.dumps(records).encode())


def read(folder: Path, tasks: Sequence[str]) -> dict[tuple[str, int], list[dict[str, Any]]]:
    """The runs of each chain."""
    found = {}
    for name in tasks:
        for path in sorted(folder.glob(f"{name}-[0-9].json".replace(" ", "_"))):
            runs = json.loads(path.read_text())
            if len(runs) >= max(COUNTS):  # else it is being made
                found[name, int(path.stem[-1])] = runs
    return found


class Scores:
    """Regrets of runs that end with a task's chains, by method and number of runs."""

    def __init__(self, comparison: Comparison) -> None:
        self._comparison = comparison
        self.found: dict[tuple[str, int, str], list[tuple[str, float]]] = defaultdict(list)

    def add(self, method: str, count: int, record: Record) -> None:
        """Counts a run: what a method has after so many runs."""
        for which in (TRAIN, VALIDATION):
            regret = float(self._comparison.regrets_of([record], which))
            self.found[method, count, which].append((record.task, regret))

    def row(self, method: str, count: int) -> tuple[str, ...]:
        """Method, runs, training IQM, mean and 90th percentile, validation IQM."""
        train = torch.tensor([score for _, score in self.found[method, count, TRAIN]])
        validation = torch.tensor([score for _, score in self.found[method, count, VALIDATION]])
        figures = (interquartile_mean(train), train.mean(), train.quantile(0.9))
        cells = [f"{float(f):.3f}" for f in (*figures, interquartile_mean(validation))]
        return (method, str(count), *cells)

    def against(self, method: str, count: int, rival: str, runs: int) -> float:
        """Probability that a run of the one ends lower than one of the other, over tasks."""
        ours, theirs = defaultdict(list), defaultdict(list)
        for task, score in self.found[method, count, TRAIN]:
            ours[task].append(score)
        for task, score in self.found[rival, runs, TRAIN]:
            theirs[task].append(score)
        shares = []
        for task in ours:
            pairs = [(a < b) + 0.5 * (a == b) for a in ours[task] for b in theirs[task]]
            shares.append(sum(pairs) / len(pairs))
        return sum(shares) / len(shares)


def report(folder: Path, tasks: Sequence[str]) -> str:
    """The table, and the bars."""
    archive = Archive(Path(__file__).parent / "records")
    comparison = Comparison(record for task in BY_NAME for record in archive.of(task).values())
    chains = read(folder, tasks)
    if not chains:
        return f"There is no chain of {max(COUNTS)} runs in {folder}: make them first."
    scores = Scores(comparison)
    for (name, chain), runs in chains.items():
        records = [Record(**{**run["record"], "curve": {}}) for run in runs]
        liked = [run["kept"]["value"] for run in runs]
        for count in COUNTS:
            best = min(range(count), key=lambda i: math.inf if liked[i] is None else liked[i])
            scores.add(BEST, count, lowest(records[:count]))
            scores.add(LIKED, count, records[best])
            scores.add(LAST, count, records[count - 1])
        rivals(scores, comparison, name, chain)
    tuned = [comparison.entries[task, "wsd"] for task in sorted({name for name, _ in chains})]
    for entry in tuned:
        for record in entry.runs:
            scores.add(WSD, tuned[0].tries, record)
    rows = [scores.row(m, n) for m, n, which in scores.found if which == TRAIN]
    heads = ("method", "runs", "IQM", "mean", "90th percentile", "validation IQM")
    lines = [Table(heads, tuple(rows)).markdown()]
    for count in COUNTS:
        share = scores.against(BEST, count, WSD, tuned[0].tries)
        lines.append(f"probability of {count} runs ending below the tuned WSD: {share:.2f}")
    later = torch.tensor([s for _, s in scores.found[LAST, 3, TRAIN]])
    first = torch.tensor([s for _, s in scores.found[LAST, 1, TRAIN]])
    lines.append(f"third run less the first, median: {float((later - first).median()):.4f}")
    return "\n".join(lines)


def rivals(scores: Scores, comparison: Comparison, task: str, chain: int) -> None:
    """The policy alone with other seeds, and two searches for a cosine's peak."""
    alone = comparison.entries[task, SUBJECT].runs
    grid: Grid = defaultdict(dict)
    for run in comparison.records:
        if run.task == task and run.method == "cosine" and run.lr is not None:
            grid[run.lr][run.seed] = run
    centre = math.log10(BY_NAME[task].centre or BY_NAME[task].lr)
    for count in COUNTS:
        if count <= len(alone):
            seeds = [alone[(chain + i) % len(alone)] for i in range(count)]
            scores.add("policy, other seeds", count, lowest(seeds))
        draws = random.Random(f"{task} {chain}")
        drawn = [centre + draws.uniform(-0.75, 0.75) for _ in range(count)]
        scores.add("random search", count, lowest([nearest(grid, x, chain) for x in drawn]))
        scores.add("TPE", count, lowest(tpe(grid, centre, chain, count)))


def tpe(grid: Grid, centre: float, chain: int, count: int) -> list[Record]:
    """Runs whose peaks Optuna proposes, after two at random."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    sampler = optuna.samplers.TPESampler(n_startup_trials=2, seed=chain)
    study = optuna.create_study(sampler=sampler)
    made = []

    def objective(trial: Any) -> float:
        made.append(nearest(grid, trial.suggest_float("x", centre - 0.75, centre + 0.75), chain))
        return final(made[-1])

    study.optimize(objective, n_trials=count)
    return made


def nearest(grid: Grid, log_peak: float, seed: int) -> Record:
    """The stored run whose peak is nearest, with this seed where there is one."""
    peak = min(grid, key=lambda lr: abs(math.log10(lr) - log_peak))
    return grid[peak].get(seed, grid[peak][min(grid[peak])])


def lowest(records: Sequence[Record]) -> Record:
    """The one with the lowest final training loss."""
    return min(records, key=final)


def final(record: Record) -> float:
    """Final training loss; large where a run diverged."""
    return 1e30 if record.final_train is None else record.final_train


def ranked_tasks() -> list[str]:
    """Those of the tables over all tasks."""
    return [task.name for task in TASKS if task.split not in APART]


def main() -> None:
    """Makes the runs, or prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=("make", "table"))
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--tasks", nargs="+", choices=BY_NAME, default=ranked_tasks())
    parser.add_argument("--half", type=int, choices=(0, 1), help="only every second task")
    parser.add_argument("--chains", type=int, default=CHAINS)
    parser.add_argument("--runs", type=int, default=max(COUNTS))
    arguments = parser.parse_args()
    tasks = arguments.tasks
    if arguments.half is not None:
        tasks = tasks[arguments.half :: 2]
    torch.set_num_threads(1)
    if arguments.what == "make":
        make(arguments.folder, tasks, arguments.chains, arguments.runs)
    else:
        print(report(arguments.folder, tasks))


if __name__ == "__main__":
    main()
