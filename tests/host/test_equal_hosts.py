"""One controller, four hosts: the same run must get the same learning rates in all of them."""

import numpy as np
import pytest
import torch
from lightning.pytorch import LightningModule

from lightning_dqnlr import DQNLRCallback, DQNLRScheduler
from lightning_dqnlr.control.controller import LRController
from lightning_dqnlr.control.probe import Probe
from lightning_dqnlr.control.spec import ControllerSpec
from lightning_dqnlr.control.telemetry import IntervalStats
from lightning_dqnlr.envs.environment import Terms
from lightning_dqnlr.envs.gym import LRControlEnv, LRControlVectorEnv
from lightning_dqnlr.envs.replicas import BatchOrder
from lightning_dqnlr.envs.vector import VectorLREnv
from lightning_dqnlr.rl.rewards import LogProgress, interval_rewards
from lightning_dqnlr.tasks.families.basic import TeacherMLPs

from .control_runs import random_policy, trainer, trying_policy

SEEDS = (5, 6)
STEPS = 150  # well into the built-in decay


class Batches:
    """The batches that replica `seed` of the vectorised environment sees."""

    def __init__(self, task, seed, steps):
        self.task, self.seed, self.steps = task, seed, steps

    def __len__(self):
        return self.steps

    def __iter__(self):
        data = self.task.train_data
        order = BatchOrder(len(data[0]), self.task.batch_size, [self.seed])
        for _ in range(self.steps):
            index = order.next()[0]
            yield tuple(t[index] for t in data)


class Wrapped(LightningModule):
    """A task's module with the task's own optimizer."""

    def __init__(self, task, seed):
        super().__init__()
        self.module = task.build(seed)

    def training_step(self, batch, batch_idx):
        return self.module.training_step(batch, batch_idx)

    def configure_optimizers(self):
        return self.module.configure_optimizers()


def task_with(optimizer):
    family = TeacherMLPs(
        optimizers=[optimizer],
        min_horizon=180,
        max_horizon=220,
        initial_scales=(0.8, 1.2),
        wide_probability=0.0,
        known_horizon_probability=1.0,
    )
    tasks = (family.sample(seed) for seed in range(100))
    return next(t for t in tasks if t.gradient_clip is None)


def in_the_environment(task, policy):
    env = VectorLREnv(task, policy.spec, SEEDS, Terms())
    observation, rates = env.reset(), [env.controller.lr]
    while env.controller.step < STEPS:
        observation = env.step(policy.act(observation)).observation
        rates.append(env.controller.lr)
    return torch.stack(rates)[:, 0].tolist()


def in_a_plain_loop(task, policy):
    module = task.build(SEEDS[0])
    module.lr = 123.0
    optimizer = module.configure_optimizers()
    scheduler = DQNLRScheduler(optimizer, policy, horizon=task.horizon, module=module)
    for batch in Batches(task, SEEDS[0], STEPS):
        optimizer.zero_grad()
        loss = module.training_step(batch, 0)
        loss.backward()
        optimizer.step()
        scheduler.step(loss)
    return [record["lr"] for record in scheduler.trace]


def in_a_trainer(task, policy, folder):
    callback = DQNLRCallback(policy, horizon=task.horizon)
    run = trainer(callback, folder, max_steps=STEPS)
    run.fit(Wrapped(task, SEEDS[0]), Batches(task, SEEDS[0], STEPS))
    return [record["lr"] for record in callback.trace]


@pytest.mark.parametrize("optimizer", ["sgd", "momentum", "adam", "adamw"])
def test_environment_loop_and_trainer_give_the_same_learning_rates(tmp_path, optimizer):
    task, policy = task_with(optimizer), random_policy(seed=3)
    env = in_the_environment(task, policy)
    loop = in_a_plain_loop(task, policy)
    callback = in_a_trainer(task, policy, tmp_path)
    assert loop == callback
    assert len(loop) > 15
    assert len(set(loop)) > 10
    assert loop == pytest.approx(env[: len(loop)], rel=1e-4)


def test_trials_are_the_same_in_environment_loop_and_trainer(tmp_path):
    task, policy = task_with("adam"), trying_policy()
    env = in_the_environment(task, policy)
    loop = in_a_plain_loop(task, policy)
    assert loop == in_a_trainer(task, policy, tmp_path)
    assert loop == pytest.approx(env[: len(loop)], rel=1e-4)
    assert max(loop) > 3 * loop[2]  # more than one was kept


def replayed(task, spec, seeds, actions):
    """Observations, rewards and rates of `actions`, (T, R), in the vectorised environment."""
    env = VectorLREnv(task, spec, seeds, Terms())
    observations, rewards, rates = [env.reset()], [], [env.controller.lr]
    for action in actions:
        result = env.step(action)
        observations.append(result.observation)
        rewards.append(interval_rewards(LogProgress(), result.interval))
        rates.append(env.controller.lr)
    return [torch.stack(rows).numpy() for rows in (observations, rewards, rates)]


