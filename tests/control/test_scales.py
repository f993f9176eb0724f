"""What losses and gradients are measured by."""

import math
from dataclasses import replace

import pytest
import torch

from lightning_dqnlr.control.features import expanded_loss
from lightning_dqnlr.control.history import UNSEEN, History
from lightning_dqnlr.control.scales import UNEXPLAINED, all_fixed, fix_scales, lower_origin

from .controllers import KEEP, started
from .test_features import stats

NORMS = {"gradient_norm": 2.0, "weight_norm": 3.0}  # which explain a loss of 6


def first(loss, **norms):
    return fix_scales(stats([loss] * 4, **{**NORMS, **norms}), History.zeros((), "cpu"))


@pytest.mark.parametrize("loss", [1e-6, 1.0, 6.0, 0.99 * 6 * UNEXPLAINED])
def test_a_loss_that_the_gradient_may_explain_is_measured_from_zero(loss):
    assert first(loss).offset.item() == 0.0
    assert first(loss).initial_loss.item() == pytest.approx(loss)


@pytest.mark.parametrize("loss", [-1000.0, -1e-3, 1.01 * 6 * UNEXPLAINED, 1e5])
def test_a_negative_loss_or_one_far_above_it_begins_at_what_the_gradient_explains(loss):
    history = first(loss)
    assert history.initial_loss.item() == pytest.approx(6.0, rel=1e-2)
    assert (history.initial_loss + history.offset).item() == pytest.approx(loss, abs=1e-4)


@pytest.mark.parametrize("gradient", [0.0, math.nan, math.inf])
def test_a_gradient_that_says_nothing_does_not_move_the_origin(gradient):
    assert first(1e5, gradient_norm=gradient).offset.item() == 0.0
    assert first(-5.0, gradient_norm=gradient).offset.item() == 0.0


def test_the_first_loss_and_gradient_that_are_not_zero_count():
    history = fix_scales(stats([0.0] * 4, gradient_norm=0.0), History.zeros((), "cpu"))
    assert not all_fixed(history)
    assert history.first_log_gradient.item() == UNSEEN
    history = fix_scales(stats([0.0, 0.0, 4.0, 2.0], **NORMS), history)
    assert all_fixed(history)
    assert history.initial_loss.item() == 4.0
    again = fix_scales(stats([50.0] * 4, gradient_norm=9.0), history)
    assert again.initial_loss.item() == 4.0
    assert again.first_log_gradient.item() == pytest.approx(math.log(2.0))


def test_a_nan_among_the_first_losses_is_not_what_the_run_is_measured_by():
    assert first(1.0).initial_loss.item() == 1.0
    history = fix_scales(stats([1.0, math.nan, 2.0, math.inf], **NORMS), History.zeros((), "cpu"))
    assert history.initial_loss.item() == 2.0


class TestLowerOrigin:
    def begun(self):
        history = first(2.0)
        return replace(history, noise=torch.tensor(0.1), low=history.level - 0.5)

    def test_a_loss_above_the_origin_changes_nothing(self):
        history = self.begun()
        assert lower_origin(stats([0.5] * 4, **NORMS), history) is history

    @pytest.mark.parametrize(("mean", "above"), [(-1.0, 6.0), (-20.0, 20.0)])
    def test_below_it_the_origin_moves_below_the_loss(self, mean, above):
        """By what the gradient explains, or by as much as the loss was below."""
        moved = lower_origin(stats([mean] * 4, **NORMS), self.begun())
        assert mean - moved.offset.item() == pytest.approx(above)
        assert moved.initial_loss.item() == pytest.approx(2.0 - moved.offset.item())

    def test_remembered_losses_stay_the_losses_that_they_were(self):
        before = self.begun()
        moved = lower_origin(stats([-20.0] * 4, **NORMS), before)
        for name in ("level", "best", "low", "reference"):
            then = expanded_loss(getattr(before, name), before.initial_loss)
            now = expanded_loss(getattr(moved, name), moved.initial_loss) + moved.offset
            assert now.item() == pytest.approx(then.item(), abs=1e-3)

    def test_an_interval_with_nan_does_not_move_it(self):
        history = self.begun()
        ruined = stats([-20.0] * 4, **NORMS)._replace(finite=torch.tensor(False))
        assert lower_origin(ruined, history) is history


def test_a_loss_that_falls_below_zero_is_no_blow_up_and_its_fall_is_progress():
    """A correlation begins near zero and falls to -1."""
    controller = started()
    for loss in (0.01, -0.1, -0.3, -0.5, -0.7, -0.8, -0.9, -0.95):
        decision = controller.observe(stats([loss] * 4, gradient_norm=0.5, weight_norm=1.0))
        assert not decision.tripped
        controller.apply(torch.tensor(KEEP))
    assert controller.history.level.item() == pytest.approx(controller.history.best.item())


def test_the_same_run_shifted_gives_the_same_observations():
    seen = []
    for shift in (-1000.0, 1000.0):
        controller = started()
        losses = torch.linspace(6.0, 1.0, 12) + shift
        for loss in losses.tolist():
            seen.append(controller.observe(stats([loss] * 4, **NORMS)).observation)
            controller.apply(torch.tensor(KEEP))
    assert torch.allclose(torch.stack(seen[:12]), torch.stack(seen[12:]), atol=1e-2)
