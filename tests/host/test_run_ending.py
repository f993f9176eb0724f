"""The end of a run that EarlyStopping, or a validation that has turned, brings about."""

import logging

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback, EarlyStopping, ModelCheckpoint
from torch.utils.data import DataLoader, TensorDataset

from lightning_dqnlr import DQNLRCallback
from lightning_dqnlr.host.validation import LossWatch, ValidationWatch
from tests.host.control_runs import constant_policy

EPOCH = 6  # steps


class Scripted(LightningModule):
    """A line whose validation metric comes from a list; its last value stays."""

    def __init__(self, scores, optimizers=1):
        super().__init__()
        self.net = torch.nn.Linear(4, 1)
        self.scores = list(scores)
        self.checks = 0
        self.automatic_optimization = optimizers == 1

    def training_step(self, batch, batch_idx):
        inputs, targets = batch
        loss = (self.net(inputs) - targets).square().mean()
        if not self.automatic_optimization:
            for optimizer in self.optimizers():
                optimizer.zero_grad()
            self.manual_backward(loss)
            for optimizer in self.optimizers():
                optimizer.step()
        return loss

    def validation_step(self, batch, batch_idx):
        score = self.scores[min(self.checks, len(self.scores) - 1)]
        self.log("score", torch.tensor(float(score)))

    def on_validation_epoch_end(self):
        self.checks += not self.trainer.sanity_checking

    def configure_optimizers(self):
        if self.automatic_optimization:
            return torch.optim.Adam(self.parameters())
        return [torch.optim.Adam([self.net.weight]), torch.optim.Adam([self.net.bias])]


class Watcher(Callback):
    """Notes the learning rates used, and the weights after every validation."""

    def __init__(self):
        self.rates = []
        self.weights = []

    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        self.rates.append(trainer.optimizers[0].param_groups[0]["lr"])

    def on_validation_end(self, trainer, module):
        if not trainer.sanity_checking:
            self.weights.append(module.net.weight.detach().clone())


def loader(seed=0):
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(8 * EPOCH, 4, generator=generator)
    return DataLoader(TensorDataset(inputs, inputs.sum(1, keepdim=True)), 8)


def fit(scores, *callbacks, folder=None, ckpt_path=None, optimizers=1, kind=Scripted, **options):
    torch.manual_seed(0)
    module = kind(scores, optimizers)
    options = {"max_epochs": 60, **options}
    trainer = Trainer(
        callbacks=list(callbacks),
        logger=False,
        enable_checkpointing=folder is not None,
        enable_progress_bar=False,
        enable_model_summary=False,
        accelerator="cpu",
        num_sanity_val_steps=1,
        **options,
    )
    trainer.fit(module, loader(), loader(1), ckpt_path=ckpt_path)
    return trainer


# Best at the fourth check, so that a patience of 3 is at its end after seven epochs.
TURNS = [9, 8, 7, 5, 6, 6, 6, 6]


def keeping(**options):
    """A callback that keeps the rate of the start, but for the decay."""
    return DQNLRCallback(constant_policy(action=3), **options)


def stopping(**options):
    return EarlyStopping("score", **{"patience": 3, **options})


@pytest.mark.parametrize("ours_first", [True, False])
@pytest.mark.parametrize("per_epoch", [True, False])
def test_the_rate_falls_to_zero_before_early_stopping_stops(ours_first, per_epoch):
    watcher, stop = Watcher(), stopping(check_on_train_epoch_end=per_epoch)
    both = [keeping(), stop]
    trainer = fit(TURNS, *(both if ours_first else both[::-1]), watcher)
    # 42 steps, and a quarter of them to come down in, in whole epochs.
    assert trainer.global_step == 42 + 12
    assert watcher.rates[-1] < 0.2 * watcher.rates[42]
    assert watcher.rates[42:] == sorted(watcher.rates[42:], reverse=True)
    assert stop.stopped_epoch == 8
    assert stop.patience == 3


def test_the_decay_begins_from_the_best_weights_and_ends_with_them():
    watcher = Watcher()
    trainer = fit(TURNS, DQNLRCallback(), stopping(), watcher)
    best, last = watcher.weights[3], watcher.weights[-1]
    assert torch.equal(trainer.lightning_module.net.weight, best)
    assert not torch.equal(best, last)
    # The first step of the decay is made at the rate of then, from the weights of then.
    assert watcher.rates[42] <= watcher.rates[24]
    moved_away = (watcher.weights[6] - best).norm()
    assert (watcher.weights[7] - best).norm() < moved_away


