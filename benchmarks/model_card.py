"""Measures a policy on the test tasks and writes its model card.

    python benchmarks/model_card.py lightning_dqnlr/policy/default

Tasks of the "test" split are met nowhere else: meta-training draws from "train", selection from
"validation". Every task's rival is the best of a grid of cosine peaks (quarter decades, 1e-6..1e2,
with warm-up; the mean over three seeds decides). The three controls keep the policy's harness.
"""

from __future__ import annotations

import argparse
import platform
import sys
from datetime import date
from pathlib import Path

import torch
from tqdm import tqdm

from lightning_dqnlr.bench.methods.policies import in_harness, state_blind, study, untrained
from lightning_dqnlr.bench.report.content import Table
from lightning_dqnlr.envs.vector import VectorEngine
from lightning_dqnlr.files import write_atomically
from lightning_dqnlr.policy.card import settings
from lightning_dqnlr.policy.policy import LRPolicy
from lightning_dqnlr.provenance import provenance
from lightning_dqnlr.scoring.evaluate import Regrets, Rivals, evaluate
from lightning_dqnlr.scoring.statistics import stratified_bootstrap
from lightning_dqnlr.tasks import DigitsCNNs, DigitsMLPs, Mixture, NoisyQuadratics, TeacherMLPs
from lightning_dqnlr.tasks.task import Task

HORIZONS = {"min_horizon": 100, "max_horizon": 1000}
POLICY = "trained policy"


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


def measure(
    policy: LRPolicy, tasks: list[Task], seeds: range, rivals: Rivals, engine: VectorEngine
) -> dict[str, Regrets]:
    """Regrets of the policy and of its controls."""
    frequencies, curve = study(policy, suite("validation", 12), range(4), engine)
    behaviours = {
        POLICY: policy,
        "control: replay of its mean LR curve": in_harness(curve.act, policy),
        "control: state-blind random": in_harness(state_blind(frequencies), policy),
        "control: untrained": in_harness(untrained(policy), policy),
    }
    for task in tqdm(tasks, desc="tuning the rival cosines"):
        rivals[task]
    return {
        name: evaluate(behaviour, tasks, rivals, seeds, engine)
        for name, behaviour in tqdm(behaviours.items(), desc="measuring")
    }


def figures(scores: dict[str, Regrets]) -> str:
    """The policy and its controls, a row each."""
    header = ("", "IQM of regret [95% CI]", "median", "90th pct.", "worst", "within 2%")
    rows = []
    for name, found in scores.items():
        interval = stratified_bootstrap(found.train)
        of = found.summary()
        lost = (found.train.flatten() > 2.0).float().mean().item()
        cells = (
            name,
            f"{of['regret_iqm']:.3f} [{interval.low:.3f}, {interval.high:.3f}]",
            f"{of['regret_median']:.3f}",
            f"{of['regret_p90']:.2f}",
            f"{of['regret_max']:.2f}",
            f"{of['regret_within_2_percent']:.0%}",
            f"{of['validation_regret_iqm']:.3f}",
            f"{lost:.1%}",
        )
        rows.append(cells)
    return Table((*header, "IQM, validation loss", "lost"), tuple(rows)).markdown()


def by_task(scores: Regrets, tasks: list[Task]) -> str:
    """One row per test task, worst first."""
    header = ("task", "optimizer", "batch", "steps", "regret", "on validation loss")
    means = zip(scores.train.mean(1).tolist(), scores.validation.mean(1).tolist(), strict=True)
    rows = []
    for task, (train, validation) in sorted(
        zip(tasks, means, strict=True), key=lambda row: -row[1][0]
    ):
        steps = f"{task.horizon}{'' if task.known_horizon else ' (not told)'}"
        about = (task.name, task.optimizer, str(task.batch_size), steps)
        rows.append((*about, f"{train:.3f}", f"{validation:.3f}"))
    return Table(header, tuple(rows)).markdown()


def card(
    policy: LRPolicy, scores: dict[str, Regrets], tasks: list[Task], seeds: range, bars: str
) -> str:
    """The model card, in Markdown."""
    commit = (provenance()["commit"] or "unknown")[:7]
    return f"""# Model card of the bundled policy

Regret is log((L + e) / (L_cos + e)) on the final training loss of the whole training set in eval \
mode, e = 1% of the initial loss, L_cos the best of 33 cosine peaks over eight decades. 0 is as \
good as the tuned cosine, 0.10 is 10% above it. A run with regret above 2, or a loss that is not \
finite, counts as lost.

## Measured on {len(tasks)} test tasks x {len(seeds)} seeds

{figures(scores)}

Measured by `python {" ".join(sys.argv)}` at commit {commit} on {date.today()}, \
{platform.machine()} CPU, torch {torch.__version__}.

The controls keep the safe start, the built-in decay, the update cap and the circuit breaker; only \
the choice of actions differs.
{bars}
### By task

{by_task(scores[POLICY], tasks)}

## How it was trained

The description of the training tasks is in `policy.json` besides.

<details><summary>Settings, seeds, commits and versions</summary>

```json
{settings(policy)}
```

</details>
"""


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
    policy, engine = LRPolicy.load(arguments.policy), VectorEngine(arguments.device)
    tasks, seeds = suite("test", arguments.tasks), range(arguments.seeds)
    scores = measure(policy, tasks, seeds, Rivals(arguments.rivals, engine), engine)
    bars = f"\n## The bars\n\n{arguments.bars.read_text()}\n" if arguments.bars else ""
    content = card(policy, scores, tasks, seeds, bars)
    print(content)
    if not arguments.print:
        policy.record["test"] = {name: value.summary() for name, value in scores.items()}
        policy.save(arguments.policy)
        write_atomically(arguments.policy / "MODEL_CARD.md", content.encode())


if __name__ == "__main__":
    main()
