import math
import sys
from dataclasses import replace
from functools import partial

import pytest
import torch
from lightning.pytorch.tuner.tuning import Tuner
from torch.optim import SGD, Adam, AdamW, RMSprop

from lightning_dqnlr.bench.methods import METHODS, with_policies
from lightning_dqnlr.bench.methods.feedback import GreedyLR, Hypergradient, LRFinder, Plateau
from lightning_dqnlr.bench.methods.packages import DAdaptation, Prodigy, ScheduleFree
from lightning_dqnlr.bench.methods.plan import Setting
from lightning_dqnlr.bench.methods.policies import (
    LearnedPolicy,
    MeanCurveReplay,
    StateBlind,
    Untrained,
)
from lightning_dqnlr.bench.methods.schedules import (
    OneCycle,
    ScheduledLR,
    constant,
    linear,
    wsd,
)
from lightning_dqnlr.control.features import FeatureSpec
from lightning_dqnlr.control.spec import ControllerSpec
from lightning_dqnlr.envs.process import RandomStream
from lightning_dqnlr.envs.trainer_data import task_loader, task_trainer
from lightning_dqnlr.errors import ConfigurationError, MissingPackageError, PolicyFileError
from lightning_dqnlr.host.callback import DQNLRCallback
from lightning_dqnlr.policy.network import QTable
from lightning_dqnlr.scoring.cosine import cosine
from lightning_dqnlr.tasks.families.basic import NoisyQuadratics
from tests.bench.watched_tasks import Pushed, plain_net, run, scripted, task
from tests.host.control_runs import constant_policy, random_policy


def rates(method, job, lr=0.4, seed=0):
    """The learning rate of each step, of the first group."""
    record = run(method, job, lr, seed, evaluations=1)
    assert record.failure is None
    return [row[0] for row in job.build.trained.rates]


def small_tasks():
    return [NoisyQuadratics(min_horizon=60, max_horizon=60).sample(0)]


@pytest.mark.parametrize(
    ("shape", "wanted"),
    [
        (constant, {0: 1.0, 39: 1.0}),
        # Two steps of warm-up (5% of 40), then 38 steps from 38/38 down to 1/38.
        (linear, {0: 0.5, 1: 1.0, 2: 1.0, 3: 37 / 38, 21: 19 / 38, 39: 1 / 38}),
        (cosine, {0: 0.5, 1: 1.0, 2: 1.0, 21: 0.5, 39: (1 - math.cos(math.pi / 38)) / 2}),
        # The last 8 steps (20%): 8/8, 7/8 .. 1/8.
        (wsd, {0: 0.5, 1: 1.0, 20: 1.0, 32: 1.0, 33: 7 / 8, 39: 1 / 8}),
    ],
)
def test_schedules_set_the_rates_worked_out_by_hand(shape, wanted):
    got = rates(ScheduledLR("any", shape), task(plain_net, horizon=40))
    assert len(got) == 40
    assert {step: got[step] for step in wanted} == pytest.approx(
        {step: 0.4 * share for step, share in wanted.items()}
    )


def test_one_cycle_climbs_for_30_percent_and_falls_to_a_250000th():
    got = rates(OneCycle(), task(plain_net, horizon=20))
    # Peak at step 0.3 * 20 - 1 = 5; half-way through the fall, at step 12, the mean of both ends.
    end = 0.4 / 25 / 1e4
    assert [got[0], got[5], got[12], got[19]] == pytest.approx([0.016, 0.4, (0.4 + end) / 2, end])


def test_one_cycle_cycles_a_momentum_only_where_there_is_one():
    for momentum, wanted in ((0.0, 0.0), (0.9, 0.95)):
        job = task(plain_net, partial(SGD, lr=0.1, momentum=momentum))
        rates(OneCycle(), job)
        group = job.build.trained.trained_with.param_groups[0]
        assert group["momentum"] == pytest.approx(wanted, abs=0.01)


@pytest.mark.parametrize("method", [ScheduledLR("linear", linear), OneCycle(), Plateau()])
def test_ratios_between_parameter_groups_are_kept(method):
    def optimizer(parameters):
        first, *rest = parameters
        return SGD([{"params": [first], "lr": 0.02}, {"params": rest}], lr=0.1)

    job = task(plain_net, optimizer)
    run(method, job, 0.5)
    ratios = [second / first for first, second in job.build.trained.rates]
    assert ratios == pytest.approx([5.0] * 20)
    assert max(second for _, second in job.build.trained.rates) == pytest.approx(0.5)


