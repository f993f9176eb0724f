import subprocess
import sys
import warnings

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.utils.env_checker import check_env
from gymnasium.vector import AutoresetMode
from lightning import LightningModule
from stable_baselines3.common.env_checker import check_env as check_env_of_stable_baselines3
from torch import nn

from lightning_dqnlr.control.features import FEATURES, SCALE_FREE, FeatureSpec
from lightning_dqnlr.control.spec import ActionSpec, ControllerSpec
from lightning_dqnlr.envs.gym import ENV_ID, LRControlEnv, LRControlVectorEnv
from lightning_dqnlr.envs.trainer import TrainerEngine
from lightning_dqnlr.errors import CallOrderError, ConfigurationError, UnsupportedTrainingError
from lightning_dqnlr.rl.rewards import LogProgress, LossChange, TrainingInterval
from lightning_dqnlr.tasks.families.basic import NoisyQuadratics
from lightning_dqnlr.tasks.optimizers import OptimizerSpec
from lightning_dqnlr.tasks.task import Task

from ..meta.tiny_tasks import TinyTasks
from .test_replicas import Branching, make_task

KEEP, QUADRUPLE = 3, 6
QUADRATICS = NoisyQuadratics(min_horizon=20, max_horizon=40)
FEW_DECISIONS = ControllerSpec(decisions=8)


def small(**arguments):
    return LRControlEnv(QUADRATICS, controller_spec=FEW_DECISIONS, **arguments)


def episode(env, actions=(QUADRUPLE, QUADRUPLE, QUADRUPLE), **reset):
    """All that a seeded episode shows; after `actions`, "keep"."""
    observation, info = env.reset(**reset)
    shown, actions = [(observation.tolist(), info)], list(actions)
    while "final_loss" not in info:
        action = actions.pop(0) if actions else KEEP
        observation, reward, *ends, info = env.step(action)
        shown.append((observation.tolist(), reward, *ends, info))
    return shown


def test_gymnasiums_checker_finds_nothing():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_env(gymnasium.make(ENV_ID).unwrapped)


def test_stable_baselines3s_checker_finds_nothing():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_env_of_stable_baselines3(small())


