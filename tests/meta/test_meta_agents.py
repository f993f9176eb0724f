"""Every agent that can be chosen: trains, resumes bit for bit, ships a policy that can be used."""

from dataclasses import replace
from itertools import combinations
from pathlib import Path

import lightning.pytorch as pl
import pytest
import torch
from hydra import compose, initialize_config_module
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_dqnlr.bench.methods.policies import untrained
from lightning_dqnlr.cli import train as cli
from lightning_dqnlr.errors import ConfigurationError
from lightning_dqnlr.host.callback import DQNLRCallback
from lightning_dqnlr.host.scheduler import DQNLRScheduler
from lightning_dqnlr.meta.train import MetaTrainer, TrainConfig
from lightning_dqnlr.policy.network import QNetwork, QTable, QuantileNetwork
from lightning_dqnlr.policy.policy import LRPolicy, combine
from lightning_dqnlr.rl.prioritised import PrioritisedReplayConfig
from lightning_dqnlr.rl.q_table import TabularConfig
from lightning_dqnlr.rl.quantile import QuantileConfig
from tests.meta.tiny_tasks import TinyTasks

CONF = Path(__file__).parents[2] / "conf"
AGENTS = sorted(path.stem for path in (CONF / "agent").glob("*.yaml"))
KINDS = ["default", "quantile", "tabular"]  # of networks
CONFIG = TrainConfig(
    episodes=4,
    updates=4,
    warm_up_episodes=1,
    capacity=150,
    evaluate_every=2,
    evaluation_tasks=1,
    evaluation_seeds=2,
    checkpoint_every=2,
)


def composed(*overrides):
    with initialize_config_module("lightning_dqnlr.conf", version_base="1.3"):
        return compose("train", list(overrides))


def make_trainer(name, folder, *overrides, **changes):
    """As the configuration builds it, but on tiny tasks with a tiny network and batch."""
    small = [f"agent={name}", "agent.learner.batch_size=16", "env.collect.replicas=4"]
    if name != "tabular":
        small.append("agent.learner.hidden=[8]")
    small.append("env.spec.probe_size=16")
    built = cli.build_trainer(composed(*small, *overrides), folder)
    parts = (built.reward, built.spec, built.agent, built.collect)
    return MetaTrainer(TinyTasks(), *parts, replace(CONFIG, **changes), folder)


def ignore(progress):
    """A report that nobody reads."""


def same(first, second):
    """Whether two snapshots are equal bit by bit."""
    if isinstance(first, torch.Tensor):
        return torch.equal(first, second)
    if isinstance(first, dict):
        return first.keys() == second.keys() and all(same(first[k], second[k]) for k in first)
    if isinstance(first, list | tuple):
        return len(first) == len(second) and all(map(same, first, second))
    return first == second


@pytest.fixture(scope="module", params=AGENTS)
def trained(request, tmp_path_factory):
    """A run of four episodes and another that was stopped after two and resumed."""
    folder = tmp_path_factory.mktemp(request.param)
    whole = make_trainer(request.param, folder / "whole")
    whole.fit(ignore)
    make_trainer(request.param, folder / "cut", episodes=2).fit(ignore)
    resumed = make_trainer(request.param, folder / "cut")
    resumed.load_checkpoint()
    assert resumed.episode == 2
    resumed.fit(ignore)
    return request.param, whole, resumed


def test_all_agents_of_the_design_can_be_chosen():
    wanted = ["classic", "default", "double", "dueling", "n_step", "prioritised", "quantile"]
    assert [*wanted, "tabular"] == AGENTS


def test_a_resumed_run_equals_the_uninterrupted_one_bit_by_bit(trained):
    _, whole, resumed = trained
    first, second = whole.state_dict(), resumed.state_dict()
    for name in ("learner", "replay", "generator", "best_score", "inner_steps", "episode"):
        assert same(first[name], second[name]), name
    assert whole.learner.updates == 12


def test_learning_changed_what_explores(trained):
    name, whole, _ = trained
    observation = torch.randn(50, len(whole.spec.features))
    fresh = make_trainer(name, whole.folder.parent / "fresh")
    assert not torch.equal(
        whole.behaviour.q_values(observation), fresh.behaviour.q_values(observation)
    )


def test_a_policy_in_use_is_not_moved_by_further_learning(trained):
    name, whole, _ = trained
    trainer = make_trainer(name, whole.folder.parent / "another")
    trainer.load_state_dict(whole.state_dict())
    policy, observation = trainer.behaviour, torch.randn(20, len(whole.spec.features))
    before = policy.q_values(observation)
    trainer._learn()
    assert torch.equal(policy.q_values(observation), before)
    assert not any(p.requires_grad for p in policy.network.parameters())


def test_the_shipped_policy_is_the_learners_average(trained):
    _, _, resumed = trained
    loaded = LRPolicy.load(resumed.folder / "last")
    observation = torch.randn(100, len(loaded.spec.features))
    assert torch.equal(loaded.q_values(observation), resumed.learner.average(observation))
    assert type(loaded.network) is type(resumed.policy.network)
    untrained(loaded)(observation)  # the control of the model card


