"""What a run says about itself: the policy that made it, and nothing taken from the user's seed."""

import csv
import logging
from pathlib import Path

import numpy as np
import pytest
import pytorch_lightning
import torch
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from torch import nn

from lightning_dqnlr import DQNLRCallback, DQNLRScheduler, LRPolicy, __version__
from lightning_dqnlr.bench.methods.policies import LearnedPolicy
from lightning_dqnlr.bench.runs.versions import policy_hash
from lightning_dqnlr.errors import ConfigurationError, UnsupportedTrainingError
from lightning_dqnlr.host.time_limit import TimeLimit
from lightning_dqnlr.host.trainer_queries import averages, horizon_of

from .control_runs import Loop, Net, averaging, constant_policy, loader, random_policy, trainer

KEEP = 3


def fit(folder, callback, **arguments):
    run = trainer(callback, folder, **{"max_steps": 6, **arguments})
    run.fit(Net(), loader())
    return callback


def test_the_hash_of_a_policy_is_that_of_the_published_records():
    known = {
        "default": "230e7e58e933dbd5",
        "classic": "f67101c36a439441",
        "q_table": "414b341d55b15fa5",
    }
    for name, value in known.items():
        assert LRPolicy.load(name).name == name
        assert LRPolicy.load(name).fingerprint == policy_hash(LearnedPolicy(name, name)) == value


def test_another_start_or_weight_is_another_hash_and_a_copy_is_not(tmp_path):
    policy = random_policy()
    before = policy.fingerprint
    assert LRPolicy.load(policy.save(tmp_path / "mine")).fingerprint == before
    assert LRPolicy.load(tmp_path / "mine").name == "mine"
    policy.record = {"start": "optimizer"}
    assert policy.fingerprint != before
    policy.record = {}
    next(policy.network.parameters()).data.view(-1)[0] += 1
    assert policy.fingerprint != before


def test_the_policy_is_named_by_repr_trace_logger_and_checkpoint(tmp_path):
    policy = LRPolicy.load("default")
    callback, logger = DQNLRCallback(), CSVLogger(tmp_path)
    assert "'default'" in repr(callback)
    assert policy.fingerprint in repr(callback)
    fit(tmp_path, callback, logger=logger)
    with open(callback.save_trace(tmp_path / "trace.csv")) as file:
        rows = list(csv.DictReader(file))
    assert {row["policy"] for row in rows} == {"default"}
    assert {row["policy_hash"] for row in rows} == {policy.fingerprint}
    assert {row["policy_version"] for row in rows} == {__version__}
    assert logger.experiment.hparams["dqnlr/policy_hash"] == policy.fingerprint
    assert callback.state_dict()["driver"]["policy"]["policy"] == "default"


def test_going_on_with_another_policy_is_refused_by_name_and_an_older_state_is_not(tmp_path):
    state = fit(tmp_path, DQNLRCallback(random_policy(1))).state_dict()
    other = DQNLRCallback(random_policy(2))
    other.load_state_dict(state)
    words = f"policy:.*{random_policy(1).fingerprint}.*{random_policy(2).fingerprint}.*Pass the"
    with pytest.raises(ConfigurationError, match=words):
        fit(tmp_path, other)
    del state["driver"]["policy"]
    other = DQNLRCallback(random_policy(2))
    other.load_state_dict(state)
    assert fit(tmp_path, other, max_steps=12).controller.step == 18


def test_the_scheduler_refuses_another_policy_too():
    loop, other = Loop(policy=random_policy(1)), Loop(policy=random_policy(2))
    loop.run(3)
    with pytest.raises(ConfigurationError, match="policy: the saved run"):
        other.scheduler.load_state_dict(loop.scheduler.state_dict())


@pytest.mark.parametrize("name", ["default", "classic", "q_table"])
def test_nothing_that_is_made_takes_from_the_users_seed(name):
    torch.manual_seed(5)
    expected = torch.rand(3)
    weight = nn.Parameter(torch.ones(2))
    for make in (
        lambda: LRPolicy.load(name),
        lambda: DQNLRCallback(name, epsilon=0.5),
        lambda: DQNLRScheduler(torch.optim.SGD([weight], lr=1.0), name, epsilon=0.5),
    ):
        torch.manual_seed(5)
        make()
        assert torch.equal(torch.rand(3), expected)


def test_the_arguments_of_a_callback_can_be_read():
    given = {"start": "auto", "horizon": 7, "min_lr": 1e-6, "max_lr": 1.0, "epsilon": 0.1}
    given |= {"circuit_breaker": False, "seed": 4}
    callback = DQNLRCallback(constant_policy(KEEP), **given)
    assert {name: getattr(callback, name) for name in given} == given
    with pytest.raises(AttributeError):
        callback.horizon = 8


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"min_lr": "1e-6"}, r"min_lr='1e-6' must be a number.*YAML reads 1e-6 as text"),
        ({"horizon": "100"}, "horizon='100' must be an integer"),
        ({"horizon": 100.0}, r"horizon=100\.0 must be an integer"),
        ({"horizon": True}, "horizon=True must be an integer"),
        ({"max_lr": float("inf")}, "max_lr=inf must be a number"),
        ({"max_lr": float("nan")}, "max_lr=nan must be a number"),
        ({"seed": "0"}, "seed='0' must be an integer"),
        ({"circuit_breaker": "yes"}, "circuit_breaker='yes' must be one of"),
    ],
)
def test_numbers_as_text_and_floats_as_counts_are_refused_with_the_reason(arguments, words):
    with pytest.raises(ConfigurationError, match=words):
        DQNLRCallback(constant_policy(KEEP), **arguments)


