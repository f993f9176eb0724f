import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightning_dqnlr.scoring.statistics import area, fractions, steps_to

ratio_lists = st.lists(st.floats(0.01, 100.0) | st.just(math.inf), min_size=1, max_size=9)


def test_steps_are_interpolated_between_the_points():
    # 3 lies half way from 4 (step 10) to 2 (step 20); the later dip to 1 is a decoy.
    assert steps_to([0, 10, 20, 30], [9.0, 4.0, 2.0, 1.0], 3.0) == pytest.approx(15.0)


def test_the_first_crossing_counts_even_if_the_loss_rises_again():
    assert steps_to([0, 10, 20, 30], [8.0, 2.0, 7.0, 1.0], 2.0) == pytest.approx(10.0)


def test_a_loss_never_reached_takes_forever():
    assert steps_to([0, 10], [8.0, 2.1], 2.0) == math.inf
    assert steps_to([0, 10], [8.0, math.nan], 2.0) == math.inf
    assert steps_to([0, 10], [8.0, 2.0], math.nan) == math.inf


def test_nothing_is_interpolated_from_a_loss_that_is_not_finite():
    assert steps_to([0, 10, 20], [8.0, math.inf, 2.0], 2.5) == 20


def test_a_target_met_before_training_costs_one_step():
    assert steps_to([0, 10], [1.0, 2.0], 1.5) == 1.0


def test_fractions_by_hand():
    assert fractions([0.5, 1.0, 3.0, math.inf], [0.4, 0.5, 1.0, 3.0, 9.0]) == [
        0.0,
        0.25,
        0.5,
        0.75,
        0.75,
    ]


def test_area_by_hand():
    # log2 over [-2, 2]: the ratio 1/2 adds 3/4 of the range, 2 adds 1/4, never adds nothing.
    assert area([0.5, 2.0, math.inf, 1.0]) == pytest.approx((0.75 + 0.25 + 0 + 0.5) / 4)
    assert area([1 / 64]) == pytest.approx(1.0)
    assert area([1.0]) == pytest.approx(0.5)


@given(ratio_lists)
def test_the_area_is_the_mean_of_the_profile_over_log_tau(ratios):
    factors = [4.0 ** ((i + 0.5) / 500 - 1) for i in range(1000)]
    assert area(ratios) == pytest.approx(sum(fractions(ratios, factors)) / 1000, abs=2e-3)


@given(ratio_lists, st.integers(0, 8), st.floats(1.0, 5.0))
def test_a_slower_run_never_raises_the_area(ratios, i, factor):
    slower = list(ratios)
    slower[i % len(ratios)] *= factor
    assert area(slower) <= area(ratios) + 1e-12
