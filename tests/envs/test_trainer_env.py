"""One task in a real Trainer and as replicas: the same losses, the same observations."""

from functools import partial

import pytest
import torch

from lightning_dqnlr.control.spec import ControllerSpec
from lightning_dqnlr.envs.environment import Terms
from lightning_dqnlr.envs.trainer import TrainerEngine
from lightning_dqnlr.envs.trainer_data import mean_loss
from lightning_dqnlr.envs.vector import VectorEngine
from lightning_dqnlr.errors import UnsupportedTrainingError
from lightning_dqnlr.rl.rewards import LogProgress, interval_rewards
from lightning_dqnlr.tasks.task import Task

from .user_modules import (
    OPTIMIZERS,
    AsksItsTrainer,
    Branching,
    Classifier,
    Frozen,
    HasAHook,
    OlderName,
    TwoRates,
    WarmsUp,
    rows,
)

KEEP, LOWER, RAISE, DOUBLE, QUADRUPLE = 3, 2, 4, 5, 6
STEPS = 200


def task(module, horizon=STEPS, **arguments):
    return Task.from_lightning(module, rows(), horizon=horizon, **arguments)


def episode(engine, task, seeds=(7, 7), **arguments):
    """Climbs, each replica by its own amount, and then wanders a little."""
    env = engine.open(task, ControllerSpec(), seeds, Terms(**arguments))
    observations, losses, rates, rewards = [env.reset()], [], [], []
    losses.append(env.controller.history.loss)
    climb = [[QUADRUPLE, DOUBLE], [QUADRUPLE, RAISE], [QUADRUPLE, DOUBLE], [RAISE, DOUBLE]]
    while not env.finished:
        later = [LOWER, RAISE] if len(losses) % 2 else [RAISE, LOWER]
        action = climb[len(losses) - 1] if len(losses) <= len(climb) else later
        result = env.step(torch.tensor(action[: len(seeds)]))
        observations.append(result.observation)
        losses.append(env.controller.history.loss)
        rates.append(env.controller.lr)
        rewards.append(interval_rewards(LogProgress(), result.interval))
    assert env.controller.step == task.horizon
    final = env.losses()
    env.close()
    return {
        "observations": torch.stack(observations),
        "losses": torch.stack(losses),
        "rates": torch.stack(rates),
        "rewards": torch.stack(rewards),
        "final": torch.stack(final),
    }


def assert_same(ours, theirs):
    assert ours["observations"].shape == theirs["observations"].shape
    assert len(ours["losses"]) > 20
    assert ours["losses"].unique().numel() > 20
    for name in ("losses", "rates", "rewards", "final"):
        torch.testing.assert_close(ours[name], theirs[name], rtol=2e-3, atol=2e-4)
    # Cosines between nearly equal vectors and t-statistics enlarge rounding.
    torch.testing.assert_close(ours["observations"], theirs["observations"], rtol=0, atol=0.05)


