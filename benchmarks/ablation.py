"""Turns the runs of `experiment=ablation` into a table and a plot for the documentation.

    dqnlr-train -m experiment=ablation folder=outputs/ablation
    python benchmarks/ablation.py outputs/ablation --into docs/ablation.md

Every run counts with its last evaluation, not with its best. Runs of one seed must have had the
same episodes, updates and inner steps, for the comparison is one at equal compute.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from statistics import mean
from typing import Any, NamedTuple

from matplotlib.figure import Figure

from lightning_dqnlr.bench.report.content import Table
from lightning_dqnlr.files import write_atomically
from lightning_dqnlr.policy.policy import RECORD

BASE = "n_step"  # what the others of the ladder add one thing to (conf/agent/classic.yaml)
_FIGURES = {"regret_mean": "mean", "regret_median": "median", "regret_p90": "90th pct."}
_COMPUTE = ("episodes", "updates", "inner_steps")


class SweepRun(NamedTuple):
    """One run of a sweep, with the record of its last policy."""

    agent: str
    seed: int
    record: dict[str, Any]

    @property
    def score(self) -> float:
        """Clipped mean regret on the validation tasks, which selects policies."""
        return float(self.record["validation"]["score"])


def read_runs(sweep: Path) -> list[SweepRun]:
    """All runs of a sweep's folder.

    Args:
        sweep: what `folder=` was.

    Raises:
        SystemExit: no finished run, two of one agent and seed, seeds missing, unequal compute.
    """
    runs = []
    for path in sorted(sweep.glob(f"*/last/{RECORD}")):
        record = json.loads(path.read_text())["record"]
        chosen = dict(override.split("=", 1) for override in record["overrides"])
        runs.append(SweepRun(chosen.get("agent", "default"), int(record["seed"]), record))
    _check(runs, sweep)
    return runs


def _check(runs: Sequence[SweepRun], sweep: Path) -> None:
    if not runs:
        raise SystemExit(f"{sweep} holds no runs (*/last/{RECORD}); give the folder of a sweep.")
    pairs = {(run.agent, run.seed) for run in runs}
    agents, seeds = {agent for agent, _ in pairs}, {seed for _, seed in pairs}
    missing = sorted({(a, s) for a in agents for s in seeds} - pairs)
    if missing or len(pairs) < len(runs):
        raise SystemExit(f"{sweep}: one run per agent and seed is needed; missing: {missing}.")
    for seed in seeds:
        compute = {tuple(r.record[name] for name in _COMPUTE) for r in runs if r.seed == seed}
        if len(compute) > 1:
            raise SystemExit(f"{sweep}: seed {seed} had unequal {_COMPUTE}: {sorted(compute)}.")


def ranked(runs: Sequence[SweepRun]) -> list[list[SweepRun]]:
    """The runs of each agent, ordered by seed; the best agent first."""
    agents = {run.agent for run in runs}
    groups = [sorted((r for r in runs if r.agent == a), key=lambda r: r.seed) for a in agents]
    return sorted(groups, key=lambda group: (_mean(group, "score"), group[0].agent))


def table(runs: Sequence[SweepRun]) -> str:
    """A Markdown table, one line per agent, the best first."""
    groups = ranked(runs)
    base = next((group for group in groups if group[0].agent == BASE), None)
    names = ("agent", "score", "over the seeds", f"against {BASE}", *_FIGURES.values(), "minutes")
    return Table(names, tuple(_cells(group, base) for group in groups)).markdown()


def _cells(group: Sequence[SweepRun], base: Sequence[SweepRun] | None) -> tuple[str, ...]:
    scores = [run.score for run in group]
    return (
        group[0].agent,
        f"{mean(scores):.3f}",
        f"{min(scores):.3f} to {max(scores):.3f}",
        _difference(scores, base),
        *(f"{_mean(group, name):.3f}" for name in _FIGURES),
        f"{mean(run.record['minutes'] for run in group):.1f}",
    )


def _difference(scores: Sequence[float], base: Sequence[SweepRun] | None) -> str:
    """Mean and range of the differences between runs of the same seed, that is the same tasks."""
    if base is None:
        return "-"
    pairs = [score - run.score for score, run in zip(scores, base, strict=True)]
    if not any(pairs):
        return "0"
    return f"{mean(pairs):+.3f} ({min(pairs):+.3f} to {max(pairs):+.3f})"


def _mean(group: Sequence[SweepRun], name: str) -> float:
    return mean(run.record["validation"][name] for run in group)


def plot(runs: Sequence[SweepRun], path: Path) -> None:
    """A point per run, a bar at the mean of each agent."""
    groups = ranked(runs)
    figure = Figure(figsize=(7, 0.45 * len(groups) + 1.2), layout="constrained")
    axes = figure.subplots()
    for place, group in enumerate(groups):
        scores = [run.score for run in group]
        axes.plot(scores, [place] * len(scores), "o", color="tab:blue", alpha=0.6)
        axes.plot([mean(scores)], [place], "|", color="black", ms=18, mew=2)
    axes.set_yticks(range(len(groups)), [group[0].agent for group in groups])
    axes.invert_yaxis()
    axes.set_xlabel("clipped mean regret on validation tasks (lower is better); one point a seed")
    axes.grid(axis="x", alpha=0.3)
    figure.savefig(path)


def page(runs: Sequence[SweepRun], plot_name: str) -> str:
    """The whole page."""
    first = runs[0].record
    tasks = len(first["validation"]["tasks"])
    seeds = sorted({run.seed for run in runs})
    steps = mean(run.record["inner_steps"] for run in runs)
    return f"""# Agents at equal compute

The agents have {len(seeds)} seeds each, {first["episodes"]} episodes, {first["updates"]:,} updates
and {steps / 1e6:.2f} million inner steps per run. Each run is evaluated once, at its end, on
{tasks} validation tasks. Regret is log((L + e) / (L_cos + e)), with e = 1% of the initial loss.
L is the training loss and L_cos that of the tuned cosine, so 0 is as good. The score is the mean
regret, with each run clipped to [-0.5, 2]. Runs of one seed share their training tasks. So
"against {BASE}" compares them pair by pair (mean, range). What changes sign from seed to seed is no
difference. Times are those of the whole training and depend on what else the machine did.

{table(runs)}

![One point per run]({plot_name})

Each agent is `agent=<name>`; `conf/agent/classic.yaml` says how they differ. The page was made by
`benchmarks/ablation.py` at commit {str(first["commit"])[:7]}, {first["created"][:10]}.
"""


def main() -> None:
    """Reads a sweep, writes the page and the plot beside it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("sweep", type=Path, help="what folder= was")
    parser.add_argument("--into", type=Path, help="the page (default: ablation.md in the sweep)")
    arguments = parser.parse_args()
    runs = read_runs(arguments.sweep)
    into = arguments.into or arguments.sweep / "ablation.md"
    picture = into.with_suffix(".svg")
    write_atomically(into, page(runs, picture.name).encode())
    plot(runs, picture)
    print(table(runs))
    print(f"\nWritten to {into} and {picture}")


if __name__ == "__main__":
    main()
