import sys
from dataclasses import replace

import pytest
import torch

from lightning_dqnlr.control.spec import ControllerSpec
from lightning_dqnlr.envs.vector import ON_CPU
from lightning_dqnlr.errors import ConfigurationError
from lightning_dqnlr.meta.collect import CollectConfig
from lightning_dqnlr.meta.train import MetaTrainer, TrainConfig
from lightning_dqnlr.meta.workers import Job, LocalWorkers, finite, run_job
from lightning_dqnlr.policy.network import QNetwork
from lightning_dqnlr.policy.policy import LRPolicy
from lightning_dqnlr.rl.dqn import Agent, DQNConfig
from lightning_dqnlr.rl.replay import Transitions
from lightning_dqnlr.rl.rewards import LogProgress
from tests.meta.tiny_tasks import Deadly, Poisoned, TinyTasks

AGENT = Agent(DQNConfig(batch_size=16, hidden=(8,)))
COLLECT = CollectConfig(replicas=4)


def trained(folder, tasks, workers):
    """A run of two rounds; returns the trainer and what was reported of each episode."""
    config = TrainConfig(
        episodes=6,
        updates=5,
        warm_up_episodes=1,
        evaluate_every=6,
        evaluation_tasks=1,
        evaluation_seeds=2,
        checkpoint_every=6,
        round=3,
    )
    parts = (LogProgress(), ControllerSpec(probe_size=16), AGENT, COLLECT, config)
    trainer = MetaTrainer(tasks, *parts, folder, workers)
    reports = []
    trainer.fit(reports.append)
    return trainer, reports


def job(tasks, seed=1):
    spec = ControllerSpec(probe_size=16)
    policy = LRPolicy(QNetwork(len(spec.features), len(spec.actions), (8,)), spec)
    return Job(tasks, seed, policy, COLLECT, LogProgress(), ON_CPU)


def test_two_processes_of_which_one_is_killed_learn_bit_for_bit_what_one_learns(tmp_path):
    """Killed in the fifth of six episodes, when the round's first is over or still to come."""
    alone, _ = trained(tmp_path / "one", TinyTasks(), LocalWorkers(1))
    deadly = Deadly(marker=tmp_path / "killed", seed=4)
    shared, reports = trained(tmp_path / "two", deadly, LocalWorkers(2, restarts=1))
    assert (tmp_path / "killed").exists()
    assert [report.episode for report in reports] == [1, 2, 3, 4, 5, 6]
    assert [report.outcome.failure for report in reports] == [None] * 6
    assert len(alone.replay) == len(shared.replay)
    assert alone.learner.updates == shared.learner.updates == 25
    for a, b in zip(
        alone.learner.online.parameters(), shared.learner.online.parameters(), strict=True
    ):
        assert torch.equal(a, b)


def test_what_no_worker_survives_or_receives_ends_the_run_with_advice(tmp_path):
    class Unknown(TinyTasks):
        """Of no module: another process could not import it."""

    deadly = Deadly(marker=tmp_path / "killed", seed=1)
    with LocalWorkers(2, restarts=0).open() as collect:
        with pytest.raises(ConfigurationError, match=r"cannot be sent.*collector.workers=1"):
            list(collect([job(Unknown())]))
        with pytest.raises(ConfigurationError, match=r"again and again.*resume=true and fewer"):
            list(collect([job(deadly)]))


def test_a_task_that_fails_in_a_round_leaves_the_rest_of_the_round_alone(tmp_path):
    trainer, reports = trained(tmp_path, TinyTasks(failing=(1,)), LocalWorkers())
    failed = [report.outcome.failure is not None for report in reports]
    assert failed == [False, True, False, False, False, False]
    assert "no such data" in trainer.failures.texts[0]


@pytest.mark.parametrize("breaker", [True, False])
def test_a_task_of_nan_is_skipped_by_name_and_its_transitions_with_it(breaker):
    """With the breaker on, every interval is undone and each replica looks alive to the end."""
    collect = replace(COLLECT, circuit_breaker=breaker)
    outcome = run_job(replace(job(Poisoned(seeds=(1,))), config=collect))
    assert outcome.episode is None
    assert outcome.task.name == "tiny/train/1"
    assert outcome.failure == "not one of 4 replicas ended with a finite loss"


def test_a_task_that_ends_the_interpreter_is_skipped_too():
    class Leaving(TinyTasks):
        def sample(self, seed, split="train"):
            sys.exit("enough")

    assert run_job(job(Leaving())).failure == "SystemExit: enough"


def test_only_what_can_be_learned_from_enters_the_replay():
    """Rows: good, bad observation, bad return, bad bootstrap, blown up at the end (kept)."""
    nan, inf = float("nan"), float("inf")
    kept = finite(
        Transitions(
            observation=torch.tensor([[0.0], [nan], [2.0], [3.0], [4.0]]),
            action=torch.arange(5),
            reward=torch.tensor([1.0, 1.0, inf, 1.0, -1.0]),
            next_observation=torch.tensor([[1.0], [1.0], [1.0], [nan], [inf]]),
            discount=torch.tensor([0.5, 0.5, 0.5, 0.5, 0.0]),
        )
    )
    assert kept.action.tolist() == [0, 4]
    assert kept.next_observation.tolist() == [[1.0], [0.0]]
    assert kept.reward.tolist() == [1.0, -1.0]


def test_one_worker_starts_no_process():
    import multiprocessing

    with LocalWorkers(1).open() as collect:
        assert list(collect([])) == []
        assert not multiprocessing.active_children()
