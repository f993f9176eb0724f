import math

import pytest
import torch

from lightning_dqnlr.control.features import CLASSIC, FeatureSpec
from lightning_dqnlr.control.spec import CLASSIC_MULTIPLIERS, ActionSpec, ControllerSpec, TrialSpec
from lightning_dqnlr.envs.environment import Terms
from lightning_dqnlr.envs.vector import VectorLREnv
from lightning_dqnlr.errors import ConfigurationError
from lightning_dqnlr.meta.collect import CollectConfig, _Recorded, collect_episode
from lightning_dqnlr.policy.network import QNetwork
from lightning_dqnlr.policy.policy import LRPolicy
from lightning_dqnlr.rl.rewards import (
    End,
    FinalScore,
    LogProgress,
    LossChange,
    TrainingInterval,
    interval_rewards,
)
from lightning_dqnlr.tasks.families.basic import TeacherMLPs
from tests.meta.tiny_tasks import TinyTasks

CLASSIC_SPEC = ControllerSpec(
    features=FeatureSpec(CLASSIC), actions=ActionSpec(CLASSIC_MULTIPLIERS), decay="none"
)


def constant_policy(action, spec=CLASSIC_SPEC):
    """Always the same greedy action, whatever it observes."""
    network = QNetwork(len(spec.features), len(spec.actions), hidden=(), dueling=False)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.zero_()
        network.advantage[-1].bias[action] = 1.0
    return LRPolicy(network, spec)


def collect(**settings):
    plain = {"shared_seed": False, "demonstrators": 0.0}
    config = CollectConfig(**{**plain, "circuit_breaker": False, **settings})
    return collect_episode(
        TinyTasks().sample(0),
        constant_policy(0),
        config,
        LossChange(),
        torch.Generator().manual_seed(0),
    )


def three_runs(alive):
    """Three decisions of three replicas, of which `alive` says who lived on after each."""
    rollout = _Recorded(torch.zeros(3, dtype=torch.bool), [torch.zeros(3, 2)])
    for row in alive:
        rollout.observations.append(torch.zeros(3, 2))
        rollout.actions.append(torch.zeros(3, dtype=torch.int64))
        rollout.explored.append(torch.zeros(3, dtype=torch.bool))
        ones, never = torch.ones(3), torch.zeros(3, dtype=torch.bool)
        rollout.intervals.append(TrainingInterval(ones, ones, ones, never, torch.tensor(row)))
    return rollout


def stacked(rollout):
    return TrainingInterval(*map(torch.stack, zip(*rollout.intervals, strict=True)))


def test_a_run_that_died_learns_its_own_final_score_and_not_the_mean_of_the_others():
    config = CollectConfig(n_step=3, replicas=3, demonstrators=0.0)
    rollout = three_runs([[True, True, True], [True, False, True], [True, False, True]])
    end = End(torch.tensor([0.1, torch.inf, 0.5]), torch.zeros(3))
    found = rollout.transitions(config, FinalScore(), end)
    scores = FinalScore().pay(stacked(rollout), end)
    assert scores[2, 0] > scores[2, 2] > scores[1, 1]  # the best, the second, and the dead
    assert scores[1, 1] < -1
    assert scores.count_nonzero() == 3
    assert found.reward.min() == pytest.approx(scores[1, 1].item())


@pytest.mark.parametrize("final", [torch.inf, -torch.inf, torch.nan])
def test_a_final_loss_that_is_not_finite_costs_one_and_not_the_largest_number(final):
    reward = LossChange(alpha_1=0.0, limit=math.inf, final_evaluation=True)
    end = End(torch.tensor([1.0, final, 1.0]), torch.zeros(3))
    rewards = reward.pay(stacked(three_runs([[True] * 3] * 3)), end)
    assert rewards[-1].tolist() == [0.0, -1.0, 0.0]