def test_better_weights_found_on_the_way_down_are_the_last_ones():
    watcher = Watcher()
    trainer = fit([*TURNS[:7], 3, 3.5], DQNLRCallback(), stopping(), watcher)
    assert len(watcher.weights) == 9
    assert torch.equal(trainer.lightning_module.net.weight, watcher.weights[7])


def test_a_user_may_have_early_stopping_stop_at_once():
    trainer = fit(TURNS, DQNLRCallback(on_early_stop="stop"), stopping())
    assert trainer.global_step == 42


def test_the_decay_never_goes_beyond_max_epochs():
    watcher = Watcher()
    trainer = fit(TURNS, keeping(), stopping(), watcher, max_epochs=9)
    assert trainer.global_step == 54
    assert watcher.rates[-1] < 0.2 * watcher.rates[30]


def test_a_decay_that_has_begun_by_itself_is_not_interrupted():
    # Patience ends after epoch 8 of 10; the built-in decay began at seven tenths.
    watcher = Watcher()
    scores = [9, 8, 7, 6, 5, 6, 6, 6, 6]
    trainer = fit(scores, keeping(), stopping(), watcher, max_epochs=10)
    assert trainer.global_step == 60
    assert watcher.rates[40:] == sorted(watcher.rates[40:], reverse=True)


def test_thresholds_and_metrics_that_are_not_finite_still_stop_at_once():
    assert fit([3, 2, 1], DQNLRCallback(), stopping(stopping_threshold=1.5)).global_step == 18
    assert fit([3, float("nan")], DQNLRCallback(), stopping()).global_step == 12


def test_min_epochs_puts_the_end_off():
    trainer = fit(TURNS, DQNLRCallback(), stopping(), min_epochs=12)
    assert trainer.global_step == 72 + 18  # a quarter


def test_validations_within_an_epoch_end_the_run_with_an_epoch():
    # The seventh check is in the middle of the fourth epoch; a quarter of 21 steps is 6.
    assert fit(TURNS, keeping(), stopping(), val_check_interval=0.5).global_step == 30


def test_nothing_is_said_of_a_decay_when_max_epochs_ends_the_run_first(caplog):
    watcher = Watcher()
    with caplog.at_level(logging.WARNING, "lightning_dqnlr"):
        trainer = fit(TURNS, keeping(), stopping(), watcher, max_epochs=7)
    assert not any("falls to zero" in r.getMessage() for r in caplog.records)
    assert torch.equal(trainer.lightning_module.net.weight, watcher.weights[-1])


def test_early_stopping_on_a_training_metric_comes_down_too():
    class Training(Scripted):
        def on_train_epoch_end(self):
            self.log("train_score", float(TURNS[min(self.trainer.current_epoch, 7)]))

    torch.manual_seed(0)
    trainer = Trainer(
        callbacks=[DQNLRCallback(), EarlyStopping("train_score", patience=3)],
        max_epochs=60,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        limit_val_batches=0,
    )
    trainer.fit(Training(TURNS), loader())
    assert trainer.global_step == 54


def test_every_optimizer_of_a_manual_loop_comes_down():
    callback = DQNLRCallback()
    trainer = fit(TURNS, callback, stopping(), optimizers=2)
    # Each of both has made 42 steps by then; whole epochs are not waited for in such a loop.
    assert trainer.global_step == 2 * (42 + 11)
    for controller in callback.controllers:
        assert controller.falling
        assert controller.horizon == 52


def test_checkpoints_keep_the_users_patience_and_a_resumed_run_ends_at_the_same_step(tmp_path):
    def saver():
        return ModelCheckpoint(tmp_path, every_n_epochs=1, save_top_k=-1, filename="{epoch}")

    whole = Watcher()
    fit(TURNS, DQNLRCallback(), stopping(), saver(), whole, folder=tmp_path)
    for epoch in (5, 7):  # before the decay, and in it
        saved = tmp_path / f"epoch={epoch}.ckpt"
        state = torch.load(saved, weights_only=True)["callbacks"]
        (patience,) = (v["patience"] for k, v in state.items() if k.startswith("EarlyStopping"))
        assert patience == 3
        rest = Watcher()
        scores = TURNS[epoch + 1 :] or [6]
        trainer = fit(scores, DQNLRCallback(), stopping(), rest, ckpt_path=saved)
        assert trainer.global_step == 54
        if epoch == 7:
            assert rest.rates == whole.rates[-len(rest.rates) :]


