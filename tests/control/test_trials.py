"""Trials of a higher rate: when they begin, what keeps and what ends them, and who passes them."""

import math
from dataclasses import replace

import pytest
import torch

from lightning_dqnlr.control.controller import LRController
from lightning_dqnlr.control.history import History
from lightning_dqnlr.control.spec import CLASSIC_MULTIPLIERS, ActionSpec, ControllerSpec, TrialSpec
from lightning_dqnlr.control.trials import (
    BEGUN,
    GOING_ON,
    KEPT,
    KEPT_AND_BEGUN,
    NO_FLOOR,
    UNDONE,
    Moment,
    Trials,
    steer,
)
from lightning_dqnlr.errors import ConfigurationError, PolicyFileError

from .controllers import DOUBLE, KEEP, QUARTER
from .test_features import stats

SPEC = ControllerSpec(trials=TrialSpec())
DOUBLED = math.log(2.0)


class Course:
    """A run whose levels are given, under trials alone. A level's standard error is 0.01."""

    def __init__(self, level=5.0, spec=SPEC, noise=0.04):
        self.spec = spec
        self.trials = Trials.zeros(spec.trials)
        self.history = replace(
            History.zeros((), "cpu"), level=torch.tensor(level), noise=torch.tensor(noise)
        )
        self.progress = 0.1

    def step(self, fall, *, room=10.0, steps=16, **changed):
        """One interval in which the level falls by so much; returns what the decision did."""
        values = {name: torch.tensor(value) for name, value in changed.items()}
        h = replace(self.history, level=self.history.level - fall, **values)
        moment = Moment(self.progress, steps, torch.tensor(room))
        steered = steer(self.trials, h, moment, self.spec)
        assert steered.forced == (steered.trials.news > 0) & (steered.trials.news != KEPT)
        self.trials = steered.trials
        change = torch.where(steered.forced, steered.change, 0.0)
        self.history = replace(h, log_scale=h.log_scale + change)
        return int(steered.trials.news)

    def steps(self, *falls):
        return [self.step(fall) for fall in falls]

    @property
    def scale(self):
        return self.history.log_scale.item()


def begun(fall=0.02):
    """Three levels at one rate, falling by so much each, and a trial."""
    course = Course()
    assert course.steps(fall, fall, fall) == [0, 0, BEGUN]
    assert course.scale == pytest.approx(DOUBLED)
    return course


def test_a_trial_whose_loss_falls_faster_by_more_than_its_error_is_kept():
    """The jump's interval is left out; 0.031 - 0.02 is more than 0.01, the error of the two."""
    course = begun()
    course.progress = 0.7  # no other one begins
    assert course.steps(-0.01, 0.02, 0.031, 0.031) == [GOING_ON, GOING_ON, GOING_ON, KEPT]
    assert course.scale == pytest.approx(DOUBLED)
    assert course.trials.floor.item() == pytest.approx(DOUBLED)
    assert course.trials.ratio.item() == pytest.approx(1.55, abs=0.01)


def test_a_trial_within_its_error_is_undone():
    course = begun()
    assert course.steps(-0.01, 0.02, 0.029, 0.029) == [GOING_ON, GOING_ON, GOING_ON, UNDONE]
    assert course.scale == pytest.approx(0.0)
    assert course.trials.floor.item() == NO_FLOOR


def test_a_trial_that_has_not_won_back_its_jump_is_undone():
    """It falls by 0.0105 where nothing fell before, and ends 0.007 above its beginning."""
    course = begun(fall=0.0)
    assert course.steps(-0.02, -0.008, 0.0105, 0.0105)[-1] == UNDONE
    course = begun(fall=0.0)
    assert course.steps(-0.005, -0.008, 0.0105, 0.0105)[-1] in (KEPT, KEPT_AND_BEGUN)


def test_a_trial_ends_at_once_where_the_loss_rises_beyond_noise():
    """Two errors of a difference: 2 sqrt(2) 0.01 = 0.0283."""
    assert begun().step(-0.028) == GOING_ON
    course = begun()
    assert course.step(-0.029) == UNDONE
    assert course.scale == pytest.approx(0.0)


def test_a_kept_trial_is_followed_by_the_next_and_a_failed_one_goes_back_to_it():
    course = begun()
    assert course.steps(0.0, 0.04, 0.04, 0.04)[-1] == KEPT_AND_BEGUN
    assert course.scale == pytest.approx(2 * DOUBLED)
    assert course.steps(0.0, 0.04, 0.04, 0.04)[-1] == UNDONE  # no faster than the last one
    assert course.scale == pytest.approx(DOUBLED)
    assert course.trials.floor.item() == pytest.approx(DOUBLED)


