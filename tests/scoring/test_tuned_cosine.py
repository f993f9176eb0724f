import math

import pytest
import torch
from lightning import LightningModule
from torch import nn

from lightning_dqnlr.scoring.cosine import cosine, regret, run_cosine, tune_cosine
from lightning_dqnlr.tasks.task import Task


class Bowl(LightningModule):
    """sum(h * w^2) / 2 with curvatures 1 and 1/4, from w = (1, 1), the same for every batch."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(2))

    def training_step(self, batch, index):
        curvature = torch.tensor([1.0, 0.25])
        return 0.5 * (curvature * self.weight.square()).sum() + 0.0 * batch[0].sum()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=1.0)


def bowl(horizon, offset=0.0):
    return Task(
        name="bowl",
        family="bowl",
        seed=0,
        build=lambda seed: Bowl(),
        train_data=(torch.full((8, 1), offset),),
        validation_data=(torch.full((8, 1), offset),),
        batch_size=4,
        optimizer="sgd",
        horizon=horizon,
    )


def descend(peak, horizon):
    """The same run in plain Python."""
    first = second = 1.0
    for step in range(horizon):
        lr = peak * cosine(step, horizon)
        first, second = first * (1 - lr), second * (1 - 0.25 * lr)
    return 0.5 * (first**2 + 0.25 * second**2)


@pytest.mark.parametrize(
    ("step", "share"),
    [
        (0, 0.5),  # warm-up is 5% of 40, two steps
        (1, 1.0),
        (2, 1.0),  # the cosine begins at its peak
        (21, 0.5),  # half of the remaining 38
        (39, 0.5 * (1 + math.cos(math.pi * 37 / 38))),
    ],
)
def test_the_cosine_warms_up_and_falls_to_zero(step, share):
    assert cosine(step, 40) == pytest.approx(share)


def test_the_shortest_runs_have_a_schedule_too():
    assert [cosine(step, 1) for step in range(1)] == [1.0]
    assert [cosine(step, 3) for step in range(3)] == pytest.approx([1.0, 1.0, 0.5])


def test_a_run_follows_the_schedule_at_its_own_peak():
    losses = run_cosine(bowl(20), torch.tensor([0.1, 1.0]), [0, 1]).train
    torch.testing.assert_close(losses, torch.tensor([descend(0.1, 20), descend(1.0, 20)]))


def test_tuning_finds_the_best_peak_of_a_quadratic():
    """By plain Python, 1.7783 is the best of the grid; above 2 the steep direction grows."""
    grid = [10 ** (e / 4) for e in range(-24, 9)]
    tuned = tune_cosine(bowl(20))
    assert tuned.peak == pytest.approx(min(grid, key=lambda peak: descend(peak, 20)))
    assert tuned.train_loss == pytest.approx(descend(tuned.peak, 20), abs=1e-6)
    assert tuned.initial_loss == pytest.approx(0.625)
    assert 0.5 < tuned.peak < 4.0


def test_a_diverged_peak_counts_at_ten_times_the_initial_loss():
    """At a peak of 100 the weights overflow within 60 steps."""
    tuned = tune_cosine(bowl(60), peaks=(0.01, 100.0), seeds=(0, 1))
    assert tuned.peak == pytest.approx(0.01)
    assert tuned.train_losses[1] == pytest.approx(6.25)


def test_the_seeds_average_in_log_space_per_peak():
    one = tune_cosine(bowl(10), peaks=(0.1, 0.2), seeds=(0,))
    three = tune_cosine(bowl(10), peaks=(0.1, 0.2), seeds=(0, 1, 2))
    assert three.train_losses == pytest.approx(one.train_losses)
    assert three.train_losses == pytest.approx([descend(0.1, 10), descend(0.2, 10)])


def test_regret_is_the_log_ratio_above_a_floor_of_one_percent():
    """Initial loss 2, so the floor is 0.02: log(0.12 / 0.07), 0, and log(0.02 / 0.07)."""
    got = regret(torch.tensor([0.1, 0.05, 0.0]), 0.05, 2.0)
    wanted = torch.tensor([math.log(0.12 / 0.07), 0.0, math.log(0.02 / 0.07)])
    torch.testing.assert_close(got, wanted)


def test_runs_that_diverged_count_at_a_fixed_large_regret():
    """Ten times the initial loss, 20, over the floor 0.02: NaN, inf and 1e30 alike."""
    got = regret(torch.tensor([math.nan, math.inf, 1e30, 20.0]), 0.05, 2.0)
    torch.testing.assert_close(got, torch.full((4,), math.log(20.02 / 0.07)))


def test_losses_below_zero_are_no_better_than_zero():
    got = regret(torch.tensor([-5.0, 0.0, -math.inf]), -1.0, 2.0)
    torch.testing.assert_close(got, torch.zeros(3))
