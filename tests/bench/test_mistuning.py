"""What a wrong learning rate costs, by hand. e is 0.02: a loss of 0.98 is then 1."""

import math

import pytest

from lightning_dqnlr.bench.report.comparison import Comparison
from lightning_dqnlr.bench.report.sensitivity import mistuned, mistuning_picture
from tests.bench.synthetic_records import record


def grid(task, method, losses):
    return [record(task, method, lr, 0, final_train=loss) for lr, loss in losses.items()]


def two_tasks():
    """The best peaks are 0.1 and 0.01; of the second task nothing is known below a tenth of it."""
    return Comparison(
        [
            *grid("a", "cosine", {1e-3: 7.98, 1e-2: 0.98, 1e-1: 0.48, 1.0: 7.98}),
            *grid("a", "dqnlr", {1e-4: 0.98, 1.0: 0.98}),
            *grid("b", "cosine", {1e-3: 3.98, 1e-2: 0.98, 1e-1: 0.98 + 1e-9}),
            *grid("b", "dqnlr", {1e-4: 0.98, 1.0: 0.98}),
        ]
    )


def test_the_rate_is_measured_by_each_tasks_own_best_peak():
    curve = mistuned(two_tasks(), "cosine")
    assert curve[1.0] == pytest.approx(0.0)
    assert curve[0.1] == pytest.approx((math.log(2) + math.log(4)) / 2)
    assert curve[10.0] == pytest.approx(math.log(16) / 2, abs=1e-6)


def test_between_two_rates_it_is_the_line_in_the_logarithm():
    curve = mistuned(two_tasks(), "cosine")
    assert curve[10**-0.5] == pytest.approx((math.log(2) + math.log(4)) / 4)


def test_factors_that_a_task_was_not_run_at_are_left_out():
    """Else the mean at the edge would be of other tasks than that in the middle."""
    factors = mistuned(two_tasks(), "cosine")
    assert (min(factors), max(factors)) == (pytest.approx(0.1), pytest.approx(10.0))


def test_what_ignores_the_rate_is_level():
    curve = mistuned(two_tasks(), "dqnlr")
    assert len(curve) > 8
    assert {round(regret, 6) for regret in curve.values()} == {round(math.log(2) / 2, 6)}


def test_the_picture_names_the_methods_that_were_swept():
    more = Comparison([*two_tasks().records, *grid("a", "plateau", {0.1: 1.0})])
    (picture,) = mistuning_picture(more)
    assert picture.svg.startswith("<svg")
    assert ">dqnlr<" in picture.svg
    assert ">plateau<" not in picture.svg


def test_without_a_sweep_there_is_no_picture():
    assert mistuning_picture(Comparison([record("a", "cosine"), record("a", "dqnlr")])) == ()
