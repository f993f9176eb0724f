"""The circuit breaker: what is undone, what is stored, and what follows."""

import math
from dataclasses import replace
from itertools import pairwise

import pytest
import torch

from lightning_dqnlr.control.breaker import judge

from .controllers import DOUBLE, KEEP, QUADRUPLE, settled, started
from .test_features import stats


def test_a_blow_up_trips_and_cuts_the_rate_to_a_quarter():
    controller = settled()
    before = controller.lr.item()
    assert controller.observe(stats([1.0, 2.0, 8.0, 30.0])).tripped.item()
    assert controller.apply(torch.tensor(KEEP)).item() == pytest.approx(before / 4)


def test_the_update_of_weights_that_blew_up_does_not_cap_the_restored_ones():
    controller = settled()
    before = controller.lr.item()
    controller.observe(stats([1.0, 2.0, 1e6, 1e15], update_norm=1e12, weight_norm=1.0))
    assert controller.apply(torch.tensor(KEEP)).item() == pytest.approx(before / 4)


def test_a_raise_right_after_a_restore_does_not_undo_the_cut():
    controller = settled()
    before = controller.lr.item()
    controller.observe(stats([30.0] * 4))
    assert controller.apply(torch.tensor(QUADRUPLE)).item() == pytest.approx(before / 4)


def test_nan_trips_only_its_own_replica():
    controller = settled((2,))
    losses = torch.tensor([[1.0, 1.0, 1.0, math.nan], [1.0, 1.0, 1.0, 1.0]])
    interval = stats(losses, lead=(2,))._replace(finite=torch.tensor([False, True]))
    decision = controller.observe(interval)
    assert decision.tripped.tolist() == [True, False]
    assert decision.healthy.tolist() == [False, True]
    assert decision.observation.isfinite().all()
    assert controller.history.level.isfinite().all()


def test_a_small_rise_is_suspicious_not_stored_and_not_undone():
    decision = settled().observe(stats([1.5] * 4))
    assert not decision.tripped.item()
    assert not decision.healthy.item()


@pytest.mark.parametrize(("steps", "deviation"), [(4, 0.4), (2, 0.4), (1, 0.33)])
def test_noise_alone_does_not_trip_a_run_of_tiny_batches(steps, deviation):
    assert tripped_by_noise(steps, deviation) < 0.02


def test_short_intervals_learn_how_noisy_their_losses_are():
    """Deviation 0.7: by the noise presumed at the start, 0.25, nine of ten runs would trip."""
    assert tripped_by_noise(2, 0.7) < 0.2


def tripped_by_noise(steps, deviation):
    """Share of 500 runs without progress that trip in 60 intervals of so many steps."""
    torch.manual_seed(0)
    controller = started(lead=(500,))
    tripped = torch.zeros(500, dtype=torch.bool)
    for _ in range(60):
        losses = torch.exp(deviation * torch.randn(500, steps))
        tripped |= controller.observe(stats(losses, lead=(500,))).tripped
        controller.apply(torch.full((500,), KEEP))
    return tripped.float().mean().item()


def test_a_restored_state_above_the_threshold_does_not_trip_again_at_once():
    controller = settled()
    controller.observe(stats([30.0] * 4))
    controller.apply(torch.tensor(KEEP))
    decision = controller.observe(stats([6.0] * 4))  # the restored state's own loss is 6
    assert not decision.tripped.item()


def test_repeated_blow_ups_always_lower_the_rate():
    rates = rates_over_trips([1.0, 1e2, 1e4, 1e6], finite=True)
    assert [b / a for a, b in pairwise(rates)] == pytest.approx([0.25] * 5)


def test_nan_in_every_batch_is_not_answered_by_ever_lower_rates():
    """Of a rate that had proved healthy: the first trip cuts nothing, three more do, then none."""
    rates = rates_over_trips([math.nan] * 4, finite=False)
    assert [b / a for a, b in pairwise(rates)] == pytest.approx([0.25] * 3 + [1.0] * 2)


