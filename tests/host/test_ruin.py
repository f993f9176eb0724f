"""Nothing outside of the training loop ever sees weights that are not finite.

The gradient of one step has a NaN, for a row of a table that no batch reads. No training loss shows
it, and the probe does not look at it.
"""

import math
import signal
from inspect import signature

import pytest
import torch
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from torch import nn

from lightning_dqnlr import DQNLRCallback
from lightning_dqnlr.control.probe import Probe

from .control_runs import Net, constant_policy, loader, trainer

KEEP, RUINED = 3, 9  # an action, and the step whose update makes the NaN
LAST = 11  # of an epoch; an interval ends with step 8 and with step 12
ROWS, ROW, COLUMN = 3000, 2998, 5


class Ruined(Net):
    """A classifier with a table whose first row it reads."""

    def __init__(self, ruined=(RUINED,), raises=None, **arguments):
        super().__init__(**arguments)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(3)
            self.table = nn.Embedding(ROWS, 6)
        self.ruined, self.raises, self.seen = ruined, raises, []

    def training_step(self, batch, batch_idx):
        inputs, labels = batch
        if self.raises is not None and self.global_step == max(self.ruined):
            assert not finite(self)
            raise self.raises
        zeros = torch.zeros(len(inputs), dtype=torch.long)
        loss = nn.functional.cross_entropy(self.net(inputs + self.table(zeros)), labels)
        self.losses.append(loss.item())
        return loss

    def on_after_backward(self):
        if self.global_step + 1 in self.ruined:
            self.table.weight.grad[ROW, COLUMN] = math.nan


class Validated(Ruined):
    """The same with a metric that all weights go into."""

    def validation_step(self, batch, batch_idx):
        self.seen.append(self.table.weight.sum().item())


class Onlooker(Callback):
    """Notes whether the weights are finite at a moment."""

    def __init__(self, moment):
        self.seen = []
        setattr(self, moment, lambda _, module: self.seen.append(finite(module)))


def finite(module):
    return all(bool(t.isfinite().all()) for t in module.state_dict().values())


def fit(tmp_path, module=None, validation=False, **arguments):
    callback = DQNLRCallback(constant_policy(KEEP), horizon=30_000)
    module = module or Ruined()
    arguments = {
        "max_epochs": 1,
        "limit_train_batches": LAST,
        "num_sanity_val_steps": 0,
        **arguments,
    }
    run = trainer(callback, tmp_path, **arguments)
    run.fit(module, loader(), loader() if validation else None)
    return callback, module


def test_neither_the_losses_nor_the_probe_show_the_ruin_of_these_tests(tmp_path):
    module = Ruined()
    breaker_off = DQNLRCallback(constant_policy(KEEP), circuit_breaker=False)
    trainer(breaker_off, tmp_path, max_epochs=1).fit(module, loader())
    assert all(math.isfinite(loss) for loss in module.losses)
    assert not finite(module)
    parameters = list(module.parameters())
    probe = Probe([p.shape for p in parameters], breaker_off.policy.spec.probe_size)
    assert probe.read_parameters(parameters).isfinite().all()


@pytest.mark.parametrize("moment", ["on_validation_start", "on_train_epoch_end", "on_train_end"])
@pytest.mark.parametrize("first", [True, False])
def test_other_callbacks_see_finite_weights_when_the_last_update_has_ruined_them(
    tmp_path, moment, first
):
    """Decoy: a callback that stands before ours in the list."""
    onlooker = Onlooker(moment)
    module = Validated(ruined=(LAST,))
    control = DQNLRCallback(constant_policy(KEEP), horizon=30_000)
    callbacks = [onlooker, control] if first else [control, onlooker]
    limits = {"max_epochs": 1, "limit_train_batches": LAST, "num_sanity_val_steps": 0}
    run = trainer(callbacks[0], tmp_path, more_callbacks=callbacks[1:], **limits)
    run.fit(module, loader(), loader())
    assert onlooker.seen == [True]
    assert finite(module)


def test_validation_sees_finite_weights_right_after_the_update_that_ruined_them(tmp_path):
    _, module = fit(tmp_path, Validated(), True, val_check_interval=RUINED)
    assert module.seen
    assert all(math.isfinite(value) for value in module.seen)


