"""What is said of a policy beside the bundled one, by hand."""

from pathlib import Path

import pytest
import torch

from lightning_dqnlr.meta.outcome import beside_bundled
from lightning_dqnlr.meta.promote import Candidate, RankedCandidate
from lightning_dqnlr.policy.policy import LRPolicy
from lightning_dqnlr.scoring.evaluate import Regrets


def standing(*regrets):
    """Of one seed on so many tasks."""
    rows = torch.tensor(regrets).unsqueeze(-1)
    names = tuple(f"task/{i}" for i in range(len(rows)))
    candidate = Candidate("name", Path(), LRPolicy.load("default"))
    return RankedCandidate(candidate, Regrets(names, rows, rows, 0.0), 0)


@pytest.mark.parametrize(
    ("mine", "theirs", "verdict", "words"),
    [
        ([0.5] * 4, [0.2] * 4, "worse", "Worse by 0.300 to 0.300 (95%): keep the bundled one"),
        ([0.1] * 4, [0.2] * 4, "better", "Better by 0.100 to 0.100 (95%)."),
        ([0.1, 0.3] * 3, [0.2] * 6, "undecided", "so neither is better for certain."),
        ([0.5] * 3, [0.2] * 3, "undecided", "Fewer than 4 tasks say little."),
    ],
)
def test_the_verdict_is_by_the_interval_over_tasks(mine, theirs, verdict, words):
    found = beside_bundled(standing(*mine), standing(*theirs))
    assert found.verdict == verdict
    assert words in found.text