def test_a_validation_that_turns_begins_the_decay_and_training_goes_on(caplog):
    # No new best for five checks, plainly worse, while the training loss falls.
    scores = [9, 8, 7, 5, 6, 6.1, 6, 6.1, 6, 6.1]
    watcher = Watcher()
    with caplog.at_level(logging.WARNING, "lightning_dqnlr"):
        trainer = fit(scores, keeping(validate="score"), watcher, max_epochs=30)
    assert trainer.global_step == 180
    (line,) = (r.getMessage() for r in caplog.records if "falls to zero" in r.getMessage())
    assert "step 54" in line
    assert "stops" not in line
    assert watcher.rates[71] < 0.2 * watcher.rates[54]


TURNED = [9, 8, 7, 5, 6, 6.1, 6, 6.1, 6, 6.1]


def test_a_run_that_goes_on_comes_down_again_from_its_best_weights_while_there_is_room(caplog):
    watcher, callback = Watcher(), keeping(validate="score")
    with caplog.at_level(logging.WARNING, "lightning_dqnlr"):
        trainer = fit(TURNED, callback, watcher, max_epochs=30)
    # It turns at step 54. Each decay takes a quarter of the steps so far, in whole epochs.
    begins, ends = (54, 72, 90, 114, 144), (72, 90, 114, 144, 180)
    for begin, end in zip(begins, ends, strict=True):
        rates = watcher.rates[begin:end]
        assert rates == sorted(rates, reverse=True)
        assert rates[0] > 0.8 * watcher.rates[54]
        assert rates[-1] < 0.2 * watcher.rates[54]
    weights, best = trainer.lightning_module.net.weight, watcher.weights[3]
    assert torch.equal(weights, best)
    told = [news["words"] for news in callback._facts.news]
    again = [words for words in told if "falls to zero again" in words]
    assert [words.split(",")[0] for words in again] == [
        f"the learning rate falls to zero again over {end - begin} steps"
        for begin, end in list(zip(begins, ends, strict=True))[1:]
    ]
    assert not any("past its horizon" in r.getMessage() for r in caplog.records)


def test_a_run_without_room_for_another_decay_stays_at_its_best_weights():
    watcher = Watcher()
    fit(TURNED, DQNLRCallback(validate="score"), watcher, max_epochs=14)  # 84 steps: 12 are left
    assert max(watcher.rates[72:]) < 1e-3 * max(watcher.rates)
    assert (watcher.weights[-1] - watcher.weights[3]).norm() < 1e-2 * watcher.weights[3].norm()


def test_a_run_resumed_in_a_later_decay_ends_as_the_whole_one(tmp_path):
    saver = ModelCheckpoint(tmp_path, every_n_epochs=1, save_top_k=-1, filename="{epoch}")
    whole = Watcher()
    fit(TURNED, keeping(validate="score"), saver, whole, folder=tmp_path, max_epochs=30)
    rest = Watcher()
    saved = tmp_path / "epoch=12.ckpt"  # step 78, in the second decay
    fit([6], keeping(validate="score"), rest, ckpt_path=saved, max_epochs=30)
    assert rest.rates == whole.rates[-len(rest.rates) :]


def test_a_resumed_run_does_not_take_its_first_weights_for_the_best(tmp_path):
    scores = [9, 8, 7, 5, 6, 6.1, 6, 6.1, 6, 6.1]
    saver = ModelCheckpoint(tmp_path, every_n_epochs=1, save_top_k=-1, filename="{epoch}")
    fit(scores, DQNLRCallback(validate="score"), saver, folder=tmp_path, max_epochs=30)
    watcher, callback = Watcher(), DQNLRCallback(validate="score")
    saved = tmp_path / "epoch=5.ckpt"
    trainer = fit(scores[6:], callback, watcher, ckpt_path=saved, max_epochs=30)
    assert any("decay begins" in record["reason"] for record in callback.trace)
    first, second = watcher.weights[:2]
    moved = (trainer.lightning_module.net.weight - first).norm()
    assert moved > 0.5 * (second - first).norm()


def test_a_validation_that_only_stands_still_does_not_begin_the_decay():
    callback = DQNLRCallback(validate="score")
    fit(2 * [5, 5.1, 4.9, 5.1, 5, 5.1, 4.95, 5.1, 5, 5.1], callback, max_epochs=20)
    assert all("decay begins" not in record["reason"] for record in callback.trace)


def test_a_metric_to_be_maximised_is_not_taken_for_a_turn():
    callback = DQNLRCallback(validate="score", validate_mode="max")
    fit(range(1, 30), callback, max_epochs=20)
    assert all("decay begins" not in record["reason"] for record in callback.trace)


