"""Runs that remember: the second one holds a rate, and every run is written down once."""

import logging
import math

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from markupsafe import escape
from torch import nn

from lightning_dqnlr import DQNLRCallback
from lightning_dqnlr.cli.memory import models_of
from lightning_dqnlr.errors import ConfigurationError
from lightning_dqnlr.memory import Memory

from .control_runs import Loop, Net, constant_policy, loader, random_policy, trainer

KEEP = 3
FOLDER = "memory"


class Validated(Net):
    """The same with a validation metric."""

    def validation_step(self, batch, batch_idx):
        self.log("val_loss", nn.functional.cross_entropy(self.net(batch[0]), batch[1]))


def fit(tmp_path, module=None, policy=None, memory=None, **arguments):
    callback = DQNLRCallback(
        policy or constant_policy(KEEP), memory=memory or Memory(tmp_path / FOLDER)
    )
    module = module or Net()
    checkpoint = {k: arguments.pop(k) for k in ("ckpt_path", "weights_only") if k in arguments}
    run = trainer(callback, tmp_path, **{"max_epochs": 10, **arguments})
    validation = loader() if isinstance(module, Validated) else None
    run.fit(module, loader(), validation, **checkpoint)
    return callback, module


def remembered(tmp_path):
    return list(Memory(tmp_path / FOLDER).runs().values())


def test_the_first_run_is_the_policys_and_the_second_holds_another_rate(tmp_path):
    plain = DQNLRCallback(constant_policy(KEEP))
    unremembered = Net()
    trainer(plain, tmp_path, max_epochs=10).fit(unremembered, loader())
    _, first = fit(tmp_path)
    assert first.rates == unremembered.rates
    second, module = fit(tmp_path)
    one, two = remembered(tmp_path)
    assert one.held is None
    assert two.held == pytest.approx(two.upper_quartile, rel=1e-5)
    assert two.held != pytest.approx(one.upper_quartile, rel=0.1)
    middle = len(module.rates) // 2
    assert module.rates[middle][0] == pytest.approx(two.held, rel=1e-5)
    assert f"memory: holds {two.held:.3g}" in second.trace[-5]["reason"]
    assert module.rates[:8] == first.rates[:8]  # the start is the policy's
    assert module.rates[-1][0] < 0.2 * two.held  # and the decay is what it was