@pytest.mark.parametrize("only_weights", [True, False])
def test_a_checkpoint_within_an_epoch_is_finite_right_after_the_update_that_ruined_it(
    tmp_path, only_weights
):
    saver = ModelCheckpoint(
        tmp_path, every_n_train_steps=RUINED, save_top_k=-1, save_weights_only=only_weights
    )
    fit(tmp_path, enable_checkpointing=True, more_callbacks=[saver])
    paths = list(tmp_path.glob("*.ckpt"))
    assert len(paths) == 1
    check_saved(paths[0])


@pytest.mark.parametrize("only_weights", [True, False])
def test_the_last_checkpoint_is_finite_when_the_last_update_has_ruined_the_weights(
    tmp_path, only_weights
):
    saver = ModelCheckpoint(tmp_path, save_last=True, save_weights_only=only_weights)
    module = Ruined(ruined=(LAST,))
    fit(tmp_path, module, enable_checkpointing=True, more_callbacks=[saver])
    check_saved(tmp_path / "last.ckpt")


def check_saved(path):
    saved = torch.load(path, weights_only=True)
    assert all(bool(t.isfinite().all()) for t in saved["state_dict"].values())
    for state in saved.get("optimizer_states", []):
        for values in state["state"].values():
            assert all(bool(t.isfinite().all()) for t in values.values())


@pytest.fixture
def ctrl_c():
    """Lightning switches it off upon the first one."""
    handler = signal.getsignal(signal.SIGINT)
    yield
    signal.signal(signal.SIGINT, handler)


@pytest.mark.usefixtures("ctrl_c")
@pytest.mark.parametrize("error", [KeyboardInterrupt(), ValueError("mine")])
def test_an_exception_leaves_finite_weights(tmp_path, error):
    module = Ruined(raises=error)
    with pytest.raises((SystemExit, ValueError)):  # Lightning exits upon Ctrl+C
        fit(tmp_path, module)
    assert finite(module)


@pytest.mark.skipif(
    "save_on_exception" not in signature(ModelCheckpoint.__init__).parameters,
    reason="this Lightning's ModelCheckpoint does not",
)
def test_save_on_exception_saves_finite_weights(tmp_path):
    """Decoy: Lightning asks the checkpoint callback last, after ours."""
    saver = ModelCheckpoint(tmp_path, save_on_exception=True)
    with pytest.raises(ValueError, match="mine"):
        fit(
            tmp_path,
            Ruined(raises=ValueError("mine")),
            enable_checkpointing=True,
            more_callbacks=[saver],
        )
    paths = list(tmp_path.glob("*.ckpt"))
    assert paths
    for path in paths:
        check_saved(path)


def test_a_ruin_that_nobody_looks_at_is_undone_at_the_next_look_and_counts_as_one_trip(tmp_path):
    callback, module = fit(tmp_path, Ruined(ruined=(5,)), max_epochs=3)
    assert [record["tripped"] for record in callback.trace].count(True) == 1
    assert finite(module)


class OneRankPoisoned(Net):
    """Rank 1 alone gets batches whose loss is NaN; DDP gives both a gradient of NaN."""

    def __init__(self, folder, poisoned):
        super().__init__()
        self.folder, self.poisoned = folder, poisoned

    def training_step(self, batch, batch_idx):
        loss = super().training_step(batch, batch_idx)
        bad = self.global_rank == 1 and self.global_step + 1 in self.poisoned
        return loss * math.nan if bad else loss

    def on_train_end(self):
        control = self.trainer.callbacks[0]
        parameters = {name: p.detach().clone() for name, p in self.named_parameters()}
        tripped = [record["step"] for record in control.trace if record["tripped"]]
        kept = {"weights": parameters, "tripped": tripped, "lr": float(control.controller.lr)}
        torch.save(kept, self.folder / f"{self.global_rank}.pt")


def test_a_bad_batch_of_one_rank_is_undone_on_both_at_the_same_step(tmp_path):
    """Within an interval of many steps, where each rank's own losses could decide otherwise."""
    callback = DQNLRCallback(constant_policy(KEEP), horizon=30_000)
    module = OneRankPoisoned(tmp_path, poisoned=(17,))
    arguments = {"strategy": "ddp_spawn", "devices": 2, "max_steps": 21}
    trainer(callback, tmp_path, **arguments).fit(module, loader())
    one, other = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in (0, 1))
    assert one["tripped"] == other["tripped"]
    assert len(one["tripped"]) == 1
    assert 17 <= one["tripped"][0] <= 20
    assert one["lr"] == other["lr"]
    for name, weights in one["weights"].items():
        assert weights.isfinite().all()
        assert torch.equal(weights, other["weights"][name])
