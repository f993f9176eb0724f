"""What earlier runs say of the next one."""

import math
import sys
from dataclasses import replace

import pytest
import torch
from torch import nn

from lightning_dqnlr.memory import suggest
from lightning_dqnlr.memory.runs import model_of
from lightning_dqnlr.memory.suggest import _errors, _levels, metric_of

from .remembered import MODEL, run

NEIGHBOUR = replace(MODEL, batch_size=64)


def held(*runs, model=MODEL, metric="val_loss", mode="min"):
    return suggest(runs, model, metric, mode).held


def test_the_first_run_is_the_policys():
    assert held() is None


def test_the_second_run_is_another_and_later_ones_follow_the_better_side():
    assert 0.01 < held(run(1.0)) < 0.08
    lower = held(run(1.0), run(1.6, 0.02), run(0.8, 0.005))
    higher = held(run(1.0), run(0.6, 0.02), run(1.4, 0.005))
    assert lower < 0.01 < higher


def test_a_diverged_run_turns_the_search_away_from_its_rate():
    worse = run(None, 0.02, ended="diverged")
    assert held(run(1.0), worse) is None  # the policy's own rates
    assert held(run(1.0), run(0.95, 0.007), worse) < 0.02


@pytest.mark.parametrize(
    "other",
    [
        run(0.1, 0.02, metric="accuracy"),
        run(0.1, 0.02, mode="max"),
        run(0.1, 0.02, ended="early"),
        run(0.1, 0.02, model=replace(MODEL, horizon=500)),
        run(0.1, 0.02, model=replace(MODEL, structure="other")),
        run(None, 0.02),
    ],
)
def test_a_run_that_says_nothing_of_this_one_is_left_out(other):
    assert held(run(1.0), other) == held(run(1.0))
    assert held(other) is None


def test_a_horizon_that_is_nearly_the_same_is_taken_for_the_same():
    near = replace(MODEL, horizon=1100)
    assert held(run(1.0), run(0.5, 0.02, model=near)) != held(run(1.0))


def test_a_neighbour_in_width_or_batch_size_begins_the_fit_of_a_model_without_runs():
    for change in ({"parameters": 4000, "shapes": "wider"}, {"batch_size": 64}):
        neighbour = replace(MODEL, **change)
        found = suggest(
            [run(1.0, model=neighbour), run(0.5, 0.02, model=neighbour)], MODEL, "val_loss"
        )
        assert found.runs == []
        assert 0.01 < found.held < 0.08


def test_a_near_neighbour_counts_more_than_a_far_one():
    def after(batch_size):
        neighbour = replace(MODEL, batch_size=batch_size)
        runs = [run(1.0), run(1.0, model=neighbour), run(0.4, 0.02, model=neighbour)]
        found = suggest(runs, MODEL, "val_loss").fit
        here, there = (int((found.x - x).abs().argmin()) for x in (0.0, 1.0))
        return float(found.mean[here] - found.mean[there])

    assert after(64) > after(1024) > 0.9 * after(10**9)


def test_a_metric_that_is_to_rise_is_followed_upwards():
    runs = [run(0.90, mode="max"), run(0.98, 0.02, mode="max"), run(0.80, 0.005, mode="max")]
    assert held(*runs, mode="max") > 0.01


@pytest.mark.parametrize(
    ("values", "mode"), [((0.5, 2.0), "min"), ((0.9, 0.99), "max"), ((-3.0, 5.0), "min")]
)
def test_pictures_show_the_metric_itself(values, mode):
    runs = [run(value, mode=mode) for value in values]
    metric = metric_of(runs)
    levels = torch.tensor([metric(0.0), metric(0.1)])
    assert (levels[1] > levels[0]) == (mode == "min")


def test_models_are_told_apart_by_shapes_class_optimizer_and_name():
    def named(parameters, **changes):
        plain = {"kind": "Net", "name": None, "optimizer": "SGD", "batch_size": 8, "horizon": 9}
        return model_of(parameters, **{**plain, **changes})

    own = [nn.Parameter(torch.zeros(4, 3)), nn.Parameter(torch.zeros(4))]
    wide = [nn.Parameter(torch.zeros(8, 3)), nn.Parameter(torch.zeros(8))]
    deep = [*own, nn.Parameter(torch.zeros(4, 4))]
    model = named(own)
    assert named(wide).shapes != model.shapes
    assert named(wide).structure == model.structure
    assert named(deep).structure != model.structure
    for change in ({"kind": "Other"}, {"name": "mine"}, {"optimizer": "Adam"}):
        assert named(own, **change).structure != model.structure
    assert named(own, batch_size=16).shapes == model.shapes


@pytest.mark.parametrize(
    ("values", "mode", "error"),
    [((0.5, 0.4), "min", 0.025), ((-5.0, -0.1), "min", 0.002), ((0.5, 0.9), "max", 0.1)],
)
def test_the_noise_of_a_run_is_measured_on_the_scale_of_the_fit(values, mode, error):
    runs = [run(value, error=0.01, mode=mode) for value in values]
    assert _errors(runs)[-1] == pytest.approx(error)


def test_one_perfect_accuracy_does_not_change_how_the_others_are_measured():
    runs = [run(0.90, mode="max"), run(0.98, 0.02, mode="max"), run(0.80, 0.005, mode="max")]
    perfect = run(1.0, 0.02, mode="max")
    levels = _levels([*runs, perfect])
    assert levels[:3] == pytest.approx(_levels(runs))
    assert levels[3] == pytest.approx(math.log(0.01))  # half of what the best of them lacks
    assert _errors([replace(perfect, error=0.001), runs[1]])[0] == pytest.approx(0.1)


def test_a_fit_takes_the_nearest_and_newest_runs_when_there_are_too_many(monkeypatch):
    many = [run(5.0, 0.08), run(1.0), run(0.5, 0.02), run(1.0), run(9.0, 0.005, model=NEIGHBOUR)]
    few = held(*many[1:4])
    assert held(*many) != few
    monkeypatch.setattr(sys.modules[suggest.__module__], "_MOST", 3)
    assert held(*many) == few


def test_a_policy_that_no_held_rate_comes_near_has_the_next_run_again():
    # As seen on a fine-tuned encoder: 8e-5 by the policy, 0.84 and 2.3 at rates held.
    runs = [run(8e-5), run(0.84, 0.017), run(2.3, 0.006)]
    found = suggest(runs, MODEL, "val_loss")
    assert found.held is None
    assert "the policy's own rates" in found.why
    assert held(*runs[:2]) is None
    assert held(run(1.0), run(1.3, 0.02)) is not None  # 30% may be chance
    assert held(run(1.0), run(1.3, 0.02), run(1.3, 0.005)) is None  # twice is none
    assert held(*runs, run(7e-5, 0.01)) is not None
