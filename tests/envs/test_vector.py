import pytest
import torch
from lightning import LightningModule
from torch import nn

from lightning_dqnlr.control.spec import ControllerSpec
from lightning_dqnlr.envs.environment import Terms
from lightning_dqnlr.envs.vector import VectorLREnv
from lightning_dqnlr.rl.rewards import LogProgress, interval_rewards
from lightning_dqnlr.tasks.families.basic import NoisyQuadratics
from lightning_dqnlr.tasks.optimizers import OptimizerSpec

from .test_replicas import Net, make_task

KEEP, QUADRUPLE = 3, 6


def make_env(task=None, seeds=(0, 1, 2, 3), **arguments):
    task = task or make_task(OptimizerSpec("momentum"), horizon=150)
    return VectorLREnv(task, ControllerSpec(), seeds, Terms(**arguments))


def run(env, act):
    observations, rewards = [env.reset()], []
    while not env.finished:
        result = env.step(act(observations[-1]))
        observations.append(result.observation)
        rewards.append(interval_rewards(LogProgress(), result.interval))
    return torch.stack(observations), torch.stack(rewards)


def climb(steps):
    state = {"left": steps}

    def act(observation):
        state["left"] -= 1
        return torch.full(observation.shape[:1], QUADRUPLE if state["left"] >= 0 else KEEP)

    return act


def test_an_episode_ends_exactly_at_the_horizon():
    env = make_env()
    run(env, climb(4))
    assert env.controller.step == 150
    assert env.telemetry.total_steps == 150


def test_first_update_of_every_replica_is_a_ten_thousandth_of_its_weights():
    env = make_env()
    before = env.replicas.weights.clone()
    env.reset()
    ratio = (env.replicas.weights - before).norm(dim=-1) / before.norm(dim=-1)
    torch.testing.assert_close(ratio, torch.full((4,), 1e-4), rtol=1e-2, atol=0)


def test_the_multiplied_start_multiplies_the_safe_start():
    env = make_env(multiplier=torch.tensor([1.0, 10.0, 100.0, 0.1]))
    other = make_env()
    env.reset()
    other.reset()
    ratio = env.controller.lr / other.controller.lr
    torch.testing.assert_close(ratio, torch.tensor([1.0, 10.0, 100.0, 0.1]), rtol=1e-3, atol=0)


def test_rewards_add_up_to_the_log_progress_of_the_run():
    env = make_env()
    _, rewards = run(env, climb(3))
    history = env.controller.history
    expected = LogProgress()(history.initial_loss, history.loss, history.initial_loss)
    assert (history.trips == 0).all()
    torch.testing.assert_close(rewards.sum(0), expected, rtol=1e-4, atol=1e-4)


def test_a_replica_does_not_depend_on_its_neighbours():
    many, few = make_env(), make_env(seeds=(2,))
    observations, rewards = run(many, climb(4))
    alone, alone_rewards = run(few, climb(4))
    torch.testing.assert_close(observations[:, 2], alone[:, 0], rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(rewards[:, 2], alone_rewards[:, 0], rtol=1e-3, atol=1e-3)


def test_the_same_seeds_give_the_same_episode():
    first, second = run(make_env(), climb(5)), run(make_env(), climb(5))
    assert torch.equal(first[0], second[0])
    assert torch.equal(first[1], second[1])


class Quartic(LightningModule):
    """Explodes for large rates from far out: |theta|^4."""

    def __init__(self, optimizer):
        super().__init__()
        self.theta = nn.Parameter(torch.full((6,), 3.0))
        self.optimizer = optimizer

    def configure_optimizers(self):
        return self.optimizer.build(self.parameters(), lr=0.1)

    def training_step(self, batch, batch_idx):
        return (self.theta - 0.01 * batch[0].mean(0)).pow(4).sum()


def test_a_replica_started_far_too_high_is_brought_back_by_the_breaker():
    task = make_task(OptimizerSpec("sgd"), module=Quartic, horizon=200)
    env = make_env(task, lr=torch.tensor([1e-3, 10.0, 1e-3, 1e-3]))
    run(env, climb(0))
    assert env.controller.history.trips[1] > 0
    assert (env.controller.history.trips[[0, 2, 3]] == 0).all()
    # Step 1 was taken before anything was known; the replica must at least have stayed finite
    # and be controlled again.
    assert env.alive[[0, 2, 3]].all()
    final = env.losses().train
    assert (final[[0, 2, 3]] < 200).all()


def test_without_the_breaker_a_failed_replica_is_terminal_and_the_others_go_on():
    task = make_task(OptimizerSpec("sgd"), module=Quartic, horizon=100)
    start = torch.tensor([1e-3, 10.0, 1e-3, 1e-3])
    env = make_env(task, lr=start, circuit_breaker=False)
    healthy = make_env(task, lr=torch.full((4,), 1e-3), circuit_breaker=False)
    observations, rewards = run(env, climb(0))
    expected, _ = run(healthy, climb(0))
    assert env.alive.tolist() == [True, False, True, True]
    assert rewards.isfinite().all()
    torch.testing.assert_close(observations[:, [0, 2, 3]], expected[:, [0, 2, 3]])


def test_a_quadratic_is_solved_with_nothing_tuned():
    task = NoisyQuadratics(min_horizon=300, max_horizon=300, optimizers=("sgd",)).sample(1)
    env = make_env(task)
    start = env.replicas.evaluate(task.train_data)
    run(env, climb(6))
    assert (env.losses().train < 0.5 * start).all()


@pytest.mark.parametrize("norm", [True, False])
def test_the_controller_sees_the_weights_it_moves(norm):
    env = make_env(make_task(OptimizerSpec("adam"), module=Net, norm=norm, horizon=40))
    observations, _ = run(env, climb(3))
    column = env.controller.spec.features.names.index("update_ratio")
    ratio = 10 ** (observations[2, :, column] * 1.5 - 3)
    # Adam at 1e-4, raised by 4 after each of the first two decisions.
    assert (ratio > 4e-4).all()
    assert (ratio < 6e-3).all()
