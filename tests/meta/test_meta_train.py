import json
import math
from dataclasses import replace

import pytest
import torch

from lightning_dqnlr.control.spec import ControllerSpec
from lightning_dqnlr.errors import ConfigurationError
from lightning_dqnlr.meta.checkpoint import CHECKPOINT
from lightning_dqnlr.meta.collect import CollectConfig
from lightning_dqnlr.meta.failures import MOST_FAILURES_IN_A_ROW
from lightning_dqnlr.meta.train import MetaTrainer, TrainConfig
from lightning_dqnlr.policy.policy import LRPolicy
from lightning_dqnlr.rl.dqn import Agent, DQNConfig
from lightning_dqnlr.rl.rewards import LogProgress
from lightning_dqnlr.scoring.evaluate import evaluate, fingerprint
from tests.meta.tiny_tasks import TinyTasks

CONFIG = TrainConfig(
    episodes=6,
    updates=3,
    warm_up_episodes=1,
    capacity=150,
    evaluate_every=2,
    evaluation_tasks=2,
    evaluation_seeds=2,
    checkpoint_every=2,
)
COLLECT = CollectConfig(replicas=4)
AGENT = Agent(DQNConfig(batch_size=16, hidden=(8,)))


def make_trainer(folder, tasks=None, collect=COLLECT, agent=AGENT, **changes):
    return MetaTrainer(
        tasks=tasks or TinyTasks(),
        reward=LogProgress(),
        spec=ControllerSpec(probe_size=16),
        agent=agent,
        collect=collect,
        config=replace(CONFIG, **changes),
        folder=folder,
    )


def ignore(progress):
    """A report that nobody reads."""


def weights(trainer):
    return trainer.learner.state_dict()["online"]


def test_a_resumed_run_ends_with_the_weights_of_the_uninterrupted_one(tmp_path):
    """Dropout, exploration and replay all draw random numbers; the ring wraps around."""
    whole = make_trainer(tmp_path / "whole")
    whole.fit(ignore)
    make_trainer(tmp_path / "cut", episodes=4).fit(ignore)
    resumed = make_trainer(tmp_path / "cut")
    resumed.load_checkpoint()
    assert resumed.episode == 4
    assert len(resumed.replay) == 150
    resumed.fit(ignore)
    for name, weight in weights(whole).items():
        assert torch.equal(weight, weights(resumed)[name]), name
    assert resumed.best_score == whole.best_score
    assert resumed.inner_steps == whole.inner_steps


def test_another_seed_is_another_run(tmp_path):
    first, second = make_trainer(tmp_path / "a"), make_trainer(tmp_path / "b", seed=1)
    assert not torch.equal(*(next(iter(weights(t).values())) for t in (first, second)))


def test_how_often_it_is_evaluated_does_not_change_what_is_learned(tmp_path):
    often = make_trainer(tmp_path / "often", evaluate_every=1)
    rarely = make_trainer(tmp_path / "rarely", evaluate_every=6)
    often.fit(ignore)
    rarely.fit(ignore)
    for name, weight in weights(often).items():
        assert torch.equal(weight, weights(rarely)[name]), name


def test_policies_to_be_averaged_are_those_of_their_episodes(tmp_path):
    trainer = make_trainer(tmp_path, keep_every=3)
    trainer.fit(ignore)
    kept = sorted(path.name for path in tmp_path.glob("episode-*"))
    assert kept == ["episode-00003", "episode-00006"]
    first, last = (LRPolicy.load(tmp_path / name) for name in kept)
    assert (first.record["episodes"], last.record["episodes"]) == (3, 6)
    seen = torch.randn(5, len(trainer.spec.features))
    assert torch.equal(last.q_values(seen), trainer.policy.q_values(seen))
    assert not torch.equal(first.q_values(seen), last.q_values(seen))


def test_training_and_validation_share_no_task(tmp_path):
    tasks = TinyTasks()
    make_trainer(tmp_path, tasks).fit(ignore)
    train = [seed for seed, split in tasks.asked if split == "train"]
    validation = [seed for seed, split in tasks.asked if split == "validation"]
    assert (len(train), len(validation)) == (6, 2)
    assert len(tasks.asked) == 8  # nothing from the test split
    names = {fingerprint(tasks.sample(seed, "train")).split("-")[-1] for seed in train}
    others = {fingerprint(tasks.sample(seed, "validation")).split("-")[-1] for seed in validation}
    assert len(names) == 6
    assert names & others == set()


def test_runs_of_different_seeds_share_no_training_task(tmp_path):
    asked = []
    for seed in (0, 1, 2):
        tasks = TinyTasks()
        make_trainer(tmp_path / str(seed), tasks, seed=seed).fit(ignore)
        asked += [number for number, split in tasks.asked if split == "train"]
    assert len(set(asked)) == len(asked) == 18


def test_a_task_that_raises_is_recorded_and_skipped(tmp_path):
    reports = []
    trainer = make_trainer(tmp_path, TinyTasks(failing=(1,)))
    trainer.fit(reports.append)
    assert trainer.failures.texts == ["task seed 1: LookupError: no such data"]
    assert [p.episode for p in reports] == [1, 2, 3, 4, 5, 6]
    assert [p.outcome.failure is None for p in reports] == [True, False, True, True, True, True]
    assert reports[1].outcome.episode is None
    record = LRPolicy.load(tmp_path / "last").record
    assert (record["failed_tasks"], record["failures"]) == (1, trainer.failures.texts)


