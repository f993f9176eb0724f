import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_dqnlr.control.controller import LRController
from lightning_dqnlr.control.features import FeatureSpec
from lightning_dqnlr.control.probe import Probe
from lightning_dqnlr.control.spec import ControllerSpec
from lightning_dqnlr.errors import ConfigurationError

from .controllers import DOUBLE, KEEP, QUADRUPLE, QUARTER, settled, started
from .test_features import stats


def intervals(horizon, until=None):
    spec, step, lengths = ControllerSpec(), 0, []
    while step < (horizon or until):
        lengths.append(spec.interval(step, horizon))
        step += lengths[-1]
    return lengths


class TestDecisionTimes:
    @settings(deadline=None)
    @given(st.integers(1, 2_000_000))
    def test_a_run_of_any_length_ends_on_a_decision_and_takes_about_64(self, horizon):
        lengths = intervals(horizon)
        assert sum(lengths) == horizon
        assert len(lengths) <= 110
        assert max(lengths) <= max(1, 2.5 * horizon / 64)
        if horizon >= 64:
            assert len(lengths) >= 40

    def test_short_first_then_a_64th(self):
        lengths = intervals(6400)
        assert lengths[:5] == [1, 1, 1, 2, 3]
        assert lengths[30] == 100

    def test_unknown_horizon_needs_only_logarithmically_many_decisions(self):
        assert len(intervals(None, until=1_000_000)) < 130

    def test_going_on_past_the_horizon_does_not_decide_at_every_step_for_ever(self):
        assert ControllerSpec().interval(1000, 1000) == 125


class TestDecay:
    def test_it_holds_for_most_of_the_run_then_falls_in_a_straight_line(self):
        decays = [ControllerSpec().decay_at(middle - 1, 2, 1000) for middle in (1, 700, 775, 850)]
        assert decays == pytest.approx([1.0, 1.0, 0.75, 0.5])
        assert ControllerSpec(decay_share=0.2).decay_at(899, 2, 1000) == pytest.approx(0.5)

    @pytest.mark.parametrize(
        ("spec", "allowed"),
        [
            (ControllerSpec(), [True, True, False, False]),
            (ControllerSpec(decay_share=0.5), [True, False, False, False]),
            (ControllerSpec(cuts_in_decay=True), [True] * 4),
            (ControllerSpec(decay="cosine"), [True] * 4),  # it falls from the first step on
            (ControllerSpec(decay="none"), [True] * 4),
        ],
    )
    def test_cuts_end_where_the_line_begins_to_fall(self, spec, allowed):
        assert [spec.may_cut(step, 16, 1000) for step in (0, 650, 700, 984)] == allowed
        assert spec.may_cut(984, 16, None)

    def test_the_cosine_is_half_at_half_way_and_an_eighth_of_a_turn_later_as_it_should(self):
        spec = ControllerSpec(decay="cosine")
        assert spec.decay_at(499, 2, 1000) == pytest.approx(0.5)
        assert spec.decay_at(749, 2, 1000) == pytest.approx(0.5 - 2**-1.5)

    @pytest.mark.parametrize(("decay", "least"), [("wsd", 1 / 256 / 0.3), ("cosine", 3.7e-5)])
    def test_never_zero_even_past_the_end(self, decay, least):
        assert ControllerSpec(decay=decay).decay_at(5000, 10, 1000) == pytest.approx(least, rel=0.1)

    @pytest.mark.parametrize("share", [0.0, -0.5, 1.5, float("nan")])
    def test_a_share_that_is_none_is_refused(self, share):
        with pytest.raises(ConfigurationError, match="decay_share"):
            ControllerSpec(decay_share=share)

    def test_unknown_horizon_and_decay_none_leave_the_scale_alone(self):
        assert ControllerSpec().decay_at(10, 1, None) == 1.0
        assert ControllerSpec(decay="none").decay_at(999, 1, 1000) == 1.0