def test_numbers_of_numpy_are_numbers(tmp_path):
    numbers = {"horizon": np.int64(50), "min_lr": np.float32(1e-8), "seed": np.int32(3)}
    callback = fit(tmp_path, DQNLRCallback(constant_policy(KEEP), **numbers))
    torch.save(callback.state_dict(), tmp_path / "state.pt")
    saved = torch.load(tmp_path / "state.pt", weights_only=True)
    assert saved["driver"]["controller"]["horizon"] == 50


@pytest.mark.parametrize("rate", [float("nan"), float("inf"), -1.0])
def test_an_optimizer_whose_rates_are_not_finite_is_refused(rate):
    groups = [{"params": [torch.ones(1)], "lr": lr} for lr in (1.0, rate)]
    with pytest.raises(ConfigurationError, match="none may be negative, infinite or NaN"):
        DQNLRScheduler(torch.optim.SGD(groups, lr=1.0) if rate > 0 else unchecked(groups))


def unchecked(groups):
    """Torch itself refuses negative rates, when the optimizer is made."""
    optimizer = torch.optim.SGD([{**group, "lr": 1.0} for group in groups])
    for mine, given in zip(optimizer.param_groups, groups, strict=True):
        mine["lr"] = given["lr"]
    return optimizer


class OldNet(pytorch_lightning.LightningModule):
    def __init__(self):
        super().__init__()
        self.net = nn.Linear(6, 2)

    def training_step(self, batch, batch_idx):
        return nn.functional.cross_entropy(self.net(batch[0]), batch[1])

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters())


class Observed(pytorch_lightning.Callback):
    def __init__(self, look):
        self.look, self.seen = look, None

    def on_train_start(self, trainer, pl_module):
        self.seen = self.look(trainer, pl_module)


def old_fit(folder, *callbacks, **arguments):
    run = pytorch_lightning.Trainer(
        callbacks=list(callbacks),
        default_root_dir=folder,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        accelerator="cpu",
        **{"max_epochs": 2, **arguments},
    )
    run.fit(OldNet(), loader())
    return run


def test_under_the_older_name_of_lightning_the_checks_hold_too(tmp_path):
    old = pytorch_lightning.callbacks
    swa = old.StochasticWeightAveraging(swa_lrs=0.1)
    with pytest.raises(UnsupportedTrainingError, match="StochasticWeightAveraging"):
        old_fit(tmp_path, DQNLRCallback(constant_policy(KEEP)), swa)
    horizon = Observed(lambda trainer, _: horizon_of(trainer, 0))
    control = DQNLRCallback(constant_policy(KEEP))
    old_fit(tmp_path, control, old.GradientAccumulationScheduler({0: 1, 1: 2}), horizon)
    assert horizon.seen == control.controller.horizon == 12 + 6
    limit = Observed(lambda trainer, _: TimeLimit(trainer).looks(4))
    old_fit(tmp_path, DQNLRCallback(constant_policy(KEEP)), old.Timer("00:01:00:00"), limit)
    assert limit.seen
    average = averaging(pytorch_lightning, "WeightAveraging")()
    found = Observed(lambda trainer, _: averages(trainer))
    old_fit(tmp_path, DQNLRCallback(constant_policy(KEEP)), average, found)
    assert len(found.seen) == 1


def test_nothing_is_said_of_a_run_that_goes_well(tmp_path, caplog):
    with caplog.at_level(logging.INFO, "lightning_dqnlr"):
        fit(tmp_path, DQNLRCallback(constant_policy(KEEP)), max_steps=24)
    assert not [r for r in caplog.records if r.name == "lightning_dqnlr"]


@pytest.mark.parametrize("policy", [None, 3, {}, object()])
def test_what_is_no_policy_is_refused_before_training(policy):
    with pytest.raises(ConfigurationError, match=r"policy=.* must be a bundled policy's name"):
        DQNLRCallback(policy)


class LogsItsOwn(Net):
    def on_train_start(self):
        self.logger.log_hyperparams({"width": 5}, {"hp/val": 0.0})


def test_a_modules_own_entry_among_tensorboards_hyperparameters_stays_the_first(tmp_path):
    logger = TensorBoardLogger(tmp_path)
    run = trainer(DQNLRCallback(), tmp_path, max_steps=4, logger=logger)
    run.fit(LogsItsOwn(), loader())
    events = b"".join(path.read_bytes() for path in Path(logger.log_dir).glob("events*"))
    assert 0 < events.index(b"width") < events.index(b"dqnlr/policy_hash")