def test_without_a_rate_the_modules_own_is_the_peak():
    assert rates(ScheduledLR("constant", constant), task(plain_net), None) == [0.1] * 20


def test_greedy_raises_after_falling_and_lowers_after_rising_losses():
    losses = [9.0, 8.0, 7.0, 6.0, 6.0, 7.0, 8.0, 9.0, 9.0]
    got = rates(GreedyLR(window=1, patience=1), scripted(losses), 1.0)
    # Every second new best raises, every second loss that is none lowers; from the next step on.
    up = 1 / 0.95
    wanted = [1, 1, up, up, up**2, up**2, up, up, 1]
    assert got == pytest.approx(wanted)


def test_greedy_judges_the_moving_average():
    # Means of two: 6, 5, 4.25 are three new bests; of the single losses the third is none.
    got = rates(GreedyLR(window=2, patience=2), scripted([6.0, 4.0, 4.5, 9.0]), 1.0)
    assert got == pytest.approx([1, 1, 1, 1 / 0.95])


def test_greedy_stays_within_its_bounds():
    got = rates(GreedyLR(window=1, patience=0, factor=0.1, decades=1.0), scripted([1.0] * 6), 1.0)
    # The first loss is a new best (up to 10), the others are not: down to a tenth and no further.
    assert got == pytest.approx([1, 10, 1, 0.1, 0.1, 0.1])


def test_plateau_cuts_to_a_tenth_when_its_patience_is_over():
    got = rates(Plateau(patience=2, windows=12), scripted([1.0] * 12), 1.0)
    # The first loss is the best; three are no better, and the rate is cut after the fourth.
    assert got == pytest.approx([1.0] * 4 + [0.1] * 3 + [0.01] * 3 + [0.001] * 2)


def test_plateau_leaves_a_falling_mean_alone_and_does_not_look_at_single_losses():
    losses = [1.0, 3.0, -1.0, 4.0, -3.0, 5.0, -5.0, 6.0]  # means of two: 2, 1.5, 1, 0.5
    assert rates(Plateau(patience=0, windows=4), scripted(losses), 1.0) == [1.0] * 8


def test_plateau_cuts_small_rates_too():
    assert rates(Plateau(patience=0, windows=3), scripted([1.0] * 3), 1e-9)[-1] < 2e-10


def test_hypergradient_raises_when_gradients_agree_and_lowers_when_they_do_not():
    gradients = [(3.0, 0.0), (1.0, 0.0), (0.0, 2.0), (0.0, -5.0), (1.0, -1.0)]
    got = rates(Hypergradient(), task(partial(Pushed, gradients), horizon=5), 1.0)
    # Cosines with the gradient before: 1, 0, -1, 1/sqrt 2.
    third = 1.02 * 0.98
    assert got == pytest.approx([1, 1.02, 1.02, third, third * (1 + 0.02 / math.sqrt(2))])


def test_hypergradient_follows_the_last_update_not_the_last_gradient():
    # Adam's second update still points against the first gradient, although the second gradient is
    # small and reversed. Its moment is 0.9 * 1 - 0.1 * 0.01 > 0. A product of gradients would be
    # negative.
    gradients = [(1.0, 0.0), (-0.01, 0.0), (1.0, 0.0)]
    job = task(partial(Pushed, gradients), partial(Adam, lr=0.1), horizon=3)
    assert rates(Hypergradient(), job, 1.0) == pytest.approx([1, 0.98, 0.98 * 1.02])


def test_the_finders_suggestion_is_what_lightning_suggests_and_stays(tmp_path):
    job = task(plain_net)
    trainer = task_trainer(job.build(1), job, [], "cpu")
    trainer._default_root_dir = str(tmp_path)
    with RandomStream(1).active():
        finder = Tuner(trainer).lr_find(job.build(1), task_loader(job, 1), update_attr=False)
    assert 0.0 < finder.suggestion() < 0.1
    assert rates(LRFinder(), job, 0.4, seed=1) == pytest.approx([finder.suggestion()] * 20)