def test_replicas_explore_less_and_less():
    """0.9^(1 + 7 i / 199) falls from 0.9 to 0.43; of random actions a third are greedy anyway."""
    settings = {"replicas": 200, "epsilon": 0.9, "epsilon_alpha": 7.0}
    other = (collect(**settings).transitions.action != 0).float().view(-1, 200)
    share = other.mean(0)
    assert share[:40].mean() == pytest.approx(2 / 3 * 0.84, abs=0.06)
    assert share[-40:].mean() == pytest.approx(2 / 3 * 0.46, abs=0.06)


def test_alpha_zero_lets_every_replica_explore_alike():
    episode = collect(replicas=200, epsilon=0.9, epsilon_alpha=0.0)
    share = (episode.transitions.action != 0).float().view(-1, 200).mean(0)
    assert share[:40].mean() == pytest.approx(0.6, abs=0.06)
    assert share[-40:].mean() == pytest.approx(0.6, abs=0.06)


def test_users_learning_rates_span_seven_decades():
    """The raw learning rate of the first observation is the start's; action 0 is 0.8 of it."""
    transitions = collect(replicas=400, epsilon=0.0, start="user").transitions
    column = CLASSIC.index("raw_learning_rate")
    exponents = transitions.observation[:400, column].log10()
    assert exponents.min() == pytest.approx(-6, abs=0.1)
    assert exponents.max() == pytest.approx(1, abs=0.1)
    assert exponents.mean() == pytest.approx(-2.5, abs=0.3)
    assert exponents.std() == pytest.approx(7 / math.sqrt(12), abs=0.2)


def test_collecting_looks_at_no_validation_data():
    task = TinyTasks().sample(0)
    object.__setattr__(task, "validation_data", None)  # would fail if anything evaluated it
    config = CollectConfig(replicas=2, demonstrators=0.0)
    generator = torch.Generator().manual_seed(0)
    episode = collect_episode(task, constant_policy(0), config, LossChange(), generator)
    assert episode.final_losses.isfinite().all()


def test_the_last_transition_of_every_replica_is_terminal():
    transitions = collect(replicas=3, epsilon=0.5, n_step=1, discount=0.99).transitions
    discount = transitions.discount.view(-1, 3)
    assert (discount[-1] == 0).all()
    torch.testing.assert_close(discount[:-1], torch.full_like(discount[:-1], 0.99))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("replicas", 0),
        ("n_step", 0),
        ("epsilon", 1.5),
        ("discount", -0.1),
        ("start", "optimizer"),
        ("epsilon_alpha", -1.0),
        ("demonstrators_left", 1.1),
        ("demonstrator_n_step", 0),
    ],
)
def test_a_setting_out_of_range_is_named(name, value):
    with pytest.raises(ConfigurationError, match=rf"CollectConfig\.{name}={value!r} must be"):
        CollectConfig(**{name: value})


def test_loss_change_as_an_environments_reward():
    """2 * sign + 3 * decrease; the initial loss, a decoy, plays no part."""
    reward = LossChange(alpha_1=2.0, alpha_2=3.0)
    previous, loss = torch.tensor([1.0, 1.0, 1.0]), torch.tensor([0.5, 1.0, 2.0])
    got = reward(previous, loss, torch.tensor([7.0, 0.0, math.nan]))
    torch.testing.assert_close(got, torch.tensor([3.5, 0.0, -5.0]))


def test_a_diverging_loss_cannot_overflow_the_reward():
    previous = torch.tensor([1.0, 1e30, 1.0])
    loss = torch.tensor([1e30, 1.0, math.inf])
    got = LossChange(limit=10.0)(previous, loss, previous)
    torch.testing.assert_close(got, torch.tensor([-10.0, 10.0, -10.0]))


def test_log_progress_as_an_environments_reward():
    """1.0 -> 0.5 with e = 0.01 is log(1.01 / 0.51), whatever the unit."""
    unit = torch.tensor([1.0, 1000.0])
    got = LogProgress()(unit, 0.5 * unit, unit)
    torch.testing.assert_close(got, torch.full((2,), math.log(1.01 / 0.51)))