def test_pauses_double_with_failures_in_a_row_and_a_success_ends_them():
    course = Course()
    course.steps(0.02, 0.02)
    waits, wait = [], 0
    for _ in range(60):
        wait += 1
        news = course.step(0.02)
        if news == BEGUN:
            waits.append(wait)
        if news == UNDONE:
            wait = 0
    assert waits == [1, 5, 10, 20]
    course = begun()
    course.steps(0.0, 0.0, 0.0, 0.0)
    assert course.trials.failures == 1
    while course.step(0.0) != BEGUN:
        pass
    course.steps(0.0, 0.04, 0.04, 0.04)
    assert course.trials.failures == 0


@pytest.mark.parametrize(
    "condition",
    [{"room": 0.6}, {"steps": 9}, {"streak": 1.0}, {"stalled": 1.0}],
    ids=["cap or ceiling", "few steps", "after trips", "nothing moves"],
)
def test_no_trial_begins_that_could_not_be_had_or_decided(condition):
    course = Course()
    course.steps(0.02, 0.02)
    assert course.step(0.02, **condition) == 0
    again = {name: 0.0 for name in condition if name in ("streak", "stalled")}
    assert course.step(0.02, **again) == BEGUN


@pytest.mark.parametrize("progress", [None, 0.05, 0.61])
def test_no_trial_begins_at_the_ends_of_a_run_or_without_a_known_one(progress):
    course = Course()
    course.progress = progress
    assert set(course.steps(*[0.02] * 8)) == {0}


def test_a_rate_that_was_moved_or_undone_is_held_for_three_intervals_first():
    course = Course()
    course.steps(0.02, 0.02)
    assert course.step(0.02, log_scale=0.2) == 0
    assert course.step(0.02) == 0
    assert course.step(0.0, restored=1.0) == 0
    assert course.step(0.02, restored=0.0) == 0
    assert course.steps(0.02, 0.02) == [0, BEGUN]


def test_a_trip_ends_a_trial_at_the_breakers_cut_or_else_where_it_began():
    cut = begun()
    assert cut.step(0.0, restored=1.0, log_scale=DOUBLED - math.log(4)) == UNDONE
    assert cut.scale == pytest.approx(-DOUBLED)
    plain = begun()
    assert plain.step(0.0, restored=1.0) == UNDONE  # the work of a batch: nothing was cut
    assert plain.scale == pytest.approx(0.0)


def test_a_cut_of_the_breaker_ends_the_floor_and_a_trip_without_one_does_not():
    course = begun()
    course.progress = 0.7
    course.steps(0.0, 0.04, 0.04, 0.04)
    course.step(0.0, restored=1.0)
    assert course.trials.floor.item() == pytest.approx(DOUBLED)
    course.step(0.0, restored=1.0, log_scale=DOUBLED - math.log(4))
    assert course.trials.floor.item() == NO_FLOOR


def test_losses_from_another_origin_end_a_trial_and_are_not_compared():
    course = begun()
    assert course.step(0.5, offset=-3.0) == UNDONE
    course = Course()
    course.steps(0.02, 0.02)
    assert course.step(0.5, offset=-3.0) == 0
    assert course.steps(0.02, 0.02, 0.02) == [0, 0, BEGUN]


def drive(controller, count, rate=0.99, action=KEEP, steps=16, lead=()):
    """So many intervals in which the loss falls by a constant factor; what each decision did."""
    done = []
    for _ in range(count):
        loss = controller.history.loss if controller.decisions else torch.ones(lead)
        losses = (loss * rate)[..., None].expand(*lead, 16)
        controller.observe(stats(losses, lead, steps=steps))
        controller.apply(torch.full(lead, action))
        done.append(controller.trials.news.clone())
    return done


def run(horizon=1000, lead=(), spec=SPEC, **arguments):
    controller = LRController(spec, horizon=horizon, lead=lead, **arguments)
    controller.start(torch.full(lead, 0.1))
    return controller


def held(controller):
    """To the first trial, which a fall twice as fast keeps."""
    while drive(controller, 1)[0] != BEGUN:
        pass
    controller.spec = replace(SPEC, trials=replace(SPEC.trials, margin=0.0, last=0.1))
    assert drive(controller, 4, rate=0.9)[-1] == KEPT
    return controller


def test_the_policys_cuts_end_at_the_rate_that_was_kept():
    controller = held(run())
    drive(controller, 1, action=QUARTER)
    assert controller.lr.item() == pytest.approx(0.2)
    drive(controller, 1, action=DOUBLE)
    drive(controller, 1, action=QUARTER)
    assert controller.lr.item() == pytest.approx(0.2)