def test_the_finders_search_is_counted(capfd):
    job = task(plain_net)
    assert run(LRFinder(), job).tries == 6  # 20 steps of training, 100 of search
    assert capfd.readouterr() == ("", "")


def test_a_finder_without_a_suggestion_keeps_the_users_rate():
    # Ten batches are skipped at either end, so a search of 12 has nothing to go by.
    assert rates(LRFinder(steps=12), task(plain_net), 0.4) == [0.4] * 20


PRODIGY, ADAM, FREE = ("prodigyopt", "Prodigy"), ("dadaptation", "DAdaptAdam"), "schedulefree"


@pytest.mark.parametrize(
    ("method", "own", "kind", "settings"),
    [
        (Prodigy(), partial(Adam, weight_decay=0.3, betas=(0.8, 0.9)), PRODIGY,
         {"weight_decay": 0.3, "betas": (0.8, 0.9), "decouple": False, "lr": 1.0}),
        (Prodigy(), partial(AdamW, weight_decay=0.3), PRODIGY, {"decouple": True}),
        (Prodigy(), partial(SGD, weight_decay=0.3), PRODIGY,
         {"weight_decay": 0.3, "decouple": False}),
        (DAdaptation(), partial(SGD, momentum=0.7, weight_decay=0.2),
         ("dadaptation", "DAdaptSGD"), {"momentum": 0.7, "weight_decay": 0.2, "lr": 1.0}),
        (DAdaptation(), partial(AdamW, weight_decay=0.3), ADAM,
         {"decouple": True, "weight_decay": 0.3}),
        (DAdaptation(), partial(RMSprop, weight_decay=0.1), ADAM,
         {"decouple": False, "weight_decay": 0.1}),
        (ScheduleFree(), partial(SGD, weight_decay=0.2, momentum=0.3),
         (FREE, "SGDScheduleFree"), {"weight_decay": 0.2, "momentum": 0.9, "lr": 0.4}),
        (ScheduleFree(), partial(Adam, betas=(0.5, 0.95), weight_decay=0.2),
         (FREE, "AdamWScheduleFree"), {"weight_decay": 0.2, "betas": (0.9, 0.95), "lr": 0.4}),
    ],
)  # fmt: skip
def test_packages_take_over_the_tasks_optimizer(method, own, kind, settings, capfd):
    job = task(plain_net, partial(own, lr=0.1), horizon=4)
    record = run(method, job, 0.4)
    assert record.failure is None
    optimizer = job.build.trained.trained_with
    module, name = kind
    assert isinstance(optimizer, getattr(sys.modules[module], name))
    # The schedule has changed the rate by then.
    first = {**optimizer.param_groups[0], "lr": job.build.trained.rates[0][0]}
    assert {name: first[name] for name in settings} == settings
    assert capfd.readouterr().out == ""


@pytest.mark.parametrize("method", [Prodigy(), DAdaptation()])
def test_rates_of_their_own_follow_half_a_cosine_and_ignore_the_users(method):
    low, high = (rates(method, task(plain_net), lr) for lr in (1e-5, 10.0))
    assert low == high
    assert [low[0], low[10], low[15]] == pytest.approx(
        [1.0, 0.5, (1 + math.cos(0.75 * math.pi)) / 2]
    )


def test_prodigys_record_shows_the_rate_it_found():
    curve = run(Prodigy(), task(plain_net, horizon=40)).curve["lr"]
    assert curve[0] < 1e-5  # it starts at 1e-6
    assert max(curve) > 1e-4


@pytest.mark.parametrize(("own", "wanted"), [(SGD, 1.0), (Adam, 0.0025)])
def test_schedule_free_warms_up_to_the_packages_rate_if_there_is_no_other(own, wanted):
    record = run(ScheduleFree(), task(plain_net, partial(own, lr=0.1), horizon=40), None)
    # Two steps of warm-up; the first is made at half the rate. Adam's has its bias correction.
    found = record.curve["lr"]
    assert found[-1] == pytest.approx(wanted, rel=0.03)
    if own is SGD:
        assert found[0] == pytest.approx(wanted / 2)