def rates_over_trips(losses, finite):
    controller = settled()
    rates = []
    for _ in range(6):
        interval = stats(losses)._replace(finite=torch.tensor(finite))
        assert controller.observe(interval).tripped.item()
        rates.append(controller.apply(torch.tensor(KEEP)).item())
    return rates


def test_switched_off_it_never_asks_for_a_restore():
    controller = settled(circuit_breaker=False)
    assert not controller.observe(stats([1e9] * 4)).tripped.item()


def test_rising_above_the_initial_loss_trips_even_in_small_steps():
    controller = settled()
    tripped, loss = False, 1.0
    for _ in range(12):
        loss *= 1.2
        tripped = tripped or controller.observe(stats([loss] * 4)).tripped.item()
        controller.apply(torch.tensor(KEEP))
    assert tripped


def test_a_loss_that_stays_high_trips_though_no_interval_of_it_would():
    """Noise 0.3: 3.3 is log 3.3 = 1.19 above 1, within log 2 + 4 * 0.3 / sqrt(1 of 4 steps)."""
    controller = settled(lead=(2,))
    h = controller.history
    controller.history = replace(h, noise=torch.full((2,), 0.3))
    verdicts = []
    for high in (3.3, 3.3, 3.3, 3.3):
        losses = torch.tensor([[high] * 4, [high if len(verdicts) != 2 else 1.0] * 4])
        verdicts.append(controller.observe(stats(losses, lead=(2,))).tripped.tolist())
        controller.apply(torch.full((2,), KEEP))
    assert verdicts == [[False, False]] * 3 + [[True, False]]


def test_a_destroyed_network_that_settles_just_above_its_initial_loss_is_undone():
    """1.3 times the initial loss, noise 0.02: no interval of it is above the limit."""
    torch.manual_seed(0)
    controller = started(lead=(20,))
    for _ in range(6):
        controller.observe(stats(1.0 + 0.02 * torch.randn(20, 4), lead=(20,)))
        controller.apply(torch.full((20,), QUADRUPLE))
    since, trips = 0, torch.zeros(20, dtype=torch.bool)
    while not trips.all() and since < 20:
        decision = controller.observe(stats(1.3 + 0.02 * torch.randn(20, 4), lead=(20,)))
        assert not decision.healthy.any(), "a destroyed state must not be stored"
        trips, since = trips | decision.tripped, since + 1
        controller.apply(torch.full((20,), KEEP))
    assert since <= 8


def test_a_loss_that_falls_back_to_the_initial_one_and_stays_there_is_undone():
    controller = settled()
    for level in torch.linspace(1.0, 0.2, 20).tolist():
        controller.observe(stats([level] * 4))
        controller.apply(torch.tensor(KEEP))
    assert controller.history.trips.item() == 0
    # 0.9 is below the initial loss and within the margin of it; of the progress little is left.
    for level in torch.linspace(0.2, 0.9, 12).tolist() + [0.9] * 8:
        controller.observe(stats([level] * 4))
        controller.apply(torch.tensor(KEEP))
    assert controller.history.trips.item() > 0


def test_a_lucky_first_batch_is_not_what_a_run_is_measured_by():
    """The first loss is half of what it usually is; nothing is wrong."""
    torch.manual_seed(0)
    controller = started(lead=(200,))
    controller.observe(stats(torch.full((200, 1), 0.5), lead=(200,)))
    for _ in range(60):
        controller.apply(torch.full((200,), KEEP))
        controller.observe(stats(torch.exp(0.1 * torch.randn(200, 4)), lead=(200,)))
    assert (controller.history.trips > 0).float().mean() < 0.02


def test_an_unlucky_batch_among_the_first_does_not_cost_the_run_its_rate():
    controller = started()
    for loss in (1.0, 6.0, 1.0, 1.0, 1.0, 1.0):
        controller.observe(stats([loss]))
        controller.apply(torch.tensor(KEEP))
    assert controller.history.trips.item() == 0


