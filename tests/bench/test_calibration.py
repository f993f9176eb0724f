"""The rates of the subject against the best peak of the tuned rival."""

import pytest

from lightning_dqnlr.bench.report.calibration import calibration, calibrations
from lightning_dqnlr.bench.report.comparison import Comparison
from tests.bench.synthetic_records import record


def curve(*rates):
    """Losses that do not matter here; the first rate is that of step 0."""
    losses = [1.0] * len(rates)
    return {"step": list(range(len(rates))), "train": losses, "validation": losses, "lr": [*rates]}


def rivals(task="t", best=0.1):
    """A grid of three peaks whose middle is the best."""
    return [
        record(task, "cosine", lr, final_train=1.0 + (lr != best))
        for lr in (best / 10, best, best * 10)
    ]


def only(*records):
    (row,) = calibrations(Comparison(records))
    return row


def test_octaves_by_hand():
    # The first point is step 0; a mean, a median or a maximum would give another figure.
    own = record(curve=curve(99.0, 0.1, 0.2, 0.4, 0.4, 8.0))
    row = only(own, *rivals())
    assert row.used == pytest.approx(0.4)
    assert row.best == 0.1
    assert row.octaves == pytest.approx(2.0)


def test_seeds_count_by_their_logarithms():
    own = [record(seed=i, curve=curve(1.0, used, used)) for i, used in enumerate((0.1, 1.6))]
    both = [run for lr in (0.01, 0.1) for run in _seeds(lr)]
    assert only(*own, *both).octaves == pytest.approx(2.0)


def _seeds(lr):
    return [record("t", "cosine", lr, seed, final_train=2.0 - 10 * lr) for seed in (0, 1)]


def test_a_rate_that_was_not_finite_is_left_out():
    assert only(record(curve=curve(0.1, None, 0.2)), *rivals()).octaves == pytest.approx(1.0)


def test_runs_without_rates_have_no_calibration():
    assert calibrations(Comparison([record(), *rivals()])) == []
    assert calibration(Comparison(rivals())).blocks == ()


def test_the_section_begins_with_the_task_whose_rates_are_lowest_and_says_the_median():
    records = []
    for task, used in (("high", 0.2), ("low", 0.0125), ("middle", 0.05)):
        records += [record(task, curve=curve(1.0, used, used)), *rivals(task)]
    words, table = calibration(Comparison(records)).blocks
    assert [row[0] for row in table.rows] == ["low", "middle", "high"]
    assert [row[-1] for row in table.rows] == ["-3.0", "-1.0", "1.0"]
    assert "Over 3 tasks the median is -1.0, half of them lie from -2.0 to 0.0." in words
