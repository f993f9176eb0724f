"""Measures a policy on the test tasks and writes its model card.

    python benchmarks/model_card.py lightning_dqnlr/policy/default

Tasks of the "test" split are met nowhere else: meta-training draws from "train", selection from
"validation". Every task's rival is the best of a grid of cosine peaks (quarter decades, 1e-6..1e2,
with warm-up; the mean over three seeds decides). The three controls keep the policy's harness.
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import sys
from datetime import date
from pathlib import Path

import torch
from tqdm import tqdm

from lightning_dqnlr.bench.methods.controls import state_blind, study, untrained
from lightning_dqnlr.envs.vector import VectorEngine
from lightning_dqnlr.files import write_atomically
from lightning_dqnlr.policy.choice import Act
from lightning_dqnlr.policy.policy import LRPolicy
from lightning_dqnlr.scoring.evaluate import Regrets, Rivals, evaluate
from lightning_dqnlr.scoring.statistics import interquartile_mean, stratified_bootstrap
from lightning_dqnlr.tasks import DigitsCNNs, DigitsMLPs, Mixture, NoisyQuadratics, TeacherMLPs
from lightning_dqnlr.tasks.task import Task

HORIZONS = {"min_horizon": 100, "max_horizon": 1000}


def suite(split: str, count: int) -> list[Task]:
    """The first tasks of a split, four families in turn."""
    families = (
        NoisyQuadratics(**HORIZONS),
        DigitsMLPs(**HORIZONS),
        TeacherMLPs(**HORIZONS),
        DigitsCNNs(min_horizon=100, max_horizon=500),
    )
    mixture = Mixture(families, (1.0, 1.0, 1.5, 0.7))
    return [mixture.sample(seed, split) for seed in range(count)]


def measure(policy: LRPolicy, arguments: argparse.Namespace) -> dict[str, Regrets]:
    """Scores of the policy and of its controls on the test tasks."""
    engine = VectorEngine(arguments.device)
    rivals, seeds = Rivals(arguments.rivals, engine), range(arguments.seeds)
    frequencies, curve = study(policy, suite("validation", 12), range(4), engine)
    behaviours: dict[str, Act] = {
        "trained policy": policy.act,
        "control: replay of its mean LR curve": curve.act,
        "control: state-blind random": state_blind(frequencies),
        "control: untrained": untrained(policy),
    }
    tasks = suite("test", arguments.tasks)
    for task in tqdm(tasks, desc="tuning the rival cosines"):
        rivals[task]
    spec = policy.spec
    return {
        name: evaluate(act, spec, tasks, rivals, seeds, engine)
        for name, act in tqdm(behaviours.items(), desc="measuring")
    }


def row(name: str, scores: Regrets) -> str:
    """One line of the table."""
    flat = scores.train.flatten()
    low, high = stratified_bootstrap(scores.train)
    summary = scores.summary()
    lost = (flat > 2.0).float().mean().item()
    return (
        f"| {name} | {interquartile_mean(flat):.3f} [{low:.3f}, {high:.3f}] "
        f"| {summary['regret_median']:.3f} | {summary['regret_p90']:.2f} "
        f"| {summary['regret_max']:.2f} | {summary['regret_within_2_percent']:.0%} "
        f"| {summary['validation_regret_iqm']:.3f} | {lost:.1%} |"
    )


def by_task(scores: Regrets, tasks: list[Task]) -> list[str]:
    """One line per test task, worst first."""
    rows = zip(
        tasks, scores.train.mean(1).tolist(), scores.validation.mean(1).tolist(), strict=True
    )
    return [
        f"| {task.name} | {task.optimizer} | {task.batch_size} | {task.horizon}"
        f"{'' if task.known_horizon else ' (not told)'} | {train:.3f} | {validation:.3f} |"
        for task, train, validation in sorted(rows, key=lambda item: -item[1])
    ]


def card(policy: LRPolicy, scores: dict[str, Regrets], arguments: argparse.Namespace) -> str:
    """The model card, in Markdown."""
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False
    ).stdout.strip()
    # The mixture's full description is a page long; the policy's own file keeps it.
    left_out = ("validation", "test", "tasks")
    origin = {k: v for k, v in policy.record.items() if k not in left_out}
    origin["members"] = [
        {k: v for k, v in member.items() if k != "tasks"}
        | {"validation": member["validation"]["score"]}
        for member in origin.get("members", [])
    ]
    bars = [] if arguments.bars is None else ["", "## The bars", "", arguments.bars.read_text()]
    header = (
        "| | IQM of regret [95% CI] | median | 90th pct. | worst | within 2% | "
        "IQM, validation loss | lost |"
    )
    lines = [
        "# Model card of the bundled policy",
        "",
        "Regret is log((L + e) / (L_cos + e)) on the final training loss of the whole training "
        "set in eval mode, e = 1% of the initial loss, L_cos the best of "
        "33 cosine peaks over eight decades. 0 is as good as the tuned cosine, 0.10 is 10% above "
        "it. A run with regret above 2, or a loss that is not finite, counts as lost.",
        "",
        f"## Measured on {arguments.tasks} test tasks x {arguments.seeds} seeds",
        "",
        header,
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
        *[row(name, value) for name, value in scores.items()],
        "",
        f"Measured by `python {' '.join(sys.argv)}` at commit {commit or 'unknown'} on "
        f"{date.today()}, {platform.machine()} CPU, torch {torch.__version__}.",
        "",
        "The controls keep the safe start, the built-in decay, the update cap and the "
        "circuit breaker; only the choice of actions differs.",
        *bars,
        "",
        "### By task",
        "",
        "| task | optimizer | batch | steps | regret | on validation loss |",
        "| --- | --- | --- | --- | --- | --- |",
        *by_task(scores["trained policy"], suite("test", arguments.tasks)),
        "",
        "## How it was trained",
        "",
        "The description of the training tasks is in `policy.json` besides.",
        "",
        "<details><summary>Settings, seeds, commits and versions</summary>",
        "",
        "```json",
        json.dumps(origin, indent=2),
        "```",
        "",
        "</details>",
        "",
    ]
    return "\n".join(lines)


def main() -> None:
    """Writes MODEL_CARD.md beside the policy (or prints it with --print)."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("policy", type=Path)
    parser.add_argument("--tasks", type=int, default=24)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rivals", type=Path, default=Path("outputs/rivals"))
    parser.add_argument("--bars", type=Path, help="a text for the card, from benchmarks/bars.py")
    parser.add_argument("--print", action="store_true", help="do not write the file")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    policy = LRPolicy.load(arguments.policy)
    scores = measure(policy, arguments)
    content = card(policy, scores, arguments)
    print(content)
    if not arguments.print:
        policy.record["test"] = {name: value.summary() for name, value in scores.items()}
        policy.save(arguments.policy)
        write_atomically(arguments.policy / "MODEL_CARD.md", content.encode())


if __name__ == "__main__":
    main()