class TestStart:
    def test_first_update_of_sgd_is_a_ten_thousandth_of_the_weights(self):
        controller = LRController(ControllerSpec(), horizon=None)
        lr = controller.safe_start(torch.tensor(5.0), torch.tensor(20.0), Probe([(10, 10)]), True)
        assert lr.item() * 5.0 == pytest.approx(1e-4 * 20.0)

    def test_an_adaptive_optimizer_is_assumed_to_move_each_coordinate_by_lr(self):
        controller = LRController(ControllerSpec(), horizon=None)
        lr = controller.safe_start(
            torch.tensor(1e-6), torch.tensor(20.0), Probe([(100, 100)]), False
        )
        assert lr.item() * 100.0 == pytest.approx(1e-4 * 20.0)

    def test_a_start_that_moved_too_little_is_corrected_by_the_first_measured_update(self):
        controller = LRController(ControllerSpec(), horizon=None)
        lr = controller.safe_start(
            torch.tensor(1.0), torch.tensor(10.0), Probe([(100, 100)]), False
        ).clone()
        controller.observe(stats([1.0], update_norm=1e-6, weight_norm=10.0))
        assert controller.apply(torch.tensor(KEEP)).item() == pytest.approx(lr.item() * 1e3)

    def test_zero_weights_and_zero_gradients_start_finite(self):
        controller = LRController(ControllerSpec(), horizon=100)
        lr = controller.safe_start(torch.tensor(0.0), torch.tensor(0.0), Probe([(10, 10)]), True)
        assert 0 < lr.item() < math.inf

    @pytest.mark.parametrize("sgd", [True, False])
    def test_a_first_gradient_of_zero_starts_where_steps_of_lr_are_a_ten_thousandth(self, sgd):
        controller = LRController(ControllerSpec(), horizon=100)
        lr = controller.safe_start(torch.tensor(0.0), torch.tensor(20.0), Probe([(10, 10)]), sgd)
        assert lr.item() * 10.0 == pytest.approx(1e-4 * 20.0)  # sqrt(100) = 10

    def test_a_nan_gradient_at_the_start_still_gives_a_finite_rate(self):
        controller = LRController(ControllerSpec(), horizon=100)
        lr = controller.safe_start(
            torch.tensor(math.nan), torch.tensor(1.0), Probe([(10, 10)]), True
        )
        assert 0 < lr.item() < math.inf


class TestScales:
    """What losses and gradients are measured by, if the first ones are zero."""

    def test_a_first_loss_of_zero_is_not_what_the_others_are_measured_by(self):
        controller = started()
        controller.observe(stats([0.0]))
        controller.apply(torch.tensor(KEEP))
        decision = controller.observe(stats([2.0]))
        assert not decision.tripped
        assert controller.history.initial_loss.item() == 2.0
        assert controller.history.level.item() == pytest.approx(math.log(101))
        controller.apply(torch.tensor(KEEP))
        assert controller.observe(stats([1.0])).healthy
        assert controller.history.initial_loss.item() == 2.0  # and stays

    def test_the_scale_of_one_replica_leaves_the_others_alone(self):
        controller = started(lead=(2,))
        controller.observe(stats([[0.0], [3.0]], (2,)))
        controller.apply(torch.tensor([KEEP, KEEP]))
        controller.observe(stats([[2.0], [1.0]], (2,)))
        assert controller.history.initial_loss.tolist() == [2.0, 3.0]

    def test_a_gradient_of_zero_is_not_the_first_nor_a_change(self):
        names = ("gradient_since_start", "gradient_change")
        controller = LRController(
            ControllerSpec(features=FeatureSpec(names)), horizon=None, circuit_breaker=False
        )
        controller.start(torch.tensor(0.1))
        seen = []
        for gradient in (0.0, 2.0, 0.0, 2.0 * math.e):
            seen.append(controller.observe(stats([1.0], gradient_norm=gradient)).observation)
            controller.apply(torch.tensor(KEEP))
        assert torch.stack(seen[:3]).tolist() == [[0, 0]] * 3
        assert seen[3].tolist() == pytest.approx([1 / 3, 1 / 1.5])