def test_a_built_in_decay_that_has_begun_is_followed_to_its_end():
    # Patience ends at step 48 of 66, in the built-in decay. A quarter of 48 steps is 12.
    watcher = Watcher()
    scores = [9, 8, 7, 6, 5, 6, 6, 6, 6]
    trainer = fit(scores, keeping(), stopping(), watcher, max_epochs=11)
    assert trainer.global_step == 66
    assert watcher.rates[-1] < 0.1 * watcher.rates[40]


SCATTERS = [9, 5, 4, 7, 4.5, 6.5, 4.2, 6, 4.1, 5.5, 4.3]


def test_a_named_metric_that_never_turned_still_ends_the_run_with_its_best_weights():
    watcher, callback = Watcher(), DQNLRCallback(validate="score")
    trainer = fit(SCATTERS, callback, watcher, max_epochs=len(SCATTERS))
    assert not any("decay begins early" in record["reason"] for record in callback.trace)
    assert torch.equal(trainer.lightning_module.net.weight, watcher.weights[2])
    assert not torch.equal(watcher.weights[2], watcher.weights[-1])


def test_a_best_last_validation_leaves_the_last_weights():
    watcher = Watcher()
    scores = [*SCATTERS, 3]
    trainer = fit(scores, DQNLRCallback(validate="score"), watcher, max_epochs=len(scores))
    assert torch.equal(trainer.lightning_module.net.weight, watcher.weights[-1])


def test_a_metric_that_nobody_named_leaves_the_last_weights(tmp_path):
    watcher, saver = Watcher(), ModelCheckpoint(tmp_path, monitor="score")
    options = {"folder": tmp_path, "max_epochs": len(SCATTERS)}
    trainer = fit(SCATTERS, DQNLRCallback(), saver, watcher, **options)
    assert torch.equal(trainer.lightning_module.net.weight, watcher.weights[-1])


def test_what_model_checkpoint_monitors_counts_unasked(tmp_path):
    callback = DQNLRCallback()
    saver = ModelCheckpoint(tmp_path, monitor="score")
    fit([9, 8, 7, 5, *[6] * 9], callback, saver, folder=tmp_path, max_epochs=30)
    assert any("decay begins" in record["reason"] for record in callback.trace)


class StopAfter(Callback):
    def __init__(self, steps):
        self.steps = steps

    def on_train_batch_end(self, trainer, *_):
        trainer.should_stop = trainer.global_step >= self.steps


def test_a_run_without_an_end_comes_down_once_its_loss_stands_still(caplog):
    # The keeping policy leaves the safe start's rate, which changes the loss by next to nothing.
    watcher = Watcher()
    with caplog.at_level(logging.WARNING, "lightning_dqnlr"):
        fit([1], keeping(), watcher, StopAfter(700), max_epochs=-1)
    said = [r.getMessage() for r in caplog.records if r.name == "lightning_dqnlr"]
    assert "nothing says how long the run is" in said[0]
    (line,) = (words for words in said if "the training loss has stopped falling" in words[:80])
    begun = int(line.split()[1].rstrip(":"))
    assert 200 <= begun < 400
    assert watcher.rates[begun + 1] > 0.9 * watcher.rates[1]
    assert watcher.rates[650] < 0.2 * watcher.rates[1]


def test_a_loss_that_falls_slowly_is_progress():
    watch = LossWatch()
    steps = [round(10 * 1.125**k) for k in range(60)]
    assert not any(watch.ended(5 - 0.02 * k, step) for k, step in enumerate(steps))


class Poisoned(Scripted):
    """Its loss is NaN in the second step of the decay."""

    def training_step(self, batch, batch_idx):
        loss = super().training_step(batch, batch_idx)
        return loss * float("nan") if self.global_step == 43 else loss


def test_the_breaker_does_not_go_back_behind_the_best_weights():
    class AtStart(Watcher):
        def on_train_batch_start(self, trainer, module, batch, batch_idx):
            if trainer.global_step == 44:
                self.restored = module.net.weight.detach().clone()

    watcher = AtStart()
    fit(TURNS, DQNLRCallback(), stopping(), watcher, kind=Poisoned)
    assert torch.equal(watcher.restored, watcher.weights[3])


def test_the_picture_shows_where_the_decay_began(tmp_path):
    callback = DQNLRCallback()
    fit(TURNS, callback, stopping())
    assert "the decay begins early" in callback.plot(tmp_path / "run.svg").read_text()


def test_metrics_in_double_precision_may_be_of_any_size():
    watch = ValidationWatch("val_loss", "min")
    for value in (1.0, 1e200, -1e-200, 1e300, 1e200):
        metric = torch.tensor(value, dtype=torch.float64)
        watch.add({"val_loss": metric}, torch.tensor(1.0))
    assert not watch.turned
