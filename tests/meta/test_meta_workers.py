import torch

from lightning_dqnlr.control.spec import ControllerSpec
from lightning_dqnlr.meta.collect import CollectConfig
from lightning_dqnlr.meta.train import MetaTrainer, TrainConfig
from lightning_dqnlr.meta.workers import open_collector
from lightning_dqnlr.rl.agent import Agent
from lightning_dqnlr.rl.dqn import DQNConfig
from lightning_dqnlr.rl.rewards import LogProgress
from lightning_dqnlr.tasks.families import NoisyQuadratics

AGENT = Agent(DQNConfig(batch_size=16, hidden=(8,)))
TASKS = NoisyQuadratics(min_horizon=10, max_horizon=20)


def trained(folder, workers):
    config = TrainConfig(
        episodes=6,
        updates=5,
        warm_up_episodes=1,
        evaluate_every=6,
        evaluation_tasks=1,
        evaluation_seeds=2,
        checkpoint_every=6,
        round=3,
        workers=workers,
    )
    trainer = MetaTrainer(
        TASKS,
        LogProgress(),
        ControllerSpec(),
        AGENT,
        CollectConfig(replicas=4),
        config,
        folder,
    )
    episodes = []
    trainer.fit(lambda progress: episodes.append(progress.episode))
    return trainer, episodes


def test_two_processes_learn_bit_for_bit_what_one_learns(tmp_path):
    alone, episodes = trained(tmp_path / "one", workers=1)
    shared, shared_episodes = trained(tmp_path / "two", workers=2)
    assert episodes == shared_episodes == [1, 2, 3, 4, 5, 6]
    assert len(alone.replay) == len(shared.replay)
    for a, b in zip(
        alone.learner.online.parameters(), shared.learner.online.parameters(), strict=True
    ):
        assert torch.equal(a, b)


class Failing:
    """A family whose second task cannot be made."""

    def sample(self, seed, split="train"):
        if split == "train" and seed % 3 == 1:
            raise RuntimeError("no such data")
        return TASKS.sample(seed, split)


def test_a_task_that_fails_in_a_round_leaves_the_rest_of_the_round_alone(tmp_path):
    config = TrainConfig(episodes=3, round=3, evaluation_tasks=1, evaluation_seeds=2, updates=0)
    parts = (LogProgress(), ControllerSpec(), AGENT, CollectConfig(replicas=4), config)
    trainer, failures = MetaTrainer(Failing(), *parts, tmp_path), []
    trainer.fit(lambda progress: failures.append(progress.failure))
    assert [failure is not None for failure in failures] == [False, True, False]
    assert "no such data" in trainer.failures[0]


def test_one_worker_starts_no_process():
    import multiprocessing

    with open_collector(1) as collect:
        assert list(collect([])) == []
        assert not multiprocessing.active_children()