class TestApply:
    def test_the_multiplier_multiplies(self):
        controller = started()
        controller.observe(stats([1.0]))
        assert controller.apply(torch.tensor(QUADRUPLE)).item() == pytest.approx(0.4)

    def test_the_decay_is_not_compounded(self):
        controller = started(horizon=100)
        for _ in range(60):
            controller.observe(stats([1.0] * controller.interval))
            lr = controller.apply(torch.tensor(KEEP)).item()
        expected = controller.spec.decay_at(controller.step, controller.interval, 100)
        assert lr == pytest.approx(0.1 * expected, rel=1e-4)

    def test_the_update_cap_holds_a_raise_back_and_says_so(self):
        controller = started()
        controller.observe(stats([1.0], update_norm=1.0, weight_norm=10.0))
        lr = controller.apply(torch.tensor(QUADRUPLE)).item()
        assert lr == pytest.approx(0.1 * 0.2 / 0.1)
        assert controller.history.capped.item() == 1

    def test_the_scale_never_sinks_below_a_share_of_the_healthy_peak(self):
        controller = started()
        for _ in range(30):
            controller.observe(stats([1.0] * controller.interval))
            lr = controller.apply(torch.tensor(QUARTER)).item()
        assert lr == pytest.approx(0.1 / 256, rel=1e-4)

    def test_while_the_decay_falls_a_cut_is_kept_from_the_scale_and_a_raise_is_not(self):
        controller = started(horizon=100)
        while controller.may_cut:
            controller.observe(stats([1.0] * controller.interval))
            controller.apply(torch.tensor(KEEP))
        scale = controller.history.log_scale.item()
        controller.apply(torch.tensor(QUARTER))
        assert controller.history.log_scale.item() == pytest.approx(scale)
        assert controller.history.last_action.item() == 0  # the policy is told what happened
        controller.apply(torch.tensor(QUADRUPLE))
        assert controller.history.log_scale.item() == pytest.approx(scale + math.log(4))

    def test_the_circuit_breaker_cuts_even_while_the_decay_falls(self):
        controller = settled(horizon=100)
        while controller.may_cut:
            controller.observe(stats([1.0] * 4))
            controller.apply(torch.tensor(KEEP))
        scale = controller.history.log_scale.item()
        assert controller.observe(stats([1.0, 2.0, 8.0, 30.0])).tripped.item()
        controller.apply(torch.tensor(KEEP))
        assert controller.history.log_scale.item() == pytest.approx(scale - math.log(4))

    def test_bounds_hold_whatever_the_actions(self):
        controller = started(min_lr=0.05, max_lr=0.2)
        seen = [controller.lr.item()]
        for action in [QUADRUPLE] * 3 + [QUARTER] * 6:
            controller.observe(stats([1.0] * controller.interval))
            seen.append(controller.apply(torch.tensor(action)).item())
        assert min(seen) == pytest.approx(0.05)
        assert max(seen) == pytest.approx(0.2)

    @pytest.mark.parametrize("horizon", [0, -5])
    def test_non_positive_horizon_is_refused(self, horizon):
        with pytest.raises(ConfigurationError, match="horizon"):
            LRController(ControllerSpec(), horizon=horizon)

    def test_crossed_bounds_are_refused(self):
        with pytest.raises(ConfigurationError, match=r"min_lr=1.0 > max_lr=0.1"):
            LRController(ControllerSpec(), horizon=10, min_lr=1.0, max_lr=0.1)


class TestElementwise:
    @settings(max_examples=20, deadline=None)
    @given(st.integers(0, 10_000))
    def test_replicas_together_equal_each_replica_alone(self, seed):
        torch.manual_seed(seed)
        together = started(lead=(3,), horizon=300)
        alone = [started(horizon=300) for _ in range(3)]
        for _ in range(25):
            bins = min(16, together.interval)
            losses = torch.exp(0.5 * torch.randn(3, bins))
            ratio = 10 ** (-4 + 4 * torch.rand(3))
            actions = torch.randint(7, (3,))
            observed = together.observe(
                stats(losses, lead=(3,), steps=together.interval)._replace(update_norm=ratio)
            )
            rates = together.apply(actions)
            for r, controller in enumerate(alone):
                single = stats(losses[r], steps=controller.interval)._replace(update_norm=ratio[r])
                decision = controller.observe(single)
                torch.testing.assert_close(decision.observation, observed.observation[r])
                assert decision.tripped == observed.tripped[r]
                torch.testing.assert_close(controller.apply(actions[r]), rates[r])

    def test_saved_and_loaded_through_a_file_it_goes_on_exactly(self, tmp_path):
        a, b = settled(horizon=500), started(lr=3.0, horizon=7)
        torch.save(a.state_dict(), tmp_path / "state.pt")
        b.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
        for loss in (0.9, 5.0, 0.8, 0.7):
            left, right = (c.observe(stats([loss] * c.interval)) for c in (a, b))
            assert torch.equal(left.observation, right.observation)
            action = torch.tensor(DOUBLE)
            assert torch.equal(a.apply(action), b.apply(action))


