import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_dqnlr.control.controller import LRController
from lightning_dqnlr.control.features import (
    CLASSIC,
    FEATURES,
    SCALE_FREE,
    Clock,
    FeatureSpec,
    all_features,
    compressed_loss,
    predicted_drop,
    step_noise,
    trend,
)
from lightning_dqnlr.control.history import History
from lightning_dqnlr.control.spec import ActionSpec, ControllerSpec
from lightning_dqnlr.control.telemetry import IntervalStats
from lightning_dqnlr.errors import ConfigurationError, PolicyFileError


def stats(losses, lead=(), steps=None, **values):
    losses = torch.as_tensor(losses, dtype=torch.float32)
    defaults = {
        "gradient_norm": 1.0, "gradient_spread": 0.1, "cos_gradients": 0.5,
        "cos_gradient_last_update": -0.3, "cos_gradient_update": -0.9, "cos_updates": 0.4,
        "update_norm": 1e-3, "max_update_ratio": 2e-4, "weight_norm": 10.0, "weight_scale": 0.6,
        "displacement": 2e-3, "distance": 3e-3,
    }  # fmt: skip
    tensors = {k: torch.full(lead, float(v)) for k, v in {**defaults, **values}.items()}
    finite = torch.ones(lead, dtype=torch.bool)
    return IntervalStats(losses, **tensors, finite=finite, steps=steps or losses.shape[-1])


class TestCompressedLoss:
    def test_equals_the_benchmarks_log_ratio_for_positive_losses(self):
        # e = 0.01 * 2 = 0.02: log((0.5 + 0.02) / (0.1 + 0.02))
        y = compressed_loss(torch.tensor([0.5, 0.1]), torch.tensor(2.0))
        assert (y[0] - y[1]).item() == pytest.approx(math.log(0.52 / 0.12), rel=1e-5)

    def test_zero_and_negative_losses_are_finite_and_ordered(self):
        y = compressed_loss(torch.tensor([-3.0, -0.1, 0.0, 0.1, 3.0]), torch.tensor(1.0))
        assert y[2] == 0
        assert (y.diff() > 0).all()
        assert y[0] == -y[4]

    def test_a_zero_initial_loss_does_not_divide_by_zero(self):
        assert compressed_loss(torch.tensor(1.0), torch.tensor(0.0)).isfinite()


class TestPredictedDrop:
    def test_by_hand_and_negative_where_the_update_goes_uphill(self):
        # g . dtheta = -0.5 * 2 * 0.3 = -0.3; e = 0.01 * 10 = 0.1, so dy/dL = 1 / (0.9 + 0.1).
        initial, values = torch.tensor(10.0), {"gradient_norm": 2.0, "update_norm": 0.3}
        down = stats([0.9], cos_gradient_update=-0.5, **values)
        assert predicted_drop(down, torch.tensor(0.9), initial).item() == pytest.approx(0.3)
        up = stats([0.9], cos_gradient_update=0.5, **values)
        assert predicted_drop(up, torch.tensor(0.9), initial).item() == pytest.approx(-0.3)
        # Of a negative loss dy/dL is 1 / (|L| + e) too.
        assert predicted_drop(down, torch.tensor(-0.9), initial).item() == pytest.approx(0.3)

    def test_a_zero_loss_of_a_zero_start_does_not_divide_by_zero(self):
        zero = torch.tensor(0.0)
        assert predicted_drop(stats([0.0]), zero, zero).isfinite()


class TestTrend:
    def test_t_statistic_by_hand(self):
        # y = 0, 1, 3: slope 1.5, residuals (1/6, -1/3, 1/6), s^2 = 1/6, se = sqrt(1/12).
        assert trend(torch.tensor([0.0, 1.0, 3.0])).item() == pytest.approx(1.5 * math.sqrt(12))

    def test_a_noiseless_fall_is_bounded_and_negative(self):
        assert trend(-torch.arange(5.0)).item() == -20.0

    def test_two_points_have_no_trend(self):
        assert trend(torch.tensor([1.0, 0.0])).item() == 0.0

    def test_noise_ignores_a_linear_trend_and_counts_steps_per_bin(self):
        falling = torch.expm1(torch.linspace(4.0, 1.0, 16)) * 0.01  # linear once compressed
        unused = torch.tensor(math.nan)
        assert step_noise(falling, unused, torch.tensor(1.0), 16).item() < 1e-3
        torch.manual_seed(0)
        noisy = torch.expm1(3.0 + 0.1 * torch.randn(4000, 16)) * 0.01
        variance = step_noise(noisy, unused, torch.ones(4000), 64).square().mean()
        # Each bin averages 4 steps.
        assert variance.sqrt().item() == pytest.approx(0.1 * 2, rel=0.05)

    def test_noise_of_three_bins_comes_from_their_second_difference_by_hand(self):
        """Decoy: the previous interval lies far above, which first differences would take in."""
        losses = torch.tensor([1.0, 1.2, 1.0]).expm1()
        noise = step_noise(losses, torch.tensor(5.0), torch.tensor(100.0), steps=6)
        assert noise.item() == pytest.approx(math.sqrt(0.4**2 / 6 * 2), rel=1e-4)

    def test_noise_of_short_intervals_comes_from_their_first_differences_by_hand(self):
        def losses(*compressed):
            return torch.expm1(torch.tensor(compressed)) * 0.01

        one, before = torch.tensor(1.0), torch.tensor(2.0)
        # Differences 0.3 and -0.1: (0.09 + 0.01) / 2 / 2 = 0.025; of bins of 2 steps, twice that.
        assert step_noise(losses(2.3, 2.2), before, one, 2).item() == pytest.approx(0.025**0.5)
        assert step_noise(losses(2.3, 2.2), before, one, 4).item() == pytest.approx(0.05**0.5)
        # 0.4: 0.16 / 2
        assert step_noise(losses(1.6), before, one, 1).item() == pytest.approx(0.08**0.5)


