import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lightning_dqnlr.errors import ConfigurationError
from lightning_dqnlr.rl.rewards import (
    End,
    FinalScore,
    LogProgress,
    LossChange,
    TrainingInterval,
    group_final_score,
    interval_rewards,
)


def test_loss_change_weighs_sign_and_decrease_separately():
    previous = torch.tensor([[2.0, 1.0], [3.0, -1.0]])
    loss = torch.tensor([[1.5, 1.25], [3.0, -3.0]])
    # decreases 0.5, -0.25, 0, 2: 2*sign + 10*decrease
    expected = torch.tensor([[7.0, -4.5], [0.0, 22.0]])
    torch.testing.assert_close(LossChange(2.0, 10.0, math.inf)(previous, loss, previous), expected)


def test_loss_change_defaults_to_unit_weights():
    reward = LossChange()(torch.tensor(2.0), torch.tensor(1.5), torch.tensor(2.0))
    torch.testing.assert_close(reward, torch.tensor(1.5))


def test_loss_change_pays_nothing_for_an_unchanged_loss():
    loss = torch.tensor([0.7, 0.0, -0.2])
    assert torch.equal(LossChange(5.0, 3.0)(loss, loss, loss), torch.zeros(3))


def test_log_progress_is_the_log_ratio_above_one_percent_of_the_initial_loss():
    # e = 0.01 * 100 = 1: log((4 + 1) / (1 + 1)) = log 2.5, and a loss of 0 is no singularity.
    previous, loss = torch.tensor([4.0, 1.0]), torch.tensor([1.0, 0.0])
    expected = torch.tensor([math.log(2.5), math.log(2.0)])
    torch.testing.assert_close(LogProgress()(previous, loss, torch.tensor(100.0)), expected)


def test_log_progress_continues_below_zero():
    # y(1) - y(-3) = log 2 + log 4, with e = 1
    reward = LogProgress()(torch.tensor(1.0), torch.tensor(-3.0), torch.tensor(100.0))
    torch.testing.assert_close(reward, torch.tensor(math.log(8.0)))


@given(st.lists(st.floats(-50, 50, width=32), min_size=2, max_size=8))
def test_log_progress_telescopes_to_the_whole_run(values):
    losses = torch.tensor(values, dtype=torch.float64)
    initial = torch.tensor(10.0, dtype=torch.float64)
    total = LogProgress()(losses[:-1], losses[1:], initial).sum()
    torch.testing.assert_close(total, LogProgress()(losses[0], losses[-1], initial))


def interval(previous, loss, tripped, alive):
    initial = [1.0] * len(loss)
    return TrainingInterval(*map(torch.tensor, (previous, loss, initial, tripped, alive)))


def test_an_undone_interval_costs_the_penalty_and_a_failure_pays_minus_one():
    three = interval([2.0, 2.0, 2.0], [1.5, 1.5, 9.0], [False, True, True], [True, True, False])
    paid = interval_rewards(lambda old, new, _: old - new, three, 0.2)
    torch.testing.assert_close(paid, torch.tensor([0.5, 0.3, -1.0]))


def two_intervals():
    first = interval([1.0, 1.0], [0.5, 0.8], [False, False], [True, True])
    second = interval([0.5, 0.8], [0.4, 0.2], [False, True], [True, True])
    return TrainingInterval(*map(torch.stack, zip(first, second, strict=True)))


def test_the_last_reward_leads_to_the_loss_of_the_whole_training_set():
    """Then the rewards of a run add up to what it reached, less the penalty of its trip."""
    final = torch.tensor([0.3, 0.6])
    reward = LogProgress(trip_penalty=0.1, final_evaluation=True)
    total = reward.pay(two_intervals(), End(final, torch.tensor([0.0, 1.0]))).sum(0)
    expected = LogProgress()(torch.ones(2), final, torch.ones(2)) - torch.tensor([0.0, 0.1])
    torch.testing.assert_close(total, expected)


def test_a_trip_counts_as_so_much_more_log_loss_at_the_end():
    """Levels log(1 + 100 L): the trip moves the better run behind the other."""
    end = End(torch.tensor([0.5, 0.49]), torch.tensor([0.0, 1.0]))
    scores = FinalScore(temperature=0.1, trip_penalty=0.5).pay(two_intervals(), end)
    levels = torch.tensor([math.log(51.0), math.log(50.0) + 0.5])
    torch.testing.assert_close(scores[-1], group_final_score(levels, 0.1))
    assert scores[-1, 0] > 0 > scores[-1, 1]
    assert (scores[0] == 0).all()


@pytest.mark.parametrize(
    ("kind", "arguments", "name"),
    [
        (FinalScore, {"temperature": 0.0}, "temperature=0.0"),
        (FinalScore, {"trip_penalty": -1.0}, "trip_penalty=-1.0"),
        (LogProgress, {"trip_penalty": math.nan}, "trip_penalty=nan"),
        (LossChange, {"limit": 0.0}, "limit=0.0"),
        (LossChange, {"alpha_1": 0.0, "alpha_2": 0.0}, "would pay nothing"),
    ],
)
def test_a_reward_that_cannot_work_names_the_argument_at_fault(kind, arguments, name):
    with pytest.raises(ConfigurationError, match=name):
        kind(**arguments)


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

    @pytest.mark.parametrize(
        ("shape", "temperature", "name"), [((2, 2), 0.1, "levels"), ((3,), 0.0, "temperature=0.0")]
    )
    def test_wrong_shape_or_temperature_is_refused(self, shape, temperature, name):
        with pytest.raises(ConfigurationError, match=name):
            group_final_score(torch.zeros(shape), temperature)