def test_spec_survives_json():
    import json

    spec = ControllerSpec(decisions=32, decay="none")
    assert ControllerSpec.from_dict(json.loads(json.dumps(spec.to_dict()))) == spec


def test_what_is_remembered_of_two_intervals_by_hand():
    """The policy sees these averages, so another weight or sign in one would mislead it."""
    controller = started()
    controller.observe(stats([8.0], gradient_norm=2.0))
    controller.apply(torch.tensor(DOUBLE))
    controller.observe(stats([5.0, 3.0], gradient_norm=3.0, update_norm=0.1))
    # e = 0.08, and the gradient promises 0.9 * 3 * 0.1 of 4 + e in each of two steps.
    first, second = math.log(101), math.log(51)
    promised = 2 * 0.9 * 3 * 0.1 / 4.08
    # Of the step's noise: the first differences, 1/16 of the average of squared deviations.
    y = (first, math.log(1 + 5 / 0.08), math.log(1 + 3 / 0.08))
    measured = ((y[1] - y[0]) ** 2 + (y[2] - y[1]) ** 2) / 2 / 2
    before = (1 - 1 / 32) * 0.25**2
    history = controller.history
    expected = {
        "level": second, "fast": (first + second) / 2, "slow": 0.85 * first + 0.15 * second,
        "best": second, "loss": 4.0, "log_gradient": math.log(3), "origin": first,
        "first_log_gradient": math.log(2), "path": 1e-6 + 2 * 0.01, "reference": second,
        "noise": math.sqrt(15 / 16 * before + measured / 16), "trips": 0.0, "since_trip": 102.0,
        "drop": 0.3 * (first - second),
        "forecast": 0.7 * 0.3 * 0.9 * 2 * 1e-3 / 8.08 + 0.3 * promised,
    }  # fmt: skip
    found = {name: getattr(history, name).item() for name in expected}
    assert found == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("still", [{"update_norm": 0.0}, {"gradient_norm": 0.0}])
def test_an_interval_without_update_or_gradient_holds_the_rate_of_a_run_that_has_moved(still):
    """Decoy: before anything has moved the rate would be raised tenfold."""
    controller = settled()
    before = controller.lr.item()
    controller.observe(stats([1.0] * 4, **still))
    controller.apply(torch.tensor(DOUBLE))
    assert controller.lr.item() == pytest.approx(before)
    controller.observe(stats([1.0] * 4))
    controller.apply(torch.tensor(DOUBLE))
    assert controller.lr.item() == pytest.approx(2 * before)


def test_a_bound_puts_the_scale_where_the_decayed_rate_is_the_bound():
    """The decay is about a half here, so the scale is about twice the rate, and not half of it."""
    controller = started(lr=0.1, horizon=1000, max_lr=0.1)
    controller.step = 845
    controller.observe(stats([1.0]))
    controller.apply(torch.tensor(QUADRUPLE))
    decay = controller.spec.decay_at(controller.step, controller.interval, 1000)
    assert 0.4 < decay < 0.6
    assert controller.lr.item() == pytest.approx(0.1)
    assert controller.history.log_scale.exp().item() == pytest.approx(0.1 / decay)


def test_a_first_update_that_rounds_to_zero_raises_the_rate_tenfold():
    """As long as a gradient pulls; without one there is nothing to go by."""
    controller = LRController(ControllerSpec(), horizon=None)
    controller.safe_start(torch.tensor(5.0), torch.tensor(20.0), Probe([(10, 10)]), False)
    before = controller.lr.item()
    controller.observe(stats([1.0], update_norm=0.0))
    controller.apply(torch.tensor(KEEP))
    assert controller.lr.item() == pytest.approx(10 * before)
    controller.observe(stats([1.0], gradient_norm=0.0))
    controller.apply(torch.tensor(KEEP))
    assert controller.lr.item() == pytest.approx(10 * before)
