"""What came of a run of meta-training: whether it was cut short, and whether to use its policy."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, NamedTuple

from lightning_dqnlr.meta.promote import Candidate, RankedCandidate, bundled, compare, difference
from lightning_dqnlr.policy.policy import LRPolicy

if TYPE_CHECKING:
    from lightning_dqnlr.meta.train import MetaTrainer

FEWEST_TASKS = 4  # below that an interval over tasks has no width to speak of
_KEEP = "keep the bundled one, DQNLRCallback()."


class Beside(NamedTuple):
    """What a comparison with the bundled policy says."""

    verdict: Literal["worse", "better", "undecided"]
    text: str


def how_it_ended(trainer: MetaTrainer) -> str:
    """That the time limit ended the run, and how to go on; nothing if it came to its end."""
    episode, config = trainer.episode, trainer.config
    if episode >= config.episodes or config.max_minutes is None:
        return ""
    return (
        f"train.max_minutes={config.max_minutes:g} ended the run after {episode} of "
        f"{config.episodes} episodes. resume=true folder={trainer.folder} with a larger limit goes "
        "on."
    )


def against_bundled(trainer: MetaTrainer) -> str:
    """The run's best policy beside the bundled one, on its validation tasks and seeds, in words.

    Raises:
        PolicyFileError: if there is no `best` policy in the run's folder.
    """
    place = trainer.folder / "best"
    both = [Candidate("best", place, LRPolicy.load(place)), bundled()]
    for each in both:
        each.policy.network.to(trainer.config.device)
    tasks, seeds = trainer.validation_tasks(), range(trainer.config.evaluation_seeds)
    standings = compare(both, tasks, trainer.rivals, seeds, trainer.engine)
    mine, theirs = sorted(standings, key=lambda each: each.candidate.name != "best")
    found = beside_bundled(mine, theirs)
    chosen = " These tasks chose it; dqnlr promote compares on fresh ones."
    return found.text + chosen * (found.verdict == "better")


def beside_bundled(mine: RankedCandidate, theirs: RankedCandidate) -> Beside:
    """Better, worse or neither than the bundled policy, with what to do."""
    tasks = len(mine.scores.names)
    beside = (
        f"Beside the bundled policy, on these {tasks} tasks: score {mine.scores.score:.3f}, "
        f"the bundled one's {theirs.scores.score:.3f}."
    )
    if tasks < FEWEST_TASKS:
        return Beside("undecided", f"{beside} Fewer than {FEWEST_TASKS} tasks say little.")
    gap = difference(theirs, mine)  # of mine minus the bundled one's
    if gap.low > 0:
        behind = f"Worse by {gap.low:.3f} to {gap.high:.3f} (95%)"
        return Beside("worse", f"{beside} {behind}: {_KEEP}")
    if gap.high < 0:
        return Beside("better", f"{beside} Better by {-gap.high:.3f} to {-gap.low:.3f} (95%).")
    between = f"The difference is between {gap.low:.3f} and {gap.high:.3f} (95%)"
    return Beside("undecided", f"{beside} {between}, so neither is better for certain.")
