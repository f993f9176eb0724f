"""Runs that last longer or shorter than their horizon said."""

from types import SimpleNamespace

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.plugins.precision import MixedPrecision
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from lightning_dqnlr import DQNLRCallback

from .control_runs import SAFELY, Loop, Net, constant_policy, examples, loader, trainer

KEEP = 3


def fit(folder, callback, module=None, data=None, **arguments):
    run = trainer(callback, folder, **arguments)
    run.fit(module or Net(), data if data is not None else loader())
    return run


def said(caplog, words):
    return sum(words in r.getMessage() for r in caplog.records if r.name == "lightning_dqnlr")


class MoreEpochs(pl.Callback):
    def on_train_epoch_end(self, trainer, pl_module):
        if trainer.current_epoch == 1:
            trainer.fit_loop.max_epochs = 6


def test_epochs_that_are_added_are_followed_and_said_once(tmp_path, caplog):
    callback = DQNLRCallback(constant_policy(KEEP))
    module = Net()
    fit(tmp_path, callback, module, max_epochs=3, more_callbacks=[MoreEpochs()])
    assert callback.controller.horizon == callback.controller.step == 72
    assert said(caplog, "was 36 steps and is 72 steps now") == 1
    assert said(caplog, "past its horizon") == 0


class Grows(Net):
    def train_dataloader(self):
        inputs, labels = examples(96 + 48 * self.current_epoch)
        return DataLoader(TensorDataset(inputs, labels), 8)


def test_data_that_grow_are_followed(tmp_path):
    """Epochs of 12, 18, 24 and 30 batches."""
    module, callback = Grows(), DQNLRCallback(constant_policy(KEEP))
    run = trainer(callback, tmp_path, max_epochs=4, reload_dataloaders_every_n_epochs=1)
    run.fit(module)
    assert callback.controller.horizon == callback.controller.step == run.global_step == 84


@pytest.mark.parametrize(
    ("size", "epochs", "steps"),
    [(4, 4, 24 + 48), (16, 4, 24 + 12), (16, 3, 24 + 6)],
    ids=["smaller batches", "the same product", "fewer steps than made"],
)
def test_a_resumed_run_with_other_batches_counts_the_epochs_that_are_left(
    tmp_path, size, epochs, steps
):
    """Two epochs of 12 batches, then others; epochs times batches may even be what they were."""
    saver = pl.callbacks.ModelCheckpoint(tmp_path / "saved", save_last=True)
    first = DQNLRCallback(constant_policy(KEEP))
    fit(tmp_path, first, max_epochs=2, more_callbacks=[saver], enable_checkpointing=True)
    assert first.controller.horizon == 24
    callback = DQNLRCallback(constant_policy(KEEP))
    inputs, labels = examples(96)
    others = DataLoader(TensorDataset(inputs, labels), size)
    run = trainer(callback, tmp_path, max_epochs=epochs)
    run.fit(Net(), others, ckpt_path=tmp_path / "saved" / "last.ckpt", **SAFELY)
    assert callback.controller.horizon == callback.controller.step == run.global_step == steps


def test_a_given_horizon_that_is_too_short_is_said_once(tmp_path, caplog):
    fit(tmp_path, DQNLRCallback(constant_policy(KEEP), horizon=20), max_epochs=4)
    assert said(caplog, "goes on past its horizon of 20 steps") == 1
    caplog.clear()
    Loop(policy=constant_policy(KEEP), horizon=20).run(60)
    assert said(caplog, "goes on past its horizon of 20 steps") == 1
    caplog.clear()
    Loop(policy=constant_policy(KEEP), horizon=20).run(20)
    assert said(caplog, "past its horizon") == 0


class NoLoss(Net):
    def training_step(self, batch, batch_idx):
        return None if batch_idx % 4 == 1 else super().training_step(batch, batch_idx)


def mixed():
    """Half precision with a gradient scaler, which skips steps; Lightning has it for GPUs only."""
    return MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu", init_scale=1024.0))