class Net(pl.LightningModule):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(3, 1)

    def training_step(self, batch, _):
        return (self.layer(batch[0]) - batch[0].sum(1, keepdim=True)).square().mean()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def test_its_policy_controls_a_lightning_run_and_a_plain_loop(trained, tmp_path):
    _, whole, _ = trained
    folder, inputs = whole.folder / "last", torch.randn(32, 3)
    callback = DQNLRCallback(policy=folder)
    trainer = pl.Trainer(
        max_epochs=2,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=tmp_path,
        callbacks=[callback],
    )
    trainer.fit(Net(), DataLoader(TensorDataset(inputs), batch_size=4))
    assert len(callback.trace) > 3

    net = Net()
    optimizer = net.configure_optimizers()
    scheduler = DQNLRScheduler(optimizer, policy=folder, horizon=10)
    for _ in range(10):
        optimizer.zero_grad()
        loss = net.training_step((inputs,), 0)
        loss.backward()
        optimizer.step()
        scheduler.step(loss)
    assert optimizer.param_groups[0]["lr"] > 0


def test_priorities_follow_the_errors_of_what_was_learned(tmp_path):
    trainer = make_trainer("prioritised", tmp_path, episodes=2)
    trainer.fit(ignore)
    assert trainer.replay.probabilities.unique().numel() > 10


def test_importance_weights_reach_the_learner(tmp_path):
    """Two updates: draws and errors of the first are the same, the second has uneven weights."""
    first = []
    for beta in (0.0, 1.0):
        override = f"agent.replay.beta={beta}"
        trainer = make_trainer("prioritised", tmp_path / str(beta), override, episodes=2, updates=2)
        trainer.fit(ignore)
        first.append(trainer.learner.state_dict()["online"]["advantage.0.weight"])
    assert not torch.equal(*first)


def policy_of(kind, folder, seed=0):
    torch.manual_seed(seed)
    trainer = make_trainer(kind, folder, seed=seed)
    for tensor in (*trainer.learner.average.parameters(), *trainer.learner.average.buffers()):
        if tensor.dim() == 2:
            tensor.data.normal_()
    policy = trainer.policy
    policy.record = {"reward": "LogProgress()"}
    return policy


@pytest.mark.parametrize(("first", "second"), [*combinations(KINDS, 2), ("tabular", "tabular")])
def test_policies_of_all_kinds_can_be_averaged_and_saved(first, second, tmp_path):
    members = [policy_of(kind, tmp_path, seed) for seed, kind in enumerate((first, second))]
    both = LRPolicy.load(combine(members).save(tmp_path / "both"))
    observation = torch.randn(50, len(both.spec.features))
    mean = (members[0].q_values(observation) + members[1].q_values(observation)) / 2
    torch.testing.assert_close(both.q_values(observation), mean)


def test_values_of_different_rewards_are_not_averaged(tmp_path):
    members = [policy_of("tabular", tmp_path), policy_of("default", tmp_path)]
    members[1].record = {"reward": "LossChange(alpha_1=1.0)"}
    with pytest.raises(ConfigurationError, match=r"trained with LogProgress.* and with LossChange"):
        combine(members)


def built(*overrides, folder=Path("nowhere")):
    return cli.build_trainer(composed(*overrides), folder)


def test_agents_bring_the_length_of_their_returns():
    lengths = {name: built(f"agent={name}").collect.n_step for name in AGENTS}
    assert lengths.pop("classic") == 1
    assert set(lengths.values()) == {32}
    for environment in sorted((CONF / "env").glob("*.yaml")):
        overrides = (f"env={environment.stem}", "agent=n_step", "agent.n_step=7")
        assert built(*overrides).collect.n_step == 7


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("double", {"double": True}),
        ("dueling", {"dueling": True}),
        ("prioritised", {}),
        ("classic", {}),
    ],
)
def test_each_rung_of_the_ladder_changes_one_thing(name, change):
    base, other = built("agent=n_step"), built(f"agent={name}")
    assert other.agent.learner == replace(base.agent.learner, **change)
    assert (other.agent.replay == base.agent.replay) == (name != "prioritised")
    assert (other.collect == base.collect) == (name != "classic")


def test_the_special_agents_are_what_they_are_called():
    base = built("agent=n_step").agent.learner
    quantile, tabular = built("agent=quantile").agent.learner, built("agent=tabular").agent.learner
    assert isinstance(quantile, QuantileConfig)
    shared = {name: getattr(quantile, name) for name in vars(base) if name != "loss"}
    assert replace(base, **shared) == base
    assert isinstance(tabular, TabularConfig)
    assert tabular.batch_size == base.batch_size
    assert isinstance(built("agent=prioritised").agent.replay, PrioritisedReplayConfig)
    kinds = {"default": QNetwork, "quantile": QuantileNetwork, "tabular": QTable}
    for name, kind in kinds.items():
        assert type(built(f"agent={name}").policy.network) is kind


def test_the_bins_of_the_table_all_lie_inside_the_clipped_observation():
    learner = built("agent=tabular").agent.learner
    assert len(learner.bins) == 5
    assert all(-3 < edge < 3 for edges in learner.bins.values() for edge in edges)


def test_a_table_over_features_that_are_not_observed_is_refused():
    with pytest.raises(ConfigurationError, match=r"bins.*update_ratio.*raw_loss"):
        built("agent=tabular", "env=classic")


def test_runs_share_the_tuned_cosines_where_they_are_told_to(tmp_path):
    shared = tmp_path / "rivals"
    make_trainer("tabular", tmp_path / "a", episodes=1, rivals=str(shared)).fit(ignore)
    (file,) = shared.iterdir()
    written = file.stat().st_mtime_ns
    make_trainer("tabular", tmp_path / "b", episodes=1, rivals=str(shared)).fit(ignore)
    assert [(f, f.stat().st_mtime_ns) for f in shared.iterdir()] == [(file, written)]
    assert not (tmp_path / "a/rivals").exists()
    make_trainer("tabular", tmp_path / "c", episodes=1).fit(ignore)
    assert len(list((tmp_path / "c/rivals").iterdir())) == 1
