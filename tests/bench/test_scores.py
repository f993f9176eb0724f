import pytest
import torch

from lightning_dqnlr.bench.scores import interquartile_mean, stratified_bootstrap


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
