import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lightning_dqnlr.errors import ConfigurationError
from lightning_dqnlr.rl.rewards import (
    group_final_score,
    group_relative,
    log_progress,
    loss_change,
)


def test_loss_change_weighs_sign_and_decrease_separately():
    previous = torch.tensor([[2.0, 1.0], [3.0, -1.0]])
    loss = torch.tensor([[1.5, 1.25], [3.0, -3.0]])
    # decreases 0.5, -0.25, 0, 2: 2*sign + 10*decrease
    expected = torch.tensor([[7.0, -4.5], [0.0, 22.0]])
    torch.testing.assert_close(loss_change(previous, loss, alpha_1=2.0, alpha_2=10.0), expected)


def test_loss_change_defaults_to_unit_weights():
    reward = loss_change(torch.tensor(2.0), torch.tensor(1.5))
    torch.testing.assert_close(reward, torch.tensor(1.5))


def test_loss_change_pays_nothing_for_an_unchanged_loss():
    loss = torch.tensor([0.7, 0.0, -0.2])
    assert torch.equal(loss_change(loss, loss, 5.0, 3.0), torch.zeros(3))


def test_log_progress_is_the_log_ratio_above_one_percent_of_the_initial_loss():
    # e = 0.01 * 100 = 1: log((4 + 1) / (1 + 1)) = log 2.5, and a loss of 0 is no singularity.
    previous, loss = torch.tensor([4.0, 1.0]), torch.tensor([1.0, 0.0])
    expected = torch.tensor([math.log(2.5), math.log(2.0)])
    torch.testing.assert_close(log_progress(previous, loss, torch.tensor(100.0)), expected)


def test_log_progress_continues_below_zero():
    # y(1) - y(-3) = log 2 + log 4, with e = 1
    reward = log_progress(torch.tensor(1.0), torch.tensor(-3.0), torch.tensor(100.0))
    torch.testing.assert_close(reward, torch.tensor(math.log(8.0)))


@given(st.lists(st.floats(-50, 50, width=32), min_size=2, max_size=8))
def test_log_progress_telescopes_to_the_whole_run(values):
    losses = torch.tensor(values, dtype=torch.float64)
    initial = torch.tensor(10.0, dtype=torch.float64)
    total = log_progress(losses[:-1], losses[1:], initial).sum()
    torch.testing.assert_close(total, log_progress(losses[0], losses[-1], initial))


def test_group_relative_by_hand():
    rewards = torch.tensor([[1.0, 3.0], [2.0, 4.0]])
    # means 2 and 3; totals 3 and 7, whose biased spread is 2 (the unbiased one would be 2.83)
    expected = torch.tensor([[-0.5, 0.5], [-0.5, 0.5]])
    torch.testing.assert_close(group_relative(rewards), expected)


def test_group_relative_divides_by_the_spread_of_totals_not_of_rewards():
    # Each interval spreads by 1, the totals (3, 5, 4) by sqrt(2/3).
    rewards = torch.tensor([[1.0, 2.0, 3.0], [2.0, 3.0, 1.0]])
    centred = torch.tensor([[-1.0, 0.0, 1.0], [0.0, 1.0, -1.0]])
    torch.testing.assert_close(group_relative(rewards), centred / math.sqrt(2 / 3))


def test_group_relative_ignores_padding_even_when_it_is_nan():
    nan = float("nan")
    rewards = torch.tensor([[1.0, 3.0, 2.0], [2.0, 4.0, nan], [nan, 1.0, nan]])
    valid = torch.tensor([[1, 1, 1], [1, 1, 0], [0, 1, 0]], dtype=torch.bool)
    # totals 3, 8, 2 (mean 13/3); interval means 2, 3, 1 over those still running
    spread = math.sqrt(((3 - 13 / 3) ** 2 + (8 - 13 / 3) ** 2 + (2 - 13 / 3) ** 2) / 3)
    expected = torch.tensor([[-1.0, 1.0, 0.0], [-1.0, 1.0, 0.0], [0.0, 0.0, 0.0]]) / spread
    torch.testing.assert_close(group_relative(rewards, valid), expected)


def test_a_replica_that_never_ran_does_not_shape_the_spread():
    rewards = torch.tensor([[1.0, 3.0, 99.0], [2.0, 4.0, 99.0]])
    valid = torch.tensor([[True, True, False]]).expand(2, 3)
    alone = group_relative(rewards[:, :2])
    torch.testing.assert_close(group_relative(rewards, valid)[:, :2], alone)


def test_replicas_that_did_alike_are_not_blown_up_to_unit_spread():
    rewards = torch.tensor([[1.0, 1.02]])
    expected = torch.tensor([[-0.01, 0.01]])
    torch.testing.assert_close(group_relative(rewards), expected / 0.05)
    torch.testing.assert_close(group_relative(rewards, min_spread=0.1), expected / 0.1)


@given(st.integers(1, 6), st.integers(2, 6), st.floats(-3, 3), st.integers(0, 99))
def test_group_relative_removes_what_all_replicas_share(steps, replicas, shift, seed):
    generator = torch.Generator().manual_seed(seed)
    rewards = torch.randn(steps, replicas, generator=generator, dtype=torch.float64)
    shared = torch.linspace(0, shift, steps, dtype=torch.float64).unsqueeze(1)
    torch.testing.assert_close(group_relative(rewards + shared), group_relative(rewards))


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        ({"rewards": torch.zeros(3)}, "rewards"),
        ({"rewards": torch.zeros(3, 2), "valid": torch.ones(2, 3)}, "valid"),
        ({"rewards": torch.zeros(3, 2), "min_spread": 0.0}, "min_spread"),
    ],
)
def test_group_relative_names_the_argument_at_fault(arguments, name):
    with pytest.raises(ConfigurationError, match=name):
        group_relative(**arguments)


class TestGroupFinalScore:
    def test_by_hand(self):
        # Above the best by 0, 0.3 and 0.7 with tau 0.1: -log 0.1, -log 0.4, -log 0.8.
        scores = group_final_score(torch.tensor([1.0, 1.3, 1.7]), 0.1)
        raw = -torch.tensor([0.1, 0.4, 0.8]).log()
        torch.testing.assert_close(scores, (raw - raw.mean()) / raw.std(correction=0))

    def test_a_run_a_little_above_the_best_is_told_from_one_far_above_it(self):
        # Standardised progress would put 0.05 and 0.2 a fiftieth of the spread apart.
        scores = group_final_score(torch.tensor([0.0, 0.05, 0.2, 4.0, 5.0, 5.0]), 0.05)
        assert scores[1] - scores[2] > 0.4

    def test_a_failed_run_is_the_worst_and_does_not_spoil_the_others(self):
        scores = group_final_score(torch.tensor([1.0, math.nan, 1.2, math.inf]), 0.2)
        assert scores.isfinite().all()
        assert scores[0] > scores[2] > scores[1] == scores[3]

    def test_equal_runs_score_zero(self):
        assert (group_final_score(torch.full((5,), 2.0), 0.2) == 0).all()

    @pytest.mark.parametrize(("shape", "temperature"), [((2, 2), 0.1), ((3,), 0.0)])
    def test_wrong_shape_or_temperature_is_refused(self, shape, temperature):
        with pytest.raises(ConfigurationError, match="temperature"):
            group_final_score(torch.zeros(shape), temperature)