def test_the_id_is_found_by_naming_the_module_without_importing_it():
    code = (
        "import gymnasium, sys; assert 'lightning_dqnlr' not in sys.modules;"
        "env = gymnasium.make('lightning_dqnlr.envs.gym:lightning_dqnlr/LRControl-v0');"
        "print(env.reset(seed=0)[0].shape)"
    )
    command = [sys.executable, "-W", "error::UserWarning", "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.stdout == "(42,)\n", done.stderr


def test_the_vectorised_environment_needs_no_gymnasium_and_the_other_names_the_extra():
    code = (
        "import sys; import lightning_dqnlr.envs.vector; assert 'gymnasium' not in sys.modules\n"
        "sys.modules['gymnasium'] = None\n"  # what an import finds where nothing is installed
        "import lightning_dqnlr.envs.gym"
    )
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("lightning_dqnlr.errors.MissingPackageError"), done.stderr
    assert 'pip install "lightning-dqnlr[gym]"' in last


class CarelessTasks:
    """Draws from the global random state, as a user's family may."""

    def sample(self, seed, split="train"):
        return QUADRATICS.sample(seed + int(torch.randint(1000, ())), split)


@pytest.mark.parametrize(
    "family",
    [QUADRATICS, TinyTasks(), CarelessTasks()],
    ids=["quadratics", "dropout", "global_draws"],
)
def test_a_seed_fixes_the_whole_episode_bit_for_bit(family):
    first = LRControlEnv(family, controller_spec=FEW_DECISIONS)
    second = LRControlEnv(family, controller_spec=FEW_DECISIONS)
    torch.manual_seed(1)
    expected = episode(first, seed=5), episode(first)
    torch.manual_seed(2)
    assert (episode(second, seed=5), episode(second)) == expected
    assert episode(first, seed=5) == expected[0]
    assert expected[0] != expected[1]
    assert (
        first.reset(options={"task_seed": 1, "run_seed": 1})[1]
        != (first.reset(options={"task_seed": 1, "run_seed": 2})[1])
    )


def test_a_real_trainer_can_run_the_episodes_and_shows_nearly_the_same():
    task = QUADRATICS.sample(2)
    vector = LRControlEnv(task, controller_spec=FEW_DECISIONS)
    trainer = LRControlEnv(task, controller_spec=FEW_DECISIONS, engine=TrainerEngine())
    shown, expected = episode(trainer, seed=3), episode(vector, seed=3)
    assert len(shown) == len(expected)
    for ours, theirs in zip(shown, expected, strict=True):
        np.testing.assert_allclose(ours[0], theirs[0], rtol=1e-2, atol=1e-2)
        assert ours[-1]["lr"] == pytest.approx(theirs[-1]["lr"], rel=1e-3)
    assert shown[-1][-1]["final_loss"] == pytest.approx(expected[-1][-1]["final_loss"], rel=1e-3)
    trainer.reset(seed=3)
    trainer.close()


def test_a_module_that_vmap_cannot_carry_runs_on_the_trainer_engine():
    task = make_task(OptimizerSpec("sgd"), module=Branching, horizon=20)
    with pytest.raises(UnsupportedTrainingError):
        LRControlEnv(task).reset()
    env = LRControlEnv(task, controller_spec=FEW_DECISIONS, engine=TrainerEngine())
    assert episode(env, seed=0)[-1][-1]["final_loss"] > 0


@pytest.mark.parametrize("family", [TinyTasks(), CarelessTasks()], ids=["dropout", "global_draws"])
def test_the_global_random_states_are_left_alone(family):
    env = LRControlEnv(family, controller_spec=FEW_DECISIONS)
    torch.manual_seed(3)
    np.random.seed(3)
    before, numpys = torch.get_rng_state(), np.random.get_state()[1].copy()
    episode(env, seed=0)
    assert torch.equal(torch.get_rng_state(), before)
    assert (np.random.get_state()[1] == numpys).all()


def test_each_reset_draws_another_task_of_the_split():
    tasks = {small(split=split).reset(seed=0)[1]["task"] for split in ("train", "test")}
    assert {task.split("/")[1] for task in tasks} == {"train", "test"}
    env = small()
    env.reset(seed=0)
    assert len({env.reset()[1]["task"] for _ in range(5)}) == 5


def test_options_choose_task_and_run():
    env = small(split="validation")
    chosen = {"task_seed": 7, "run_seed": 3}
    first = episode(env, seed=0, options=chosen)
    assert first[0][1]["task"] == "noisy_quadratics/validation/7"
    assert episode(env, seed=1, options=chosen) == first
    assert episode(env, seed=1, options={"task_seed": 7}) != first


def test_a_fixed_task_is_trained_from_other_weights_each_time():
    env = LRControlEnv(QUADRATICS.sample(3), controller_spec=FEW_DECISIONS)
    first, second = env.reset(seed=0), env.reset()
    assert first[1]["task"] == second[1]["task"] == "noisy_quadratics/train/3"
    assert first[1]["loss"] != second[1]["loss"]


def test_the_end_of_the_run_is_a_terminal_and_says_how_it_went():
    env = small()
    *rest, last = episode(env, seed=0)
    _, _, terminated, truncated, info = last
    assert (terminated, truncated) == (True, False)
    assert not any(step[2] or step[3] for step in rest[1:])
    task = QUADRATICS.sample(int(info["task"].rsplit("/", 1)[1]))
    assert info["step"] == task.horizon
    assert info["initial_loss"] == pytest.approx(rest[0][1]["loss"])
    assert info["final_loss"] < 0.9 * info["initial_loss"]
    assert info["final_loss"] == pytest.approx(info["loss"], rel=0.3)  # of the last interval
    assert info["trips"] == 0
    with pytest.raises(CallOrderError, match="reset"):
        env.step(KEEP)


def test_info_tells_the_rate_that_the_steps_were_made_with():
    shown = episode(small(), actions=[KEEP, KEEP, QUADRUPLE], seed=0)
    rates = [step[-1]["lr"] for step in shown]
    assert rates[3] / rates[2] == pytest.approx(4, rel=0.1)  # and a little decay
    assert rates[2] / rates[1] == pytest.approx(1, rel=0.1)


def test_another_reward_and_another_observation_and_action_table_are_taken():
    spec = ControllerSpec(FeatureSpec(FEATURES), ActionSpec((0.5, 1.0, 2.0)), decisions=8)
    env = LRControlEnv(QUADRATICS, controller_spec=spec, reward=LossChange(limit=1.0))
    assert env.action_space.n == 3
    assert env.observation_space.shape == (len(FEATURES),)
    low = dict(zip(FEATURES, env.observation_space.low, strict=True))
    assert {low[name] for name in SCALE_FREE} == {-3.0}
    assert {low[name] for name in FEATURES if name not in SCALE_FREE} == {-1e4}
    shown = episode(env, actions=[2, 2, 2, 1, 0, 1, 0, 0, 0, 0, 1, 1, 1, 1], seed=1)
    assert {abs(step[1]) for step in shown[1:]} == {1.0}
    assert all(env.observation_space.contains(np.float32(step[0])) for step in shown)


class Blowing(LightningModule):
    """A slope without end, whose loss turns infinite once the parameter has gone far enough."""

    def __init__(self, limit, optimizer):
        super().__init__()
        self.optimizer = optimizer
        self.theta = nn.Parameter(torch.ones(6))
        self.register_buffer("limit", torch.tensor(limit))

    def configure_optimizers(self):
        return self.optimizer.build(self.parameters(), lr=0.1)

    def training_step(self, batch, batch_idx):
        travelled = 1.0 - self.theta.mean() + 0.0 * batch[0].mean()
        return 10.0 - travelled + torch.where(travelled > self.limit, torch.inf, 0.0)


def blowing_task(limits):
    """Replica i overflows once it has travelled `limits[i]`; infinity never does."""
    optimizer = OptimizerSpec("sgd")
    plain = make_task(optimizer, horizon=40)

    def build(seed):
        return Blowing(limits[seed] if seed < len(limits) else 1e30, optimizer)

    return Task(**{**vars(plain), "build": build})


def failing_env(limits, count=None):
    return LRControlVectorEnv(
        len(limits) if count is None else count,
        blowing_task(limits),
        controller_spec=FEW_DECISIONS,
        circuit_breaker=False,
    )


def vector_episode(env, seeds, steps):
    observation, _ = env.reset(seed=0, options={"run_seeds": seeds})
    shown = [[observation]]
    for _ in range(steps):
        shown.append(list(env.step(np.full(len(seeds), QUADRUPLE))))
    return shown


def test_staggered_failures_leave_the_other_replicas_transitions_untouched():
    limits = [1e30, 1e-3, 1e30, 1e-2]
    together = vector_episode(failing_env(limits), (0, 1, 2, 3), 20)
    healthy = vector_episode(failing_env([1e30] * 4), (0, 1, 2, 3), 20)
    ends = np.stack([step[2] for step in together[1:]])
    first = ends.argmax(axis=0)
    assert first[1] < first[3] < first[0] == first[2]
    for step, expected in zip(together, healthy, strict=True):
        for shown, wanted in zip(step[:4], expected[:4], strict=True):
            np.testing.assert_array_equal(shown[[0, 2]], wanted[[0, 2]])


def test_a_trip_costs_what_was_asked_for_or_else_what_the_reward_itself_says():
    one = torch.ones(1)
    undone = TrainingInterval(one, one, one, one.bool(), one.bool())
    own = LogProgress(trip_penalty=0.5)
    cases = [(own, None, 0.5), (own, 0.125, 0.125), (lambda old, new, _: old - new, None, 0.02)]
    for reward, given, cost in cases:
        env = LRControlEnv(QUADRATICS, reward=reward, trip_penalty=given)
        assert env._pay(undone).item() == pytest.approx(-cost)


def test_a_failed_replica_stays_terminated_without_reward_until_the_next_task():
    """Else a learner that leaves out one step after a terminal would store the waiting."""
    env = failing_env([1e30, 1e-3])
    shown = vector_episode(env, (0, 1), 20)
    ends = np.stack([step[2] for step in shown[1:]])
    rewards = np.stack([step[1] for step in shown[1:]])
    failed, over = ends[:, 1].argmax(), ends[:, 0].argmax()
    assert 0 < failed < over
    assert ends[failed : over + 1, 1].all()
    assert rewards[failed, 1] == -1.0
    assert (rewards[failed + 1 : over + 1, 1] == 0).all()
    assert not ends[over + 1].any()  # the reset, which ignores its action
    assert (rewards[over + 1] == 0).all()


def test_final_losses_are_reported_once_for_each_replica():
    env = failing_env([1e30, 1e-3])
    infos = [step[4] for step in vector_episode(env, (0, 1), 12)[1:]]
    reported = [info["_final_loss"].tolist() for info in infos if "_final_loss" in info]
    assert reported[:2] == [[False, True], [True, False]]
    values = [info["final_loss"] for info in infos if "_final_loss" in info]
    assert np.isnan(values[0][1])
    assert 0 < values[1][0] < 10


def test_all_replicas_failing_ends_the_episode_before_the_horizon():
    env = failing_env([1e-3, 1e-3])
    shown = vector_episode(env, (0, 1), 8)
    ends = np.stack([step[2] for step in shown[1:]])
    over = ends.all(axis=1).argmax()
    assert shown[over + 1][4]["step"][0] < 40
    assert shown[over + 2][4]["step"].tolist() == [1, 1]


def test_without_a_breaker_a_single_failed_run_is_a_terminal():
    env = LRControlEnv(blowing_task([1e-3]), controller_spec=FEW_DECISIONS, circuit_breaker=False)
    shown = episode(env, [QUADRUPLE] * 20, options={"run_seed": 0})
    _, reward, terminated, truncated, info = shown[-1]
    assert (reward, terminated, truncated) == (-1.0, True, False)
    assert np.isnan(info["final_loss"])
    assert info["step"] < 40


def test_the_next_step_after_the_end_begins_another_task():
    env = gymnasium.make_vec(ENV_ID, num_envs=2, tasks=QUADRATICS, controller_spec=FEW_DECISIONS)
    assert isinstance(env, LRControlVectorEnv)
    assert env.metadata["autoreset_mode"] is AutoresetMode.NEXT_STEP
    _, info = env.reset(seed=0)
    task, ends = info["task"][0], np.zeros(2, dtype=bool)
    while not ends.all():
        _, _, ends, truncated, info = env.step(np.array([KEEP, QUADRUPLE]))
        assert set(info["task"]) == {task}
        assert not truncated.any()
    observation, reward, ends, _, info = env.step(np.array([KEEP, QUADRUPLE]))
    assert observation in env.observation_space
    assert info["task"][0] != task
    assert info["step"].tolist() == [1, 1]
    assert (reward.tolist(), ends.tolist()) == ([0.0, 0.0], [False, False])


def test_a_seed_fixes_the_episodes_of_a_vector_too():
    def rows(env):
        env.reset(seed=4)
        return [env.step(np.full(3, QUADRUPLE))[0].tolist() for _ in range(25)]

    def build():
        return LRControlVectorEnv(3, TinyTasks(), controller_spec=FEW_DECISIONS)

    torch.manual_seed(1)
    expected = rows(build())
    torch.manual_seed(2)
    assert rows(build()) == expected


def test_gymnasiums_own_vector_wrappers_run_on_it():
    env = gymnasium.wrappers.vector.RecordEpisodeStatistics(
        LRControlVectorEnv(2, QUADRATICS, controller_spec=FEW_DECISIONS)
    )
    env.reset(seed=0)
    total = np.zeros(2)
    for _ in range(60):
        _, reward, ends, _, info = env.step(np.full(2, QUADRUPLE))
        total += reward
        if ends.all():
            break
    np.testing.assert_allclose(info["episode"]["r"], total, rtol=1e-5)


@pytest.mark.parametrize("action", [-1, 7, 1.5])
def test_an_action_outside_the_table_is_refused(action):
    env = small()
    env.reset(seed=0)
    with pytest.raises(ConfigurationError, match="action"):
        env.step(action)
    many = LRControlVectorEnv(2, QUADRATICS)
    many.reset(seed=0)
    for actions in (np.array([KEEP, action]), np.array([KEEP])):
        with pytest.raises(ConfigurationError, match="action"):
            many.step(actions)


def test_misuse_is_refused_by_name():
    with pytest.raises(CallOrderError, match="reset"):
        small().step(KEEP)
    with pytest.raises(ConfigurationError, match="run_seeds"):
        small().reset(options={"run_seeds": [1]})
    with pytest.raises(ConfigurationError, match="2 seeds"):
        LRControlVectorEnv(2, QUADRATICS).reset(options={"run_seeds": [1]})
    with pytest.raises(ConfigurationError, match="num_envs"):
        LRControlVectorEnv(0)
    with pytest.raises(ConfigurationError, match="horizon"):
        LRControlEnv(make_task(OptimizerSpec("sgd"), horizon=1)).reset()


def test_changing_an_info_or_observation_changes_nothing_in_the_run():
    def second_step(spoil):
        env = LRControlVectorEnv(2, QUADRATICS, controller_spec=FEW_DECISIONS)
        env.reset(seed=0)
        observation, *_, info = env.step(np.full(2, QUADRUPLE))
        if spoil:
            observation[:] = info["lr"][:] = info["loss"][:] = 99.0
        return env.step(np.full(2, QUADRUPLE))

    for shown, expected in zip(second_step(True)[:4], second_step(False)[:4], strict=True):
        np.testing.assert_array_equal(shown, expected)