class TestFeatureSpec:
    def test_unknown_feature_is_refused_by_name(self):
        with pytest.raises(PolicyFileError, match="phase_of_the_moon"):
            FeatureSpec(("progress", "phase_of_the_moon"))

    def test_other_version_is_refused(self):
        with pytest.raises(PolicyFileError, match="version 99"):
            FeatureSpec(version=99)

    def test_classic_and_scale_free_do_not_overlap_and_cover_all(self):
        assert set(CLASSIC).isdisjoint(SCALE_FREE)
        assert set(CLASSIC) | set(SCALE_FREE) == set(FEATURES)
        assert {"raw_loss", "raw_gradient_norm", "raw_step"} <= set(CLASSIC)

    def test_order_of_names_is_the_order_of_columns(self):
        spec = FeatureSpec(("trips", "progress"))
        values = {name: torch.tensor(float(i)) / 100 for i, name in enumerate(FEATURES)}
        expected = [FEATURES.index("trips") / 100, FEATURES.index("progress") / 100]
        assert spec.select(values).tolist() == pytest.approx(expected)

    def test_non_finite_features_never_reach_the_network(self):
        values = {name: torch.tensor(float("nan")) for name in FEATURES}
        values["progress"] = torch.tensor(float("inf"))
        assert FeatureSpec(FEATURES).select(values).isfinite().all()


def asinh(x):
    return math.asinh(x) / 2


def test_every_feature_by_hand():
    """A bundled policy reads just these numbers, so another unit of one would mislead it."""
    zero = History.zeros((), "cpu")
    before = replace(zero, level=zero.level + 1.0, fast=zero.fast + 1.5, slow=zero.slow + 2.0)
    before = replace(before, loss=before.loss + 7.0, log_gradient=torch.tensor(2.0))
    values = {
        "initial_loss": 100.0, "loss": 3.0, "level": 0.9, "best": 0.8, "noise": 0.0099,
        "path": 4e-6, "log_gradient": 3.5, "first_log_gradient": 0.5, "log_scale": -3.0,
        "start_log_scale": -8.0, "peak_log_scale": -2.0, "last_action": 0.4,
        "previous_action": -0.2, "since_trip": 8.0, "trips": 3.0, "capped": 1.0, "drop": 0.2,
        "forecast": 0.5,
    }  # fmt: skip
    history = replace(zero, **{name: torch.tensor(value) for name, value in values.items()})
    seen = stats([4.0, 2.0, 3.0], steps=4, gradient_norm=2.0, gradient_spread=0.3, weight_scale=0.1)
    found = all_features(
        seen, history, before, Clock(step=100, interval=10, horizon=400, decisions=8)
    )
    # e = 1, and a step along the gradient promises 0.9 * 2 * 1e-3 of 3 + 1.
    drop = 0.9 * 2 * 1e-3 / 4
    y = [math.log(1 + loss) for loss in (4.0, 2.0, 3.0)]
    slope, middle = (y[2] - y[0]) / 2, sum(y) / 3
    error = math.sqrt(sum((v - middle - slope * x) ** 2 for x, v in enumerate(y, -1)) / 2)
    expected = {
        "loss_change": asinh(0.1 / 0.02), "loss_change_fast": asinh(0.6 / 0.02),
        "loss_change_slow": asinh(1.1 / 0.02), "loss_above_best": asinh(0.1 / 0.05),
        "loss_since_start": (math.log(101) - 0.9) / 2, "loss_level": 0.9 / 5,
        "loss_trend": asinh(slope / error), "loss_noise": (-2 + 2) / 1.5,
        "cos_gradients": 0.5, "cos_gradients_small": asinh(0.5 / 0.03),
        "cos_hypergradient": 0.3, "cos_hypergradient_small": asinh(0.3 / 0.03),
        "cos_descent": 0.9, "cos_updates": 0.4, "gradient_change": 1.5 / 1.5,
        "gradient_since_start": 3.0 / 3, "gradient_spread": 0.3 / 1.5,
        "descent": (math.log10(drop) + 2) / 1.5, "descent_ahead": (math.log10(10 * drop) + 1) / 1.5,
        "elasticity": math.log10(2 * 10 / 4) / 2, "gain": asinh(0.1 / (4 * drop) / 0.1),
        "gain_slow": asinh(0.4 / 0.1), "straightness": math.log10(2e-3 / 4e-3),
        "straightness_walk": math.log10(2e-3 / 2e-3), "weight_scale": -1.5,
        "update_ratio": (-4 + 3) / 1.5, "largest_update_ratio": (math.log10(2e-4) + 3) / 1.5,
        "distance": math.log10(3e-4) + 1, "distance_per_path": math.log10(3e-3 / 2e-3),
        "progress": -0.5, "remaining": math.log(0.75 + 1 / 64) / 3, "horizon_known": 1.0,
        "log_step": 0.0, "log_interval": 0.0, "early": math.exp(-1), "last_action": 0.4,
        "previous_action": -0.2, "scale_to_peak": -0.5, "scale_to_start": 0.0,
        "since_trip": math.exp(-2), "trips": math.tanh(1), "capped": 1.0, "raw_loss": 3.0,
        "raw_loss_change": 4.0, "raw_gradient_norm": 2.0, "raw_step": 0.1,
        "raw_learning_rate": math.exp(-3),
    }  # fmt: skip
    assert {k: v.item() for k, v in found.items()} == pytest.approx(expected, rel=1e-4, abs=1e-5)


