"""Which policy of a sweep is the best: all of them again, side by side, on fresh tasks.

Each run chose its best policy on a few validation tasks of its own. The winner of a sweep by those
scores is therefore partly the luckiest. Here every policy meets the same validation tasks with the
same seeds, and none was selected on them. The test split is never touched.
"""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lightning_dqnlr.envs.environment import Engine
from lightning_dqnlr.envs.vector import ON_CPU
from lightning_dqnlr.errors import ConfigurationError, PolicyFileError
from lightning_dqnlr.policy.folder import RECORD, WEIGHTS
from lightning_dqnlr.policy.policy import LRPolicy
from lightning_dqnlr.scoring.cosine import regret
from lightning_dqnlr.scoring.evaluate import Regrets, Rivals, evaluate
from lightning_dqnlr.scoring.statistics import Interval, interquartile_mean, stratified_bootstrap
from lightning_dqnlr.tasks.task import Task

# Runs select on the validation tasks from number 0 on; none goes this far.
FIRST_TASK = 1000
_WIDTHS = {"score": 9, "mean": 9, "median": 9, "IQM": 9, "95% interval": 19, "p90": 9, "lost": 7}


@dataclass(frozen=True)
class Candidate:
    """A policy found on disk; the name is its folder below the sweep's."""

    name: str
    folder: Path
    policy: LRPolicy

    @property
    def overrides(self) -> list[str]:
        return list(self.policy.record.get("overrides", []))


@dataclass(frozen=True)
class RankedCandidate:
    """How a candidate did, by regrets of the training loss (tasks, seeds); lower is better.

    `lost` counts runs whose loss diverged.
    """

    candidate: Candidate
    scores: Regrets
    lost: int

    def numbers(self) -> dict[str, Any]:
        """The row of the table as plain JSON data."""
        regrets = self.scores.train
        return {
            "score": self.scores.score,
            "mean": regrets.mean().item(),
            "median": regrets.median().item(),
            "iqm": interquartile_mean(regrets),
            "iqm_interval_95": list(stratified_bootstrap(regrets)),
            "p90": regrets.flatten().quantile(0.9).item(),
            "lost": self.lost,
        }


BUNDLED = "the bundled policy"


def bundled() -> Candidate:
    """The policy that ships, to be compared with, under a name of its own."""
    return Candidate(BUNDLED, Path(), LRPolicy.load("default"))


def find_candidates(folders: Sequence[Path], skip: Callable[[str], None]) -> list[Candidate]:
    """The policies under the folders of runs, of sweeps or of policies, each once.

    A run's `last` may be its `best` once more. `skip` is called with a message for each policy that
    cannot be read: its run may have been killed.

    Raises:
        ConfigurationError: if there is none.
    """
    found: list[Candidate] = []
    known: set[tuple[Path, str]] = set()
    root = Path(os.path.commonpath([folder.resolve() for folder in folders]))
    for path in sorted({p.resolve() for folder in folders for p in folder.rglob(RECORD)}):
        folder = path.parent
        try:
            candidate = Candidate(os.path.relpath(folder, root), folder, LRPolicy.load(folder))
        except PolicyFileError as error:
            skip(f"{error}")
            continue
        key = (folder.parent, hashlib.sha256((folder / WEIGHTS).read_bytes()).hexdigest())
        if key not in known:
            known.add(key)
            found.append(candidate)
    if not found:
        raise ConfigurationError(
            f"No policy in {', '.join(map(str, folders))}: give folders that dqnlr-train wrote."
        )
    return found


def rivals_folder(folders: Sequence[Path]) -> Path | None:
    """Where tuned cosines are kept: never in a policy's own folder, which may be the package's."""
    runs = (folder for folder in folders if not (folder / RECORD).is_file())
    return next((folder / "rivals" for folder in runs), None)


