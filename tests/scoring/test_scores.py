import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lightning_dqnlr.scoring.statistics import (
    improvement_interval,
    interquartile_mean,
    probability_of_improvement,
    stratified_bootstrap,
    summarize,
)

values = st.lists(st.floats(-5.0, 5.0, width=32), min_size=1, max_size=8)


def test_interquartile_mean_by_hand():
    # A quarter of eight is two at each end: the mean of 3, 4, 5, 6.
    values = torch.tensor([8.0, 1.0, 100.0, 3.0, 6.0, -50.0, 4.0, 5.0])
    assert interquartile_mean(values) == pytest.approx(4.5)


def test_interquartile_mean_of_five_cuts_one_at_each_end():
    assert interquartile_mean(torch.tensor([9.0, 0.0, 1.0, 2.0, 3.0])) == pytest.approx(2.0)


def test_bootstrap_resamples_within_tasks_so_that_their_differences_add_no_width():
    between = torch.tensor([0.0, 10.0, 20.0, 30.0])[:, None].expand(4, 6)
    low, high = stratified_bootstrap(between, samples=200)
    assert low == high == pytest.approx(15.0)


def test_bootstrap_interval_of_a_mean_matches_the_normal_one():
    torch.manual_seed(0)
    scores = torch.randn(1, 400)
    low, high = stratified_bootstrap(scores, lambda x: x.mean(-1), samples=3000)
    error = scores.std().item() / 20
    assert high - low == pytest.approx(2 * 1.96 * error, rel=0.1)
    assert (low + high) / 2 == pytest.approx(scores.mean().item(), abs=0.2 * error)


def test_bootstrap_is_the_same_for_the_same_seed():
    scores = torch.rand(3, 5)
    assert stratified_bootstrap(scores, samples=50) == stratified_bootstrap(scores, samples=50)


def test_bootstrap_takes_tasks_with_different_numbers_of_seeds():
    scores = [torch.tensor([1.0, 1.0]), torch.tensor([3.0, 3.0, 3.0, 3.0])]
    low, high = stratified_bootstrap(scores, lambda x: x.mean(-1), samples=50)
    assert low == high == pytest.approx((2 * 1 + 4 * 3) / 6)


def test_summary_by_hand():
    log2 = math.log(2)
    shown = summarize([torch.tensor([log2, -log2]), torch.tensor([0.0, log2])], samples=50)
    assert shown.iqm == pytest.approx(log2 / 2)
    assert shown.median == pytest.approx(log2 / 2)
    assert shown.p90 == pytest.approx(log2)
    assert shown.worst == pytest.approx(log2)
    assert shown.within == 0.5
    assert shown.interval[0] <= shown.iqm <= shown.interval[1]


def test_within_two_percent_is_of_the_loss_and_counts_better_runs():
    scores = torch.tensor([[math.log(1.0199), math.log(1.0201), -3.0, 0.0]])
    assert summarize(scores, samples=2).within == 0.75


def test_probability_of_improvement_counts_ties_half_and_tasks_alike():
    # Lower is better. First task: one of one. Second: pairs (0, 0) twice tie, (1, 0) twice lose.
    first = [torch.tensor([1.0]), torch.tensor([0.0, 1.0])]
    second = [torch.tensor([2.0]), torch.tensor([0.0, 0.0])]
    assert probability_of_improvement(first, second) == pytest.approx((1 + 0.25) / 2)
    assert probability_of_improvement(second, first) == pytest.approx((0 + 0.75) / 2)


def test_probability_of_improvement_interval_resamples_both_sides():
    wide, point = torch.tensor([[0.0, 2.0]]), torch.tensor([[1.0, 1.0]])
    for x, y in ((wide, point), (point, wide)):
        assert improvement_interval(x, y, samples=300) == (0.0, 1.0)


def test_probability_of_improvement_over_tasks_is_as_uncertain_as_the_tasks_differ():
    won_and_lost, rival = torch.tensor([[0.0], [2.0]]), torch.tensor([[1.0], [1.0]])
    assert improvement_interval(won_and_lost, rival, samples=300) == (0.5, 0.5)
    both = improvement_interval(won_and_lost, rival, samples=300, over_tasks=True)
    assert both == (0.0, 1.0)


@given(values, values)
def test_probabilities_of_improvement_sum_to_one(x, y):
    x, y = torch.tensor([x]), torch.tensor([y])
    both = probability_of_improvement(x, y) + probability_of_improvement(y, x)
    assert both == pytest.approx(1.0)


@given(values, st.randoms())
def test_the_order_of_the_seeds_does_not_matter(x, random):
    mixed = random.sample(x, len(x))
    first, second = (summarize([torch.tensor(v)], samples=2) for v in (x, mixed))
    for name in ("iqm", "median", "p90", "worst", "within"):
        assert getattr(first, name) == pytest.approx(getattr(second, name), abs=1e-9)


@given(values, st.integers(0, 7), st.floats(0.0, 10.0))
def test_a_worse_run_never_improves_a_score(x, i, worse):
    worsened = list(x)
    worsened[i % len(x)] += worse
    first, second = (summarize([torch.tensor(v)], samples=2) for v in (x, worsened))
    for name in ("iqm", "median", "p90", "worst"):
        assert getattr(second, name) >= getattr(first, name) - 1e-6
    assert second.within <= first.within