def observe_run(scale_loss, scale_weights, seed=0):
    """Observations of three intervals of a run whose loss and weights are rescaled."""
    torch.manual_seed(seed)
    controller = LRController(ControllerSpec(), horizon=200)
    controller.start(torch.tensor(0.1))
    rows = []
    for losses in ([2.0], [1.9, 1.7, 1.8, 1.5], [1.4, 1.5, 1.1, 1.2]):
        norms = {
            name: value * scale_weights
            for name, value in (
                ("update_norm", 1e-3), ("weight_norm", 10.0), ("displacement", 2e-3),
                ("distance", 3e-3),
            )
        }  # fmt: skip
        gradient = scale_loss / scale_weights * (1 + 0.1 * len(rows))
        scaled = [scale_loss * loss for loss in losses]
        rows.append(controller.observe(stats(scaled, gradient_norm=gradient, **norms)).observation)
        controller.apply(torch.tensor(5))
    return torch.stack(rows)


@settings(max_examples=25, deadline=None)
@given(st.floats(-4, 4), st.floats(-2, 2))
def test_the_observation_does_not_change_with_the_units_of_loss_and_weights(loss, weights):
    torch.testing.assert_close(
        observe_run(10.0**loss, 10.0**weights), observe_run(1.0, 1.0), atol=2e-3, rtol=2e-3
    )


def gains(curvature, steps=40):
    """`gain_slow`, unsquashed, over a descent on L = 1 + h x^2 / 2 whose rate is 1."""
    controller = LRController(ControllerSpec(), horizon=None)
    controller.start(torch.tensor(1.0))
    index, x, rows = controller.spec.features.names.index("gain_slow"), torch.tensor(100.0), []
    for _ in range(steps):
        gradient = curvature * x
        here = {"gradient_norm": gradient.abs(), "update_norm": gradient.abs()}
        loss = 1 + curvature * x**2 / 2
        seen = controller.observe(stats([loss], cos_gradient_update=-1.0, **here)).observation
        rows.append(0.1 * math.sinh(2 * seen[index].item()))
        x = x - gradient
    return rows


class TestGain:
    def test_small_steps_keep_what_their_gradients_promise(self):
        # The fall of one step lags its forecast by a decision, hence the margin.
        assert gains(1e-3)[-1] == pytest.approx(1.0, abs=0.05)

    def test_at_the_edge_of_stability_nothing_of_it_comes_true(self):
        assert gains(2.0)[-1] == pytest.approx(0.0, abs=1e-3)

    def test_a_restore_forgets_what_was_gained_before(self):
        controller = LRController(ControllerSpec(), horizon=None)
        controller.start(torch.tensor(1.0))
        for loss in (10.0, 8.0, 6.0, 5.0, 4.0):
            controller.observe(stats([loss]))
        assert controller.history.drop > 0
        assert controller.observe(stats([math.inf])).tripped
        assert controller.history.drop == controller.history.forecast == 0


class TestActionSpec:
    def test_multipliers_by_hand(self):
        logs = ActionSpec((0.5, 1.0, 4.0)).log_multiplier(torch.tensor([2, 0, 1]))
        assert logs.tolist() == pytest.approx([math.log(4), math.log(0.5), 0.0])

    @pytest.mark.parametrize("table", [(), (0.5, 2.0), (1.0, 0.5), (0.0, 1.0), (1.0, 1.0)])
    def test_a_table_that_cannot_keep_or_is_out_of_order_is_refused(self, table):
        with pytest.raises(ConfigurationError, match="multipliers"):
            ActionSpec(table)