@pytest.mark.parametrize("norm", [False, True], ids=["plain", "batchnorm"])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_trainer_and_the_replicas_give_the_same_run(optimizer, norm):
    ours = task(partial(Classifier, optimizer, norm), horizon=STEPS // 2)
    assert_same(episode(VectorEngine(), ours), episode(TrainerEngine(), ours))


@pytest.mark.parametrize("optimizer", ["momentum", "adamw"])
def test_dropout_masks_and_clipping_are_the_same_in_both(optimizer):
    ours = task(partial(Classifier, optimizer, True, 0.3), gradient_clip=0.5)
    vector = episode(VectorEngine(), ours)
    assert_same(vector, episode(TrainerEngine(), ours))
    without = task(partial(Classifier, optimizer, True, 0.3))
    assert not torch.allclose(vector["losses"], episode(VectorEngine(), without)["losses"])


@pytest.mark.parametrize("module", [TwoRates, Frozen, WarmsUp, OlderName])
def test_parameter_groups_frozen_weights_and_taken_off_schedulers_are_the_same_in_both(module):
    ours = task(module)
    # Of two seeds: frozen weights differ from replica to replica, too.
    assert_same(
        *(episode(engine, ours, seeds=(3, 9)) for engine in (VectorEngine(), TrainerEngine()))
    )


def test_replicas_of_different_seeds_are_the_trainers_of_these_seeds():
    ours = task(Classifier)
    assert_same(
        episode(VectorEngine(), ours, seeds=(3, 9)), episode(TrainerEngine(), ours, seeds=(3, 9))
    )


def test_the_breaker_goes_back_to_the_same_state_in_both():
    ours = task(partial(Classifier, "momentum"))

    def climb_until_undone(engine):
        """The number of decisions, and the loss of the weights that came back.

        A Trainer's interval ends at the ruin, and that of replicas with the interval of all.
        """
        env = engine.open(ours, ControllerSpec(), (7,), Terms())
        env.reset()
        while not env.step(torch.tensor([QUADRUPLE])).interval.tripped.item():
            pass
        decisions = env.controller.decisions
        # `losses` of a Trainer would first let it train to the next decision.
        trainer = isinstance(engine, TrainerEngine)
        data = ours.train_data
        loss = mean_loss(env._runs[0]._module, data)[None] if trainer else env.evaluate(data)
        env.close()
        return decisions, loss

    (first, restored), (second, same) = map(climb_until_undone, (VectorEngine(), TrainerEngine()))
    assert first == second
    torch.testing.assert_close(restored, same, rtol=2e-3, atol=2e-4)


def test_an_unknown_horizon_ends_at_the_same_step_in_both():
    ours = task(Classifier, horizon=77, known_horizon=False)
    assert_same(episode(VectorEngine(), ours), episode(TrainerEngine(), ours))


@pytest.mark.parametrize(
    ("start", "apart"),
    [
        ({"lr": torch.tensor([1e-3, 0.02])}, 20.0),
        ({"multiplier": torch.tensor([0.1, 5.0])}, 50.0),
    ],
    ids=["lr", "multiplier"],
)
def test_a_start_is_the_same_in_both(start, apart):
    ours = task(partial(Classifier, "sgd"), horizon=60)
    both = [episode(e, ours, **start) for e in (VectorEngine(), TrainerEngine())]
    assert_same(*both)
    # The first actions are x4 and x2.
    ratio = both[0]["rates"][0, 1] / both[0]["rates"][0, 0]
    assert ratio.item() == pytest.approx(apart / 2, rel=1e-3)


@pytest.mark.parametrize("module", [TwoRates, WarmsUp, OlderName])
@pytest.mark.parametrize("engine", [VectorEngine(), TrainerEngine()])
def test_following_a_schedule_ends_alike_and_zero_steps_are_the_start(engine, module):
    ours = task(module, horizon=40)
    end = engine.follow(ours, [1, 2], lambda step: torch.tensor([0.01, 0.001]) / (1 + step))
    begin = engine.follow(ours, [1, 2], lambda _: torch.ones(2), steps=0)
    reference = VectorEngine()
    expected = reference.follow(ours, [1, 2], lambda s: torch.tensor([0.01, 0.001]) / (1 + s))
    torch.testing.assert_close(torch.stack(end), torch.stack(expected), rtol=1e-4, atol=1e-5)
    assert not torch.allclose(begin.train, end.train, rtol=1e-3)
    torch.testing.assert_close(
        begin.train, reference.follow(ours, [1, 2], lambda _: torch.zeros(2), steps=3).train
    )


@pytest.mark.parametrize("module", [Branching, AsksItsTrainer, HasAHook])
def test_what_replicas_cannot_carry_is_refused_and_a_trainer_trains_it(module):
    ours = task(module, horizon=30)
    with pytest.raises(UnsupportedTrainingError, match=rf"{module.__name__}.*env=trainer"):
        episode(VectorEngine(), ours)
    final = episode(TrainerEngine(), ours)["final"]
    assert final.isfinite().all()


def test_neither_engine_touches_the_global_random_state_or_depends_on_it():
    ours = task(partial(Classifier, "adam", True, 0.3), horizon=30)
    for engine in (VectorEngine(), TrainerEngine()):
        torch.manual_seed(1)
        first = episode(engine, ours)["losses"]
        drawn = torch.rand(3)
        torch.manual_seed(1)
        assert torch.equal(drawn, torch.rand(3))
        torch.manual_seed(2)
        assert torch.equal(first, episode(engine, ours)["losses"])


class Stops(Classifier):
    def on_train_batch_end(self, outputs, batch, batch_idx):
        self.trainer.should_stop = self.global_step >= 10


def test_a_trainer_that_stops_early_is_an_error_not_a_hang():
    with pytest.raises(UnsupportedTrainingError, match=r"Stops ended its Trainer after 1\d of 30"):
        episode(TrainerEngine(), task(Stops, horizon=30))


class Breaks(Classifier):
    def training_step(self, batch, batch_idx):
        if self.global_step == 20:
            raise ArithmeticError("no luck")
        return super().training_step(batch, batch_idx)


class TwoOptimizers(Classifier):
    automatic_optimization = False

    def configure_optimizers(self):
        return [torch.optim.SGD(self.net[i].parameters(), lr=0.1) for i in (0, -1)]


def test_a_module_with_two_optimizers_is_refused_by_name():
    with pytest.raises(UnsupportedTrainingError, match="TwoOptimizers has 2 optimizers"):
        episode(TrainerEngine(), task(TwoOptimizers))


def test_what_a_module_raises_in_its_trainer_reaches_the_caller():
    with pytest.raises(ArithmeticError, match="no luck"):
        episode(TrainerEngine(), task(Breaks, horizon=30))


def test_closing_ends_trainers_that_wait_for_an_action():
    env = TrainerEngine().open(task(Classifier), ControllerSpec(), [1, 2], Terms())
    env.reset()
    threads = [run._thread for run in env._runs]
    assert all(thread.is_alive() for thread in threads)
    env.close()
    assert not any(thread.is_alive() for thread in threads)
