"""`benchmarks/many_runs.py`: what it counts as lost, and what it says of it."""

import many_runs
import torch

from lightning_dqnlr.envs.vector import ON_CPU
from lightning_dqnlr.tasks.families.basic import NoisyQuadratics


def test_a_loss_that_is_not_finite_is_lost_and_one_that_stayed_the_same_is_not():
    before, after = torch.full((4,), 2.0), torch.tensor([1.0, 2.0, torch.nan, torch.inf])
    assert many_runs.shares(before, after).tolist() == [0.5, 1.0, torch.inf, torch.inf]


def quadratic():
    return NoisyQuadratics(optimizers=["sgd"], min_horizon=20, max_horizon=20).sample(0, "test")


def test_each_seed_is_compared_with_its_own_start_under_every_peak():
    """Decoy: peaks and seeds the other way round have the same shape after a reshape."""
    task = quadratic()
    before = ON_CPU.follow(task, range(3), lambda _: torch.zeros(3), steps=0).train
    found = many_runs.shares_under_cosine(task, before, ON_CPU)
    peak = len(found) // 2
    lr = torch.full((3,), many_runs.PEAKS[peak])
    alone = many_runs.run_cosine(task, lr, range(3)).train
    assert torch.allclose(found[peak], alone / before, rtol=1e-5)
    assert found[0].allclose(torch.ones(3), atol=1e-2)  # a peak of 1e-6 changes next to nothing


def test_a_lost_run_is_reported_with_the_best_that_a_cosine_makes_of_its_seed():
    rival = torch.tensor([[0.75, 1.5], [0.5, 0.25], [2.0, 3.0]])
    said = many_runs.describe(quadratic(), torch.tensor([1.25, 0.5]), rival).splitlines()
    assert said[0].endswith("2 of 3 cosine peaks lose a run as well")
    assert said[1:] == ["  seed 0: ends at 1.25000 of its start, at best 0.50000 with a cosine"]