def test_a_blow_up_in_the_first_intervals_is_undone_as_soon_as_they_are_over():
    controller = started(lr=10.0)
    trips = []
    for loss in (1.0, 50.0, 50.0, 50.0, 50.0):
        decision = controller.observe(stats([loss] * 4))
        trips.append(decision.tripped.item())
        assert not (loss > 1 and decision.healthy.item())
        controller.apply(torch.tensor(KEEP))
    assert trips == [False] * 4 + [True]


def test_a_lucky_last_step_does_not_make_a_high_interval_healthy():
    controller = settled()
    decision = controller.observe(stats([3.0, 3.0, 3.0, 1.0]))
    assert not decision.healthy.item()


def test_after_a_trip_no_action_climbs_back_at_once():
    """Half of the scale that blew up, and twice that again after 16 decisions."""
    controller = settled()
    before = controller.history.log_scale.item()
    controller.observe(stats([1.0, 10.0, 100.0, 1000.0]))
    scales = []
    for _ in range(40):
        controller.apply(torch.tensor(DOUBLE))
        scales.append(controller.history.log_scale.item() - before)
        controller.observe(stats([1.0] * 4))
    assert scales[3] == pytest.approx(math.log(0.5) + 3 / 16 * math.log(2))
    assert scales[16] == pytest.approx(0.0, abs=1e-5)
    assert scales[32] == pytest.approx(math.log(2), abs=1e-5)


def test_margin_by_hand():
    # noise 0, reference and best at the compressed loss of 1.0 with initial loss 4.
    controller = started()
    controller.observe(stats([4.0]))
    level = math.log1p(1.0 / 0.04)
    h = controller.history
    h = replace(h, **{k: torch.tensor(level) for k in ("level", "reference", "best")})
    h = replace(h, noise=torch.tensor(0.0))
    just_below, just_above = (0.04 * math.expm1(level + math.log(2) + d) for d in (-0.01, 0.01))
    assert not judge(stats([just_below] * 4), h).tripped.item()
    assert judge(stats([just_above] * 4), h).tripped.item()


@pytest.mark.parametrize(("own", "regained"), [(6.0, True), (1.0, False)])
def test_a_false_alarm_does_not_hold_the_rate_down_for_the_rest_of_the_run(own, regained):
    """8 is undone; the restored weights' own loss of 6 says that 1 had been luck."""
    controller = settled()
    before = controller.history.log_scale.item()
    assert controller.observe(stats([8.0] * 4)).tripped.item()
    for _ in range(4):
        controller.apply(torch.tensor(DOUBLE))
        controller.observe(stats([own] * 4))
    assert (controller.history.log_scale.item() >= before - 1e-5) == regained


@pytest.mark.parametrize(("level", "stored"), [(0.99, True), (1.01, False), (1.24, False)])
def test_no_state_that_has_lost_a_quarter_of_its_progress_is_stored(level, stored):
    """From 4 to 0, and back to 1. By the margin of 0.25 above the reference all would be."""
    controller = started()
    controller.observe(stats([4.0]))
    known = {"origin": 4.0, "low": 0.0, "best": 0.9, "reference": 1.0, "noise": 0.0}
    h = replace(controller.history, **{name: torch.tensor(v) for name, v in known.items()})
    verdict = judge(stats([0.04 * math.expm1(level)] * 4), h)
    assert verdict.healthy.item() == stored
    assert not verdict.tripped.item()


def test_a_run_that_is_ruined_within_its_noise_is_undone():
    """A rise of 0.1 per interval, noise 0.5. Four of ten when each was compared with the last."""
    torch.manual_seed(0)
    runs = 200
    controller = started(lead=(runs,))
    falling, rising = torch.linspace(0, -4, 26), torch.linspace(-4, -0.8, 32)
    for level in torch.cat([falling, rising, rising[-1:].expand(8)]):
        losses = torch.exp(level + 0.5 * torch.randn(runs, 4))
        controller.observe(stats(losses, lead=(runs,)))
        controller.apply(torch.full((runs,), KEEP))
    assert (controller.history.trips > 0).float().mean() > 0.65