def test_a_failure_in_the_last_episode_does_not_lose_the_policy(tmp_path):
    trainer = make_trainer(tmp_path, TinyTasks(failing=(5,)), evaluate_every=100)
    assert math.isfinite(trainer.fit(ignore))
    assert LRPolicy.load(tmp_path / "best").record["episodes"] == 6


def test_tasks_that_always_fail_stop_the_run(tmp_path):
    trainer = make_trainer(tmp_path, TinyTasks(failing=tuple(range(100))), episodes=100)
    with pytest.raises(ConfigurationError, match=r"tasks: 10 failed in a row.*no such data"):
        trainer.fit(ignore)
    assert trainer.episode == MOST_FAILURES_IN_A_ROW


def test_failures_far_apart_do_not_stop_the_run(tmp_path):
    failing = tuple(range(0, 36, 3))  # twelve, never two in a row
    trainer = make_trainer(
        tmp_path, TinyTasks(failing=failing), episodes=36, updates=0, evaluate_every=36
    )
    trainer.fit(ignore)
    assert len(trainer.failures.texts) == 12


def test_the_time_limit_ends_the_run_with_an_evaluated_policy(tmp_path):
    trainer = make_trainer(tmp_path, max_minutes=1e-9, evaluate_every=100)
    assert math.isfinite(trainer.fit(ignore))
    assert trainer.episode == 1
    assert (tmp_path / CHECKPOINT).is_file()
    assert LRPolicy.load(tmp_path / "best").record["validation"]["score"] == trainer.best_score


def test_the_record_says_where_the_policy_came_from(tmp_path):
    trainer = make_trainer(tmp_path)
    trainer.record = {"command": "dqnlr-train seed=0"}
    trainer.fit(ignore)
    record = json.loads((tmp_path / "best/policy.json").read_text())["record"]
    assert record["command"] == "dqnlr-train seed=0"
    assert record["seed"] == 0
    assert set(record["versions"]) == {"python", "torch", "lightning", "lightning_dqnlr"}
    assert record["machine"]["cpus"] >= 1
    assert record["tasks"] == "TinyTasks(failing=())"
    assert set(record["validation"]["tasks"]) == {"tiny/validation/0", "tiny/validation/1"}
    assert {"commit", "created", "minutes", "updates"} <= set(record)


def test_a_policy_is_judged_from_the_start_it_is_trained_from(tmp_path):
    collect = replace(COLLECT, start="user", circuit_breaker=False)
    trainer = make_trainer(tmp_path, collect=collect, episodes=1, evaluation_seeds=4)
    reports = []
    trainer.fit(reports.append)

    def judged(**changes):
        policy = trainer.policy
        policy.record |= changes
        tasks = trainer.validation_tasks()
        return evaluate(policy, tasks, trainer.rivals, range(4)).train

    same = judged(start="optimizer", circuit_breaker=False)
    assert torch.equal(reports[0].scores.train, same)
    assert not torch.equal(judged(circuit_breaker=True), same)
    assert not torch.equal(judged(start="auto"), same)


@pytest.mark.parametrize(
    ("collect", "start", "breaker"),
    [
        (COLLECT, "auto", True),
        (replace(COLLECT, start="user", circuit_breaker=False), "optimizer", False),
    ],
)
def test_a_policy_remembers_how_it_wants_to_be_used(tmp_path, collect, start, breaker):
    make_trainer(tmp_path, collect=collect, episodes=1).fit(ignore)
    record = LRPolicy.load(tmp_path / "last").record
    assert (record["start"], record["circuit_breaker"]) == (start, breaker)


def test_the_checkpoint_holds_only_the_filled_part_of_the_replay(tmp_path):
    make_trainer(tmp_path, episodes=1, capacity=300_000).fit(ignore)
    assert (tmp_path / CHECKPOINT).stat().st_size < 1_000_000


def test_another_run_is_not_continued_under_the_same_name(tmp_path):
    make_trainer(tmp_path, episodes=2).fit(ignore)
    with pytest.raises(ConfigurationError, match=r"^collect was .*replicas=4.* is .*replicas=5"):
        make_trainer(tmp_path, collect=replace(COLLECT, replicas=5)).load_checkpoint()
    wider = Agent(DQNConfig(batch_size=16, hidden=(9,)))
    with pytest.raises(ConfigurationError, match=r"^agent was .*hidden=\(8,\)"):
        make_trainer(tmp_path, agent=wider).load_checkpoint()
    for name in ("evaluation_tasks", "evaluation_seeds"):  # `best` would compare unlike scores
        with pytest.raises(ConfigurationError, match=name):
            make_trainer(tmp_path, **{name: 3}).load_checkpoint()
    make_trainer(tmp_path, episodes=9, evaluate_every=3, max_minutes=5).load_checkpoint()


def test_resuming_needs_a_whole_checkpoint(tmp_path):
    with pytest.raises(ConfigurationError, match=r"checkpoint\.pt does not exist"):
        make_trainer(tmp_path).load_checkpoint()
    make_trainer(tmp_path, episodes=1).fit(ignore)
    content = (tmp_path / CHECKPOINT).read_bytes()
    for damaged in (content[: len(content) // 2], b"", b"no checkpoint"):
        (tmp_path / CHECKPOINT).write_bytes(damaged)
        with pytest.raises(ConfigurationError, match="damaged"):
            make_trainer(tmp_path).load_checkpoint()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("episodes", 0),
        ("capacity", 0),
        ("updates", -1),
        ("seed", 0.5),
        ("max_minutes", 0),
        ("keep_every", 0),
    ],
)
def test_a_setting_out_of_range_is_named(name, value):
    with pytest.raises(ConfigurationError, match=f"TrainConfig.{name}={value}"):
        TrainConfig(**{name: value})