def test_the_decay_and_the_breaker_pass_the_rate_that_was_kept():
    controller = held(run())
    controller.observe(stats([controller.history.loss.item() * 100] * 4))
    controller.apply(torch.tensor(KEEP))
    assert controller.lr.item() == pytest.approx(0.05)
    controller = held(run())
    while controller.step < 950:
        drive(controller, 1, action=QUARTER)
    assert controller.lr.item() < 0.06


def test_a_policy_has_no_say_while_a_trial_runs_and_what_was_done_is_told():
    controller = run()
    while drive(controller, 1)[0] != BEGUN:
        pass
    assert controller.taken(torch.tensor(KEEP)) == DOUBLE
    drive(controller, 1, action=QUARTER)
    assert controller.lr.item() == pytest.approx(0.2)
    assert controller.taken(torch.tensor(QUARTER)) == KEEP


@pytest.mark.parametrize("bounds", [{"max_lr": 0.19}, {"max_lr": 0.1}])
def test_no_trial_goes_beyond_the_users_largest_rate(bounds):
    assert not any(drive(run(**bounds), 40))
    assert any(drive(run(max_lr=0.2), 40))


def test_no_trial_begins_above_the_update_cap():
    controller = run()
    for _ in range(40):
        controller.observe(stats([1.0] * 4, steps=16, update_norm=1.2, weight_norm=10.0))
        controller.apply(torch.tensor(KEEP))
        assert not controller.trials.news


def test_without_a_known_horizon_nothing_is_tried():
    assert not any(drive(run(horizon=None), 60))


def test_a_batch_of_runs_tries_what_each_would_alone():
    lead = (4,)
    torch.manual_seed(3)
    together, alone = run(lead=lead), [run() for _ in range(4)]
    level, news = torch.ones(lead), set()
    for number in range(60):
        level = level * torch.tensor([0.99, 0.97, 0.999, 1.0]) * (1 + 0.01 * torch.randn(lead))
        losses = level[:, None] * (1 + 0.03 * torch.randn(*lead, 16))
        losses = losses * torch.where(torch.tensor([0, 0, number == 20, 0]) > 0, 50.0, 1.0)[:, None]
        together.observe(stats(losses, lead))
        actions = torch.randint(2, 5, lead) if number % 10 < 3 else torch.full(lead, KEEP)
        rates = together.apply(actions)
        news |= set(together.trials.news.tolist())
        for index, controller in enumerate(alone):
            controller.observe(stats(losses[index]))
            assert torch.equal(controller.apply(actions[index]), rates[index])
            state = controller.trials.state_dict()
            for name, value in together.trials.state_dict().items():
                torch.testing.assert_close(
                    state[name], value[index], rtol=0, atol=0, equal_nan=True
                )
    assert {BEGUN, GOING_ON, UNDONE} < news
    assert news & {KEPT, KEPT_AND_BEGUN}


def test_a_state_in_the_middle_of_a_trial_goes_on_with_it():
    whole = run()
    while drive(whole, 1)[0] != BEGUN:
        pass
    drive(whole, 1)
    resumed = run()
    resumed.load_state_dict(whole.state_dict())
    assert drive(resumed, 30, 0.95) == drive(whole, 30, 0.95)
    assert torch.equal(resumed.lr, whole.lr)


class TestSettings:
    def test_a_specification_without_them_reads_and_writes_as_before(self):
        data = ControllerSpec().to_dict()
        assert "trials" not in data
        assert ControllerSpec.from_dict(data).trials is None
        assert "trials" not in run(spec=ControllerSpec()).state_dict()

    def test_they_survive_a_file(self):
        spec = ControllerSpec(trials=TrialSpec(factor=4.0, pause=7))
        assert ControllerSpec.from_dict(spec.to_dict()) == spec
        assert ControllerSpec.from_dict({**spec.to_dict(), "trials": {}}).trials == TrialSpec()

    @pytest.mark.parametrize(
        "wrong",
        [
            {"factor": 1.0}, {"factor": 3.0}, {"window": 1}, {"window": 2.5}, {"pause": 0},
            {"margin": -1.0}, {"abort": math.nan}, {"first": 1.5}, {"least_steps": "10"},
            {"nothing": 1}, [], "on",
        ],
    )  # fmt: skip
    def test_one_out_of_range_is_named(self, wrong):
        with pytest.raises((ConfigurationError, PolicyFileError), match="trials"):
            ControllerSpec.from_dict({**ControllerSpec().to_dict(), "trials": wrong})

    def test_a_table_of_actions_without_the_factor_is_refused(self):
        with pytest.raises(ConfigurationError, match=r"trials.factor=2.0: 2 is not among"):
            ControllerSpec(actions=ActionSpec(CLASSIC_MULTIPLIERS), trials=TrialSpec())
