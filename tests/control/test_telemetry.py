import math

import pytest
import torch

from lightning_dqnlr.control.telemetry import MAX_OBSERVATIONS, IntervalStats, Telemetry


def drive(telemetry, weights, gradients, updates, losses, steps=None):
    """Feeds whole steps; returns the weights at the end."""
    if steps is not None:
        telemetry.begin(steps)
    for gradient, update, loss in zip(gradients, updates, losses, strict=True):
        if telemetry.observing:
            telemetry.before(gradient, weights)
        observed = telemetry.observing
        weights = weights + update
        if observed:
            telemetry.after(weights)
        telemetry.add_loss(torch.as_tensor(loss))
    return weights


class TestTelemetry:
    def test_norms_and_cosines_by_hand(self):
        # g: (3,4) then (4,-3): orthogonal. d: -(0.3,0.4), then (0,-1).
        telemetry = Telemetry(2)
        start = torch.tensor([6.0, 8.0])
        gradients = [torch.tensor([3.0, 4.0]), torch.tensor([4.0, -3.0])]
        updates = [torch.tensor([-0.3, -0.4]), torch.tensor([0.0, -1.0])]
        end = drive(telemetry, start, gradients, updates, [2.0, 1.0], steps=2)
        stats = telemetry.read(end)
        assert stats.losses.tolist() == [2.0, 1.0]
        assert stats.gradient_norm.item() == pytest.approx(5.0)
        assert stats.cos_gradients.item() == pytest.approx(0.0, abs=1e-6)
        assert stats.cos_gradient_last_update.item() == pytest.approx(0.0, abs=1e-6)
        # cos(g, d): -1 at the first step, (-3)(-1)/5 = 0.6 at the second.
        assert stats.cos_gradient_update.item() == pytest.approx(-0.2, abs=1e-6)
        # cos(d_2, d_1) = 0.4 / 0.5
        assert stats.cos_updates.item() == pytest.approx(0.8, abs=1e-6)
        assert stats.update_norm.item() == pytest.approx(math.sqrt((0.25 + 1.0) / 2))
        assert stats.displacement.item() == pytest.approx(math.hypot(0.3, 1.4), rel=1e-5)
        assert stats.finite.item()

    def test_first_step_has_no_predecessor_so_zeros_do_not_enter_the_cosines(self):
        telemetry = Telemetry(1)
        ones, down = torch.ones(1), -0.1 * torch.ones(1)
        end = drive(telemetry, ones, [ones] * 3, [down] * 3, [1.0] * 3, steps=3)
        assert telemetry.read(end).cos_gradients.item() == pytest.approx(1.0)
        assert telemetry.read(end).cos_gradient_last_update.item() == pytest.approx(-1.0)

    def test_a_one_step_interval_is_compared_with_the_step_before_it(self):
        telemetry = Telemetry(1)
        one = torch.ones(1)
        weights = drive(telemetry, one, [one], [-0.1 * one], [1.0], steps=1)
        weights = drive(telemetry, weights, [-one], [0.1 * one], [1.0], steps=1)
        assert telemetry.read(weights).cos_gradients.item() == pytest.approx(-1.0)

    def test_long_intervals_look_at_sixteen_steps_but_average_every_loss(self):
        telemetry = Telemetry(1)
        telemetry.begin(1000)
        looked = 0
        for step in range(1000):
            if telemetry.observing:
                telemetry.before(torch.ones(1), torch.ones(1))
                telemetry.after(torch.ones(1))
                looked += 1
            telemetry.add_loss(torch.tensor(float(step)))
        stats = telemetry.read(torch.ones(1))
        assert looked <= MAX_OBSERVATIONS
        assert stats.losses.shape == (16,)
        # Bin b holds steps ceil(62.5 b) .. ceil(62.5 (b + 1)) - 1.
        assert stats.losses[0].item() == pytest.approx(31.0)
        assert stats.losses[-1].item() == pytest.approx((938 + 999) / 2)

    @pytest.mark.parametrize(
        ("update", "loss"), [(0.0, math.nan), (math.inf, 1.0), (0.0, math.inf), (math.nan, 1.0)]
    )
    def test_one_loss_or_weight_that_is_not_finite_marks_the_interval(self, update, loss):
        telemetry = Telemetry(1)
        one = torch.ones(1)
        end = drive(telemetry, one, [one], [one * update], [loss], steps=1)
        assert not telemetry.read(end).finite.item()

    @pytest.mark.parametrize("bad", [0, 1, 2])
    def test_a_gradient_that_the_user_left_out_is_no_observation(self, bad):
        """As if the first good gradient of the interval had been seen there once more."""
        one = torch.ones(2)
        gradients = [2.0 * one, 2.0 * one, 2.0 * one]
        gradients[bad] = torch.tensor([1.0, math.nan])
        telemetry = Telemetry(2)
        end = drive(telemetry, one, gradients, [-0.1 * one] * 3, [1.0] * 3, steps=3)
        stats = telemetry.read(end)
        assert stats.finite.item()
        assert stats.gradient_norm.item() == pytest.approx(2 * math.sqrt(2))
        assert stats.cos_gradient_update.item() == pytest.approx(-1.0)

    def test_an_interval_cut_short_is_read_by_the_steps_that_it_had(self):
        """Bins of three steps each: two full ones and one that has a single step."""
        telemetry = Telemetry(1)
        one = torch.ones(1)
        losses = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 9.0]
        end = drive(telemetry, one, [one] * 7, [one * 0] * 7, losses, steps=48)
        stats = telemetry.read(end)
        assert stats.losses.tolist() == [2.0, 5.0, 9.0]
        assert stats.steps == 7

    def test_replicas_do_not_leak_into_each_other(self):
        torch.manual_seed(0)
        gradients, updates = torch.randn(7, 3, 20), 0.01 * torch.randn(7, 3, 20)
        losses, start = torch.rand(7, 3), torch.randn(3, 20)
        together = Telemetry(20, (3,))
        end = drive(together, start, gradients, updates, losses, steps=7)
        stats = together.read(end)
        for r in range(3):
            alone = Telemetry(20)
            end_r = drive(alone, start[r], gradients[:, r], updates[:, r], losses[:, r], steps=7)
            for whole, single in zip(stats[:-1], alone.read(end_r)[:-1], strict=True):
                torch.testing.assert_close(whole[r], single)

    def test_saved_in_the_middle_of_an_interval_it_goes_on_exactly(self):
        torch.manual_seed(1)
        gradients, updates = torch.randn(6, 5), torch.randn(6, 5)
        whole, first, second = Telemetry(5), Telemetry(5), Telemetry(5)
        start = torch.randn(5)
        end = drive(whole, start, gradients, updates, torch.ones(6), steps=6)
        half = drive(first, start, gradients[:3], updates[:3], torch.ones(3), steps=6)
        second.load_state_dict(first.state_dict())
        drive(second, half, gradients[3:], updates[3:], torch.ones(3))
        for a, b in zip(whole.read(end)[:-1], second.read(end)[:-1], strict=True):
            assert torch.equal(a, b)

    def test_weights_that_begin_at_zero_are_measured_by_the_floor(self):
        telemetry = Telemetry(4, lecun_norm=0.1, weight_floor=0.02)
        weights = drive(telemetry, torch.zeros(4), [torch.ones(4)], [torch.full((4,), 1e-3)], [1.0])
        stats = telemetry.read(weights)
        assert stats.weight_norm.item() == pytest.approx(0.02)
        assert stats.weight_scale.item() == pytest.approx(0.2)
        assert stats.update_norm.item() == pytest.approx(2e-3)
        assert stats.max_update_ratio.item() == pytest.approx(0.1)

    def test_a_nan_is_the_matter_of_its_own_interval_alone(self):
        telemetry = Telemetry(2)
        good, bad = torch.ones(2), torch.tensor([1.0, float("nan")])
        losses = [1.0, math.nan]
        weights = drive(telemetry, good, [good, bad], [0.1 * good] * 2, losses, steps=2)
        assert not telemetry.read(weights).finite.item()
        weights = drive(telemetry, good, [good] * 3, [0.1 * good] * 3, [1.0] * 3, steps=3)
        stats = telemetry.read(weights)
        assert stats.finite.item()
        assert torch.stack(stats[1:-1]).isfinite().all()

    def test_the_parity_of_the_observation_makes_no_difference(self):
        torch.manual_seed(2)
        gradients, updates, start = torch.randn(4, 6), torch.randn(4, 6), torch.randn(6)
        found = []
        for before in (1, 2):
            telemetry = Telemetry(6)
            drive(telemetry, start, [torch.ones(6)] * before, [start * 0] * before, [1.0] * before)
            end = drive(telemetry, start, gradients, updates, torch.ones(4), steps=4)
            found.append(telemetry.read(end)[1:-1])
        for name, a, b in zip(IntervalStats._fields[1:], *found, strict=False):
            torch.testing.assert_close(a, b, msg=name)