def compare(
    candidates: Iterable[Candidate],
    tasks: Sequence[Task],
    rivals: Rivals,
    seeds: Sequence[int],
    engine: Engine = ON_CPU,
) -> list[RankedCandidate]:
    """Every candidate on every task and seed, each started as it was trained; the best first."""
    standings = []
    for candidate in candidates:
        scores = evaluate(candidate.policy, tasks, rivals, seeds, engine)
        standings.append(RankedCandidate(candidate, scores, _lost(scores.train, tasks, rivals)))
    return sorted(standings, key=lambda standing: standing.scores.score)


def _lost(regrets: Tensor, tasks: Sequence[Task], rivals: Rivals) -> int:
    """Runs at the regret that stands for a loss beyond all bounds."""
    worst = torch.tensor(math.inf)
    limits = [regret(worst, rivals[t].train_loss, rivals[t].initial_loss) for t in tasks]
    return int((~(regrets < torch.stack(limits)[:, None] - 1e-4)).sum())


def difference(first: RankedCandidate, second: RankedCandidate) -> Interval:
    """95% interval of the second's score minus the first's, over what other tasks would say.

    Both met the same tasks and seeds, so the differences are paired. Tasks are resampled, because
    they differ more than the seeds of one task do.
    """
    by_task = (second.scores.clipped - first.scores.clipped).mean(-1)
    return stratified_bootstrap(by_task[None], lambda values: values.mean(-1))


def verdict(standings: Sequence[RankedCandidate]) -> str:
    """Whether the winner's lead means anything, in one sentence."""
    if len(standings) == 1:
        return "It is the only candidate."
    lead = difference(*standings[:2])
    ahead = f"The second is behind by {lead.low:.3f} to {lead.high:.3f} in score (95%)"
    if lead.low <= 0:
        return f"{ahead}: within noise, either could be the better one."
    return f"{ahead}: more than noise."


def table(standings: Sequence[RankedCandidate]) -> str:
    """One line per candidate, the best first, with what its run was told to do differently."""
    theirs = [set(s.candidate.overrides) for s in standings if s.candidate.name != BUNDLED]
    shared = set.intersection(*theirs) if theirs else set()
    name = max(len("policy"), *(len(s.candidate.name) for s in standings))
    header = "".join(f"{text:>{width}}" for text, width in _WIDTHS.items())
    lines = [f"{'policy':<{name}}{header}  overrides"]
    for standing in standings:
        row = standing.numbers()
        low, high = row["iqm_interval_95"]
        cells = [f"{row[key]:.3f}" for key in ("score", "mean", "median", "iqm")]
        cells += [f"[{low:.3f}, {high:.3f}]", f"{row['p90']:.3f}", f"{row['lost']}"]
        text = "".join(f"{cell:>{w}}" for cell, w in zip(cells, _WIDTHS.values(), strict=True))
        own = " ".join(o for o in standing.candidate.overrides if o not in shared)
        lines.append(f"{standing.candidate.name:<{name}}{text}  {own}".rstrip())
    return "\n".join(lines)


def best_of_own(standings: Sequence[RankedCandidate]) -> RankedCandidate:
    """The first one that is not the bundled policy."""
    return next(s for s in standings if s.candidate.name != BUNDLED)


def promote(standings: Sequence[RankedCandidate], into: Path, seeds: int) -> Path:
    """Copies the best of one's own, with a record of what it was compared with.

    The best standing comes first. `seeds` is how many each task was run with. A policy that is
    there already is replaced as a whole. The result is the folder.

    Raises:
        ConfigurationError: if the folder cannot be written.
    """
    best = best_of_own(standings)
    others = [standing for standing in standings if standing is not best]
    lead = difference(best, others[0]) if others else None
    winner = best.candidate.policy
    winner.record = {
        **winner.record,
        "promoted": {
            "from": best.candidate.name,
            "split": "validation",
            "tasks": list(standings[0].scores.names),
            "seeds": seeds,
            "lead_in_score_95": lead,
            "within_noise": lead is not None and lead.low <= 0 <= lead.high,
            "candidates": [
                {"name": s.candidate.name, "overrides": s.candidate.overrides, **s.numbers()}
                for s in standings
            ],
        },
    }
    return winner.save(into)