def test_the_policys_cuts_are_left_out_and_the_breakers_are_not(tmp_path):
    fit(tmp_path)
    _, module = fit(tmp_path, policy=constant_policy(0))
    held = remembered(tmp_path)[-1].held
    assert module.rates[len(module.rates) // 2][0] == pytest.approx(held, rel=1e-5)
    fit(tmp_path, Poisoned())
    poisoned, _ = fit(tmp_path, Poisoned(range(60, 64)))
    held = remembered(tmp_path)[-1].held
    trips = [i for i, record in enumerate(poisoned.trace) if record["tripped"]]
    assert trips
    assert poisoned.trace[trips[0]]["next_lr"] < 0.6 * held


def test_validation_is_what_counts_where_there_is_one(tmp_path):
    saver = ModelCheckpoint(tmp_path, monitor="val_loss")
    fit(tmp_path, Validated(), more_callbacks=[saver], enable_checkpointing=True)
    (run,) = remembered(tmp_path)
    assert run.metric == "val_loss"
    assert run.value == pytest.approx(float(saver.best_model_score), rel=1e-6)


def test_the_training_loss_comes_with_its_noise(tmp_path):
    callback, _ = fit(tmp_path, policy=random_policy())
    (run,) = remembered(tmp_path)
    last = [r["loss"] for r in callback.trace][-math.ceil(0.1 * len(callback.trace)) :]
    assert run.metric == "training loss"
    assert run.value == pytest.approx(sum(last) / len(last))
    assert run.error == pytest.approx(torch.tensor(last).std().item() / len(last) ** 0.5, rel=1e-3)
    assert (run.steps, run.ended, run.model.batch_size) == (120, "completed", 8)
    assert run.peak == pytest.approx(max(r["lr"] for r in callback.trace))


class Poisoned(Net):
    """Its loss is a thousand times as large in some steps."""

    def __init__(self, steps=()):
        super().__init__()
        self.steps = steps

    def training_step(self, batch, batch_idx):
        loss = super().training_step(batch, batch_idx)
        return loss * 1e3 if self.global_step in self.steps else loss


class Interrupting(Net):
    """Stops with an error of the user's."""

    def training_step(self, batch, batch_idx):
        if self.global_step == 60:
            raise ValueError("mine")
        return super().training_step(batch, batch_idx)


def test_an_interrupted_run_is_written_down_and_does_not_count(tmp_path):
    with pytest.raises(ValueError, match="mine"):
        fit(tmp_path, Interrupting())
    (run,) = remembered(tmp_path)
    assert run.ended == "early"
    fit(tmp_path)
    assert remembered(tmp_path)[-1].held is None


def test_a_resumed_run_holds_the_rate_that_it_began_with(tmp_path):
    fit(tmp_path)
    saver = ModelCheckpoint(tmp_path, every_n_epochs=5, save_top_k=-1, filename="{epoch}")
    _, whole = fit(tmp_path, more_callbacks=[saver], enable_checkpointing=True)
    fit(tmp_path)  # another run in between teaches more
    _, rest = fit(tmp_path, ckpt_path=tmp_path / "epoch=4.ckpt")
    assert rest.rates == whole.rates[60:]
    second, _, resumed = remembered(tmp_path)[1:]
    assert resumed.held == second.held
    state = torch.load(tmp_path / "epoch=4.ckpt", weights_only=True)
    assert state["callbacks"]["DQNLRCallback"]["driver"]["controller"]["peak"] == second.held


class Hindering(Net):
    """Has a file in the place of the memory's folder by the end of its training."""

    def __init__(self, folder):
        super().__init__()
        self.folder = folder

    def on_train_start(self):
        self.folder.write_text("")


def test_a_memory_that_cannot_be_written_costs_nobody_a_finished_run(tmp_path, caplog):
    with caplog.at_level(logging.WARNING, "lightning_dqnlr"):
        callback, _ = fit(tmp_path, Hindering(tmp_path / FOLDER))
    assert callback.trace[-1]["step"] == 120
    assert "the run is not remembered" in caplog.text


def test_names_keep_models_apart(tmp_path):
    fit(tmp_path, memory=Memory(tmp_path / FOLDER, name="mine"))
    fit(tmp_path)
    assert [run.held for run in remembered(tmp_path)] == [None, None]
    assert len(models_of(Memory(tmp_path / FOLDER))) == 2


def test_what_cannot_be_remembered_is_refused_before_training(tmp_path):
    with pytest.raises(ConfigurationError, match="memory: on_scheduler"):
        DQNLRCallback(memory=tmp_path, on_scheduler="scale", start="optimizer")


def test_a_plain_loop_remembers_as_a_trainer_does(tmp_path):
    first, second = Loop(policy=constant_policy(KEEP)), Loop(policy=constant_policy(KEEP))
    for loop in (first, second):
        run = loop.scheduler.remember(tmp_path / FOLDER, "score", mode="max", batch_size=8)
        loop.run(200)
        for score in (0.5, math.nan, 0.9, 0.7):
            run.add(score)
        run.finish()
        run.finish()
    one, two = remembered(tmp_path)
    assert (one.held, one.value, one.mode, one.ended) == (None, 0.9, "max", "completed")
    assert second.rates[100] == pytest.approx(two.held, rel=1e-5)
    assert two.held != pytest.approx(one.upper_quartile, rel=0.1)


def test_a_plain_loop_that_is_resumed_holds_the_rate_that_it_began_with(tmp_path):
    def begin(steps):
        loop = Loop(policy=constant_policy(KEEP))
        run = loop.scheduler.remember(tmp_path / FOLDER)
        loop.run(steps)
        run.finish()
        return loop

    begin(200)
    whole = begin(100)
    begin(200)  # another run in between teaches more
    rest = Loop(policy=constant_policy(KEEP))
    parts = (rest.net, rest.optimizer, rest.scheduler)
    for part, state in zip(parts, whole.state(), strict=True):
        part.load_state_dict(state)
    rest.done = whole.done
    run = rest.scheduler.remember(tmp_path / FOLDER)
    rest.run(100)
    run.finish()
    whole.run(100)
    assert rest.rates == whole.rates[100:]
    second, _, resumed = remembered(tmp_path)[1:]
    assert resumed.held == second.held


def test_a_plain_loop_that_was_left_is_no_completed_run(tmp_path):
    loop = Loop()
    run = loop.scheduler.remember(tmp_path / FOLDER)
    loop.run(100)
    run.finish()
    assert remembered(tmp_path)[0].ended == "early"


def test_plot_and_report_show_the_runs_of_the_model(tmp_path):
    for _ in range(3):
        callback, _ = fit(tmp_path)
    whys = [run.why for run in remembered(tmp_path)]
    page = callback.report(tmp_path / "run.html").read_text()
    assert "Runs of this model" in page
    assert all(str(escape(why)) in page for why in whys)
    assert "next: " in page
    lower = callback.plot().subfigs[1].axes[0]
    assert [text.get_text() for text in lower.texts] == ["1", "2", "3"]
    forgetful = DQNLRCallback(constant_policy(KEEP))
    trainer(forgetful, tmp_path, max_epochs=2).fit(Net(), loader())
    assert "Runs of this model" not in forgetful.report(tmp_path / "other.html").read_text()