def test_the_environment_pays_what_the_reward_says():
    env = VectorLREnv(TinyTasks().sample(0), CLASSIC_SPEC, [0, 1], Terms())
    env.reset()
    before = env.controller.history.loss
    result = env.step(torch.tensor([1, 1]))
    history = env.controller.history
    torch.testing.assert_close(
        interval_rewards(LogProgress(), result.interval),
        LogProgress()(before, history.loss, history.initial_loss),
    )


def test_demonstrators_leave_linearly_and_never_come_back():
    config = CollectConfig(demonstrators=0.4, demonstrator_episodes=100)
    shares = [config.at(episode).demonstrators for episode in (0, 50, 100, 10_000)]
    assert shares == pytest.approx([0.4, 0.2, 0.0, 0.0])
    assert config.at(50).at(99).demonstrators == pytest.approx(0.2)


def test_as_many_demonstrators_stay_as_are_to_be_left():
    config = CollectConfig(
        demonstrators=0.5, demonstrator_episodes=100, demonstrators_left=0.2, replicas=7
    )
    shares = [config.at(episode).demonstrators for episode in (0, 50, 100, 10_000)]
    assert shares == pytest.approx([0.5, 0.35, 0.2, 0.2])
    assert config.at(10_000).replicas == 7


def test_demonstrators_returns_have_a_length_of_their_own():
    """Four replicas, all demonstrators or none: the discount 0.9^n of the first tells n."""
    for share, first in ((0.0, 0.9**4), (1.0, 0.9**2)):
        transitions = collect(
            replicas=4, n_step=4, discount=0.9, demonstrators=share, demonstrator_n_step=2
        ).transitions
        assert transitions.discount[0].item() == pytest.approx(first)
    mixed = collect(
        replicas=64, n_step=4, discount=0.9, demonstrators=0.5, demonstrator_n_step=2
    ).transitions
    lengths = mixed.discount.log() / math.log(0.9)
    assert {2, 4} <= set(lengths[lengths.isfinite()].round().int().tolist())
    assert len(mixed.action) == 64 * len(transitions.action) / 4


def test_a_policy_learns_from_what_a_trial_did_and_not_from_what_it_wanted():
    """It would always cut; the actions on record are also those of trials, and end no return."""
    spec = ControllerSpec(trials=TrialSpec(window=2, margin=0.0, pause=2, least_steps=1))
    config = CollectConfig(replicas=4, demonstrators=0.0, epsilon=0.0, cut_at_exploration=True)
    task = TeacherMLPs(min_horizon=100, max_horizon=120, known_horizon_probability=1.0).sample(0)
    policy = constant_policy(spec.actions.keep, spec)
    draws = torch.Generator().manual_seed(0)
    found = collect_episode(task, policy, config, FinalScore(), draws).transitions
    tried = {spec.actions.multipliers.index(factor) for factor in (0.5, 2.0)}
    assert set(found.action.tolist()) == {spec.actions.keep, *tried}
    assert (found.discount == 0).float().mean() > 0.5  # of 32 steps, to the end of the run


def test_only_the_policys_own_returns_end_before_random_actions():
    """Greedy is action 0, so every other action was explored; the first row of transitions tells.

    With n = 2 a return has one reward less (discount 0.9 instead of 0.81) exactly where the next
    action was explored.
    """
    for share in (0.0, 1.0):
        cut = collect(
            replicas=200, epsilon=0.9, epsilon_alpha=0.0, n_step=2, discount=0.9,
            demonstrators=share, cut_at_exploration=True,
        ).transitions  # fmt: skip
        first, second = cut.discount[:200], cut.action[200:400]
        explored = (second != 0) & (share == 0.0)
        expected = torch.where(explored, 0.9, 0.81)
        torch.testing.assert_close(first, expected)
        assert 20 < int((second != 0).sum()) < (180 if share == 0.0 else 201)