@pytest.mark.parametrize("plugins", [None, mixed()])
@pytest.mark.filterwarnings("ignore:.*training_step.*returned.*None.*")
def test_the_horizon_does_not_count_steps_without_a_loss(tmp_path, caplog, plugins):
    callback = DQNLRCallback(constant_policy(KEEP))
    module = NoLoss()
    run = fit(tmp_path, callback, module, max_epochs=20, plugins=plugins)
    assert run.global_step == 240
    horizon, step = callback.controller.horizon, callback.trace[-1]["step"]
    assert abs(horizon - 180) <= 1
    assert step >= 179
    # With all four quarters counted the decay would have stopped half-way.
    assert callback.trace[-1]["lr"] < 0.1 * max(record["lr"] for record in callback.trace)
    assert said(caplog, "training_step returned None") == 1


@pytest.mark.filterwarnings("ignore:.*training_step.*returned.*None.*")
def test_the_share_of_steps_without_a_loss_survives_a_resume(tmp_path, caplog):
    whole, resumed = (DQNLRCallback(constant_policy(KEEP)) for _ in range(2))
    kept = pl.callbacks.ModelCheckpoint(tmp_path, filename="{epoch}", save_top_k=-1)
    other, expected = NoLoss(), NoLoss()
    arguments = {"max_epochs": 8, "enable_checkpointing": True, "more_callbacks": [kept]}
    fit(tmp_path, whole, expected, **arguments)
    caplog.clear()
    run = trainer(resumed, tmp_path, **{**arguments, "more_callbacks": []})
    run.fit(other, loader(), ckpt_path=tmp_path / "epoch=3.ckpt", **SAFELY)
    assert str(resumed.trace) == str(whole.trace)
    assert said(caplog, "horizon was") == 0


class StopAfter(pl.Callback):
    def __init__(self, steps):
        self.steps = steps

    def on_train_batch_end(self, trainer, *_):
        trainer.should_stop = trainer.global_step >= self.steps


class Endless(IterableDataset):
    """96 examples of which nobody knows the number."""

    def __iter__(self):
        return iter(zip(*examples(96), strict=True))


def test_a_loader_without_a_length_has_that_of_its_first_epoch(tmp_path, caplog):
    callback = DQNLRCallback(constant_policy(KEEP))
    fit(tmp_path, callback, data=DataLoader(Endless(), 8), max_epochs=5)
    assert callback.controller.horizon == callback.controller.step == 60
    assert said(caplog, "was unknown and is 60 steps now") == 1


def test_a_loader_without_a_length_and_without_an_end_stays_unknown(tmp_path):
    callback = DQNLRCallback(constant_policy(KEEP))
    fit(
        tmp_path,
        callback,
        data=DataLoader(Endless(), 8),
        max_epochs=-1,
        more_callbacks=[StopAfter(30)],
    )
    assert callback.controller.horizon is None


def test_a_time_limit_is_the_end_of_the_run(tmp_path, monkeypatch):
    """Each step takes a second, and validation none: a limit of 100 seconds is one of 100 steps."""
    module, callback = Net(), DQNLRCallback(constant_policy(KEEP))
    run = trainer(callback, tmp_path, max_epochs=1000, max_time={"seconds": 100})
    clock = SimpleNamespace(monotonic=lambda: float(run.global_step))
    monkeypatch.setattr(pl.callbacks.timer, "time", clock)
    run.fit(module, loader())
    assert run.global_step == 100
    assert callback.controller.horizon == pytest.approx(100, abs=2)
    rates = [rate for (rate,) in module.rates]
    assert rates[-1] < 0.15 * rates[60]


def test_both_optimizers_of_a_manual_loop_know_the_time_limit(tmp_path, monkeypatch):
    class Both(Net):
        def __init__(self):
            super().__init__()
            self.automatic_optimization = False

        def training_step(self, batch, batch_idx):
            inputs, labels = batch
            loss = torch.nn.functional.cross_entropy(self.net(inputs), labels)
            for optimizer in self.optimizers():
                optimizer.zero_grad()
            self.manual_backward(loss)
            for optimizer in self.optimizers():
                optimizer.step()

        def configure_optimizers(self):
            first, *rest = self.parameters()
            return [torch.optim.Adam([first]), torch.optim.Adam(rest)]

    callback = DQNLRCallback(constant_policy(KEEP))
    run = trainer(callback, tmp_path, max_epochs=1000, max_time={"seconds": 100})
    clock = SimpleNamespace(monotonic=lambda: run.global_step / 2)
    monkeypatch.setattr(pl.callbacks.timer, "time", clock)
    run.fit(Both(), loader())
    assert [c.horizon for c in callback.controllers] == pytest.approx([100, 100], abs=2)
