"""Runs that remember: the second one holds a rate, and every run is written down once."""

import math

import pytest
import torch
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from markupsafe import escape
from torch import nn

from lightning_dqnlr import DQNLRCallback
from lightning_dqnlr.cli.memory import models_of
from lightning_dqnlr.errors import ConfigurationError
from lightning_dqnlr.host.remembering import _largest_and_quartile
from lightning_dqnlr.memory import Memory

from .control_runs import SAFELY, Loop, Net, constant_policy, loader, random_policy, trainer

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


class Logging(Net):
    """Logs a metric of training."""

    def training_step(self, batch, batch_idx):
        loss = super().training_step(batch, batch_idx)
        self.log("train_loss", loss, on_step=False, on_epoch=True)
        return loss


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
    kept = [r["loss"] for r in callback.trace if not r["tripped"]]
    last = kept[-math.ceil(0.1 * len(kept)) :]
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


def test_a_training_metric_that_checkpoints_go_by_counts_without_validation(tmp_path):
    saver = ModelCheckpoint(tmp_path, monitor="train_loss")
    fit(tmp_path, Logging(), more_callbacks=[saver], enable_checkpointing=True)
    (run,) = remembered(tmp_path)
    assert (run.metric, run.ended) == ("train_loss", "completed")
    assert run.value == pytest.approx(float(saver.best_model_score), rel=1e-6)


def test_a_run_that_nobody_validated_is_not_taken_for_a_diverged_one(tmp_path, caplog):
    memory = Memory(tmp_path / FOLDER)
    callback = DQNLRCallback(constant_policy(KEEP), memory=memory, validate="val_los")
    trainer(callback, tmp_path, max_epochs=10).fit(Validated(), loader(), loader())
    loop = Loop()
    part = loop.scheduler.remember(memory, "score")
    loop.run(200)
    part.finish()
    assert [(run.ended, run.value, run.counts) for run in remembered(tmp_path)] == [
        ("completed", None, False)
    ] * 2
    assert "memory: 'val_los', by which the run is judged, was never there" in caplog.text


def test_a_validation_that_is_never_finite_has_diverged(tmp_path):
    loop = Loop()
    part = loop.scheduler.remember(tmp_path / FOLDER, "score")
    loop.run(200)
    part.add(math.nan)
    part.finish()
    assert remembered(tmp_path)[0].ended == "diverged"


def test_the_best_validation_before_a_checkpoint_is_not_forgotten(tmp_path):
    saver = ModelCheckpoint(
        tmp_path, every_n_epochs=5, save_top_k=-1, filename="{epoch}", save_on_train_epoch_end=True
    )
    arguments = {"max_epochs": 10, "check_val_every_n_epoch": 4}
    memory = Memory(tmp_path / FOLDER)

    def run(more, **checkpoint):
        callback = DQNLRCallback(constant_policy(KEEP), memory=memory, validate="val_loss")
        made = trainer(callback, tmp_path, **arguments, **more)
        made.fit(Validated(), loader(), loader(), **checkpoint)

    run({"more_callbacks": [saver], "enable_checkpointing": True})
    arguments["check_val_every_n_epoch"] = 11  # none in the second part
    run({}, ckpt_path=tmp_path / "epoch=4.ckpt", **SAFELY)
    whole, rest = remembered(tmp_path)
    assert rest.ended == "completed"
    assert rest.value is not None
    assert rest.value >= whole.value


def test_early_stopping_ends_a_run_that_counts(tmp_path):
    stopper = EarlyStopping("val_loss", patience=3, min_delta=10.0)
    memory = Memory(tmp_path / FOLDER)
    callback = DQNLRCallback(constant_policy(KEEP), memory=memory, on_early_stop="stop")
    run = trainer(callback, tmp_path, max_epochs=40, more_callbacks=[stopper])
    run.fit(Validated(), loader(), loader())
    (run,) = remembered(tmp_path)
    assert (run.steps, run.ended, run.counts) == (48, "completed", True)


def test_losses_that_the_breaker_has_undone_are_not_what_a_run_came_to(tmp_path):
    callback, _ = fit(tmp_path, Poisoned([112]))
    assert [record["tripped"] for record in callback.trace[-5:]] == [True, *[False] * 4]
    assert remembered(tmp_path)[0].value < 2.0