def replayed_in_gymnasium(env, options, actions):
    """The same of one of the Gymnasium environments; `actions` as it takes them."""
    observation, info = env.reset(options=options)
    observations, rewards, rates = [observation], [], [info["lr"]]
    for action in actions:
        observation, reward, _, _, info = env.step(action)
        observations.append(observation)
        rewards.append(reward)
        rates.append(info["lr"])
    return [np.stack(rows).astype(np.float32) for rows in (observations, rewards, rates)]


@pytest.mark.parametrize("optimizer", ["momentum", "adam"])
def test_gymnasium_shows_what_the_vectorised_environment_shows(optimizer):
    task, seeds, spec = task_with(optimizer), (5, 6, 7, 8), ControllerSpec()
    draws = torch.Generator().manual_seed(1)
    # More raises than cuts, or the runs would never leave their safe start.
    actions = torch.randint(2, len(spec.actions), (20, len(seeds)), generator=draws)
    many = replayed(task, spec, seeds, actions)
    vector = LRControlVectorEnv(len(seeds), task, controller_spec=spec)
    options = {"run_seeds": seeds}
    for shown, expected in zip(
        replayed_in_gymnasium(vector, options, actions.numpy()), many, strict=True
    ):
        np.testing.assert_array_equal(shown, expected)
    few = replayed(task, spec, seeds[1:2], actions[:, 1:2])
    single = LRControlEnv(task, controller_spec=spec)
    alone = replayed_in_gymnasium(single, {"run_seed": seeds[1]}, actions[:, 1].tolist())
    for shown, expected, among_many in zip(alone, few, many, strict=True):
        np.testing.assert_array_equal(shown, expected[:, 0])
        # Later the raises make the run chaotic: rounding among other replicas then decides.
        np.testing.assert_allclose(shown[:8], among_many[:8, 1], rtol=1e-3, atol=1e-3)
    assert len(set(alone[2].tolist())) > 10


def test_an_agent_of_gymnasium_is_told_what_a_trial_did_in_its_place():
    task, seeds, spec = task_with("adam"), (5, 6), trying_policy().spec
    vector = LRControlVectorEnv(len(seeds), task, controller_spec=spec)
    _, info = vector.reset(options={"run_seeds": seeds})
    keep = np.full(len(seeds), spec.actions.keep)
    env = VectorLREnv(task, spec, seeds, Terms())
    env.reset()
    told = [info["action"]]
    for _ in range(30):
        *_, info = vector.step(keep)
        result = env.step(torch.from_numpy(keep))
        np.testing.assert_array_equal(info["action"], result.action.numpy())
        np.testing.assert_array_equal(info["lr"], env.controller.lr.numpy())
        told.append(info["action"])
    assert set(np.concatenate(told)) >= {spec.actions.keep, spec.actions.multipliers.index(2.0)}


def recorded(intervals, lead):
    """Statistics of a run that falls, stalls, blows up and recovers."""
    generator = torch.Generator().manual_seed(4)

    def draw(low, high):
        return torch.rand(lead, generator=generator) * (high - low) + low

    for number in range(intervals):
        steps = min(16, 1 + number)
        level = 3.0 * 0.9**number * (50.0 if number in (8, 15) else 1.0)
        noise = torch.rand((*lead, steps), generator=generator)
        values = [draw(0.01, 1.0) for _ in range(12)]
        finite = torch.ones(lead, dtype=torch.bool)
        yield IntervalStats(level * (1 + 0.1 * noise), *values, finite, steps)


def of_replica(stats, index):
    return IntervalStats(*(v[index] if isinstance(v, torch.Tensor) else v for v in stats))


@pytest.mark.parametrize("horizon", [300, None])
def test_one_recorded_run_gives_equal_rates_alone_and_among_replicas(horizon):
    policy, replicas, spec = random_policy(seed=1), 3, ControllerSpec()
    together = LRController(spec, horizon=horizon, lead=(replicas,))
    alone = [LRController(spec, horizon=horizon) for _ in range(replicas)]
    norms = torch.tensor([0.5, 2.0, 7.0])
    probe = Probe([(60,), (40,)])
    together.safe_start(norms, 3 * norms.flip(0), probe, follows_gradient=False)
    for index, controller in enumerate(alone):
        controller.safe_start(norms[index], 3 * norms.flip(0)[index], probe, follows_gradient=False)
    tripped = 0
    for stats in recorded(24, (replicas,)):
        decision = together.observe(stats)
        # One batch size for the network: matrix products may round differently for another.
        action = torch.stack([policy.act(row) for row in decision.observation])
        rates = together.apply(action)
        tripped += int(decision.tripped.sum())
        for index, controller in enumerate(alone):
            own = controller.observe(of_replica(stats, index))
            assert torch.equal(own.observation, decision.observation[index])
            assert torch.equal(controller.apply(policy.act(own.observation)), rates[index])
    assert tripped
