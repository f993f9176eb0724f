"""The alarm: what counts as a ruined step, and when it rings."""

import math

import pytest
import torch

from lightning_dqnlr.control.alarm import RUN, Alarm, DeviceAlarm, alarm_on
from lightning_dqnlr.control.breaker import alarm_level

from .controllers import KEEP, settled, started
from .test_features import stats


def alarm(agree=None, level=10.0):
    made = Alarm(agree)
    made.begin(level, typical=1.0)
    return made


def fed(made, losses):
    """Whether it rings after each of the losses."""
    rung = []
    for loss in losses:
        made.add(torch.tensor(loss))
        rung.append(made.rings())
    return rung


@pytest.mark.parametrize("bad", [10.0, 1e9, math.inf, math.nan])
def test_three_ruined_steps_in_a_row_ring(bad):
    assert fed(alarm(), [1.0, bad, bad, bad, bad]) == [False, False, False, True, True]


def test_ruined_steps_with_a_good_one_between_them_do_not_ring():
    assert not any(fed(alarm(), [50.0, 50.0, 1.0, 50.0, 50.0, -3.0, math.nan, math.nan, 1.0]))


def test_the_next_interval_does_not_inherit_the_steps_of_the_last():
    made = alarm()
    fed(made, [50.0, 50.0])
    made.begin(10.0, typical=1.0)
    assert fed(made, [50.0, 50.0]) == [False, False]


def test_only_a_loss_that_is_not_finite_is_replaced():
    made = alarm()
    losses = [made.add(torch.tensor(x)).item() for x in (2.0, 1e30, math.nan, math.inf, -math.inf)]
    assert losses == [2.0, pytest.approx(1e30), 1.0, 1.0, 1.0]


def test_one_lone_nan_is_no_suspicion_and_one_lone_ruined_loss_is():
    """The gradient of a NaN batch may have been left out; if not, the weights show it."""
    lone = alarm()
    fed(lone, [1.0, math.nan])
    assert not lone.suspects
    assert lone.known_bad
    high = alarm()
    fed(high, [1.0, 50.0])
    assert high.suspects
    assert not high.known_bad
    fed(high, [1.0])
    assert not high.suspects


def test_rung_by_hand_it_rings_whatever_the_loss_and_once_only():
    made = alarm()
    made.ring()
    assert fed(made, [1.0]) == [True]
    made.begin(10.0, typical=1.0)
    assert fed(made, [1.0]) == [False]


def test_processes_ring_together_when_one_of_them_is_ruined():
    """The other's count comes from `agree`; they ask at the same steps whatever their losses."""
    asked = []

    def agree(count):
        asked.append(count)
        return float(RUN)

    assert fed(alarm(agree), [1.0] * 4) == [False, True, False, True]
    assert asked == [0.0, 0.0]


def test_a_saved_alarm_goes_on_where_it_was():
    made = alarm()
    fed(made, [50.0, 50.0])
    other = Alarm()
    other.load_state_dict(made.state_dict())
    assert fed(other, [50.0]) == [True]
    made.ring()
    other.load_state_dict(made.state_dict())
    assert fed(other, [1.0]) == [True]


def test_a_device_counts_as_the_host_does():
    """On the CPU, without the copy: the same losses are replaced and the same steps counted."""
    device, host = DeviceAlarm(torch.device("cpu")), alarm()
    device.begin(10.0, typical=1.0)
    for loss in (1.0, 50.0, math.nan, 2.0, math.inf, 60.0, 70.0):
        assert device.add(torch.tensor(loss)).item() == host.add(torch.tensor(loss)).item()
        assert device.count == host.count
        assert device.suspects == host.suspects


def test_the_losses_of_a_cpu_are_looked_at_one_by_one():
    assert type(alarm_on(torch.device("cpu"))) is Alarm


class TestLevel:
    def test_it_is_eight_times_the_breakers_own_limit_and_more_for_noise(self):
        """Of a loss of about 1: the limit is 1.65 times what the run began with."""
        controller = settled()
        assert 13 < controller.alarm_level().item() < 20

    def test_it_is_a_loss_as_the_host_sees_it_not_from_the_origin(self):
        history = settled().history
        history.offset = torch.tensor(-1000.0)
        assert alarm_level(history).item() == pytest.approx(-1000 + settled().alarm_level().item())

    def test_it_is_out_of_reach_in_the_first_intervals_whose_noise_is_not_known(self):
        controller = started()
        levels = []
        for _ in range(6):
            levels.append(controller.alarm_level().item())
            controller.observe(stats([1.0] * 4))
            controller.apply(torch.tensor(KEEP))
        assert [math.isinf(level) for level in levels] == [True] * 4 + [False] * 2

    @pytest.mark.parametrize("mode", [False, "finite"])
    def test_it_is_out_of_reach_where_no_finite_loss_is_undone(self, mode):
        assert settled(circuit_breaker=mode).alarm_level().item() == math.inf