@pytest.mark.parametrize("method", [Prodigy(), DAdaptation(), ScheduleFree()])
def test_a_missing_package_is_named_with_its_extra_before_anything_runs(method, monkeypatch):
    for name in ("prodigyopt", "dadaptation", "schedulefree"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(MissingPackageError, match=r"lightning-dqnlr\[bench\]"):
        run(method, task(), 0.1)


def test_a_policy_runs_as_its_user_would_run_it(tmp_path):
    folder = random_policy(3).save(tmp_path)
    job = task()
    got = rates(LearnedPolicy("mine", str(folder)), job, 7.0, seed=2)
    module, callback = job.build(2), DQNLRCallback(folder, log=False)
    with RandomStream(2).active():
        trainer = task_trainer(module, job, [callback], "cpu")
        trainer.fit(module, task_loader(job, 2))
    assert got == [row[0] for row in module.rates]
    assert len(set(got)) > 5


def test_a_policy_is_told_the_horizon_only_if_the_task_allows_it(tmp_path):
    folder = str(random_policy(3).save(tmp_path))
    method = LearnedPolicy("mine", folder)
    assert rates(method, task()) != rates(method, task(known_horizon=False))


def test_a_policy_that_is_not_there_stops_everything(tmp_path):
    with pytest.raises(PolicyFileError):
        run(LearnedPolicy("gone", str(tmp_path / "gone")), task())


def test_the_blind_control_of_a_policy_of_one_action_is_that_policy(tmp_path):
    folder = str(constant_policy(5).save(tmp_path))
    blind = StateBlind(policy=folder, tasks=small_tasks)
    assert rates(blind, task()) == rates(LearnedPolicy("mine", folder), task())


def test_the_mean_curve_of_a_rising_policy_rises_and_of_a_falling_one_falls(tmp_path):
    up, down = (str(constant_policy(action).save(tmp_path / str(action))) for action in (5, 1))
    high, low = (
        rates(MeanCurveReplay(policy=folder, tasks=small_tasks), task(horizon=60))
        for folder in (up, down)
    )
    assert high[0] == low[0]
    assert high[20] > 2 * high[0]
    assert low[20] < low[0] / 2


def test_the_untrained_control_has_other_weights_for_every_seed(tmp_path):
    policy = constant_policy(5)
    method = Untrained(policy=str(policy.save(tmp_path)))
    observation = torch.randn(200, len(policy.spec.features), generator=torch.Generator())

    def actions(seed):
        (_, callback) = method.plan(Setting(task(), seed)).callbacks
        return callback.policy.act(observation)

    assert torch.equal(actions(0), actions(0))
    assert not torch.equal(actions(0), actions(1))
    assert not torch.equal(actions(0), policy.act(observation))


def test_a_further_policy_is_a_method_of_its_own(tmp_path):
    folder = random_policy().save(tmp_path / "best")
    assert with_policies({}) == METHODS
    assert with_policies({"mine": folder}) == (*METHODS, LearnedPolicy("mine", str(folder)))
    with pytest.raises(ConfigurationError, match=r"\['classic'\] are methods already"):
        with_policies({"classic": folder})


def test_the_policies_compared_with_are_what_they_are_called():
    by_name = {method.name: method for method in METHODS}
    classic, table = by_name["classic"].load(), by_name["q_table"].load()
    assert classic.spec.actions.multipliers == (0.8, 1.0, 1.25)
    assert set(classic.spec.features.names) >= {"raw_loss", "raw_gradient_norm", "raw_step"}
    assert (classic.start, classic.circuit_breaker) == ("optimizer", False)
    assert isinstance(table.network, QTable)
    # The decay and the features that it was trained with, which are fewer than today's; everything
    # else is as in the default policy.
    features = FeatureSpec().names
    assert set(table.spec.features.names) < set(features)
    now = replace(table.spec, features=FeatureSpec())
    assert now == ControllerSpec(decay_share=0.5, cuts_in_decay=True)


def test_names_are_unique_and_peaks_are_tuned_where_there_are_any():
    assert len({method.name for method in METHODS}) == len(METHODS) == 20
    tuned = {method.name for method in METHODS if method.tuned}
    assert tuned == {"constant", "linear", "cosine", "wsd", "onecycle", "schedule-free"}


def test_study_tasks_are_the_same_every_time():
    from lightning_dqnlr.bench.methods.policies import study_tasks

    first, second = study_tasks(), study_tasks()
    assert [t.name for t in first] == [t.name for t in second]
    assert torch.equal(first[0].train_data[0], second[0].train_data[0])