def test_no_rate_beyond_the_bounds_is_taught(tmp_path):
    fit(tmp_path)
    bound = remembered(tmp_path)[0].upper_quartile * 1.3
    for name, far in (("max_lr", 1.0), ("max_lr", 0.01), ("min_lr", 2.0), ("min_lr", 100.0)):
        memory = Memory(tmp_path / FOLDER)
        callback = DQNLRCallback(constant_policy(KEEP), memory=memory, **{name: bound * far})
        trainer(callback, tmp_path, max_epochs=10).fit(Net(), loader())
        held = remembered(tmp_path)[-1].held
        assert held <= bound * far * 1.001 if name == "max_lr" else held >= bound * far * 0.999


def test_runs_that_follow_another_metric_are_not_compared_with_the_loss(tmp_path):
    class Accurate(Net):
        def training_step(self, batch, batch_idx):
            self.log("accuracy", (self.net(batch[0]).argmax(1) == batch[1]).float().mean())
            return super().training_step(batch, batch_idx)

    memory = Memory(tmp_path / FOLDER)
    fit(tmp_path, Accurate())
    arguments = {"memory": memory, "monitor": "accuracy", "mode": "max"}
    callback = DQNLRCallback(constant_policy(KEEP), **arguments)
    trainer(callback, tmp_path, max_epochs=10).fit(Accurate(), loader())
    one, two = remembered(tmp_path)
    assert (one.metric, two.metric, two.mode) == ("training loss", "training accuracy", "max")
    assert two.held is None
    assert 0 < two.value <= 1


def test_a_memory_that_cannot_be_written_is_refused_before_the_first_step(tmp_path):
    (tmp_path / "file").write_text("")
    module = Net()
    with pytest.raises(ConfigurationError, match=r"memory='.*below' cannot be written"):
        fit(tmp_path, module, memory=Memory(tmp_path / "file" / "below"))
    assert module.losses == []


def test_a_memory_that_is_lost_on_the_way_fails_no_training(tmp_path, caplog):
    class Losing(Net):
        def on_train_end(self):
            self.ended = True

        def training_step(self, batch, batch_idx):
            if self.global_step == 60:
                (tmp_path / FOLDER).write_text("")
            return super().training_step(batch, batch_idx)

    _, module = fit(tmp_path, Losing())
    assert module.ended
    assert "this run is not remembered" in caplog.text


def test_a_layer_without_shapes_is_refused_by_name(tmp_path):
    class Lazy(Net):
        def __init__(self):
            super().__init__()
            self.net = nn.LazyLinear(2)

    with pytest.raises(ConfigurationError, match=r"memory: .* a lazy layer has none"):
        fit(tmp_path, Lazy())


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


@pytest.mark.parametrize("first", ["load", "remember"])
def test_a_plain_loop_goes_on_at_the_rate_that_it_began_with(tmp_path, first):
    def begin():
        loop = Loop(policy=constant_policy(KEEP))
        return loop, lambda: loop.scheduler.remember(tmp_path / FOLDER, "score")

    for _ in range(3):  # the last one is saved at its middle
        loop, remember = begin()
        part = remember()
        loop.run(100)
        part.add(0.5)
        saved = loop.state()
        loop.run(100)
        part.finish()
    whole = loop.rates
    resumed, remember = begin()
    part = remember() if first == "remember" else None
    for each, state in zip((resumed.net, resumed.optimizer, resumed.scheduler), saved, strict=True):
        each.load_state_dict(state)
    resumed.done = 100
    part = part or remember()
    resumed.run(100)
    part.finish()
    assert resumed.rates == whole[100:]
    *_, third, last = remembered(tmp_path)
    assert (last.held, last.value) == (third.held, 0.5)


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


def test_the_upper_quartile_is_that_of_the_steps_and_not_of_the_decisions():
    # Ten steps at 1, eighty at 2, nine at 4 and one at 8: three quarters lie at or below 2.
    ends, rates = (10, 90, 99, 100), (1.0, 2.0, 4.0, 8.0)
    trace = [{"step": end, "lr": lr} for end, lr in zip(ends, rates, strict=True)]
    assert _largest_and_quartile(trace) == (8.0, 2.0)
    long = [{"step": end * 10**9, "lr": lr} for end, lr in zip(ends, rates, strict=True)]
    assert _largest_and_quartile(long) == (8.0, 2.0)  # without a number for each step
