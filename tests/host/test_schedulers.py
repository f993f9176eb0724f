"""Modules that bring a scheduler: it is replaced, scaled or refused, and its path is known."""

import csv
from dataclasses import dataclass, field

import lightning.pytorch as lp
import pytest
import torch
from lightning.pytorch.callbacks import LearningRateMonitor, ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from torch.optim import lr_scheduler as schedulers

from lightning_dqnlr import DQNLRCallback
from lightning_dqnlr.errors import ConfigurationError, UnsupportedTrainingError

from .control_runs import (
    SAFELY,
    Net,
    Stateful,
    constant_policy,
    examples,
    loader,
    random_policy,
    trainer,
)

KEEP, QUADRUPLE, QUARTER = 3, 6, 0


@dataclass
class Scheduler:
    """What `configure_optimizers` returns beside the optimizer."""

    build: object
    settings: dict = field(default_factory=dict)
    optimizer: type = torch.optim.SGD

    def beside(self, optimizer):
        return {"scheduler": self.build(optimizer), **self.settings}


def zero_warm_up(optimizer, steps=5):
    return schedulers.LambdaLR(optimizer, lambda step: min(1.0, step / steps))


def in_turn(optimizer):
    parts = [schedulers.LinearLR(optimizer, 0.1, total_iters=4), schedulers.StepLR(optimizer, 5)]
    return schedulers.SequentialLR(optimizer, parts, [4])


def one_cycle(optimizer):
    return schedulers.OneCycleLR(optimizer, max_lr=[0.5, 0.05], total_steps=1000)


STEP = {"interval": "step"}
PLATEAU = {"monitor": "never_logged"}
SCHEDULERS = {
    "step": Scheduler(lambda o: schedulers.StepLR(o, 3), STEP),
    "epoch": Scheduler(lambda o: schedulers.ExponentialLR(o, 0.5)),
    "cosine": Scheduler(lambda o: schedulers.CosineAnnealingLR(o, 36), STEP),
    "plateau": Scheduler(schedulers.ReduceLROnPlateau, PLATEAU),
    "plateau on steps": Scheduler(schedulers.ReduceLROnPlateau, {**PLATEAU, **STEP}),
    "one cycle": Scheduler(one_cycle, STEP),
    "one cycle of Adam": Scheduler(one_cycle, STEP, torch.optim.Adam),
    "cyclic": Scheduler(lambda o: schedulers.CyclicLR(o, [0.1, 0.01], [1.0, 0.1]), STEP),
    "warm-up from zero": Scheduler(zero_warm_up, STEP),
    "one after the other": Scheduler(in_turn, STEP),
}


class Scheduled(Net):
    """Two parameter groups, one with a tenth of the other's rate, and schedulers."""

    def __init__(self, *names, lr=2.0, **options):
        self.schedulers = [SCHEDULERS[name] if isinstance(name, str) else name for name in names]
        kind = self.schedulers[0].optimizer if names else torch.optim.SGD
        options = {"momentum": 0.8} if kind is torch.optim.SGD else {"betas": (0.8, 0.99)}
        super().__init__(kind, lr=lr, **options)
        self.settings, self.within = [], []

    def configure_optimizers(self):
        first, *others = self.net
        rest = [p for layer in others for p in layer.parameters()]
        groups = [{"params": rest}, {"params": first.parameters(), "lr": self.lr / 10}]
        optimizer = self.build(groups, lr=self.lr, **self.options)
        return [optimizer], [scheduler.beside(optimizer) for scheduler in self.schedulers]

    def optimizer_step(self, epoch, batch_idx, optimizer, optimizer_closure=None):
        """Notes what the groups hold between steps."""
        super().optimizer_step(epoch, batch_idx, optimizer, optimizer_closure)
        groups = optimizer.param_groups
        self.settings.append([(g["lr"], g.get("momentum"), g.get("betas")) for g in groups])

    def on_before_optimizer_step(self, optimizer):
        """Notes the rates that the step uses."""
        self.within.append([float(group["lr"]) for group in optimizer.param_groups])


def fit(folder, callback, module, data=None, **arguments):
    run = trainer(callback, folder, **{"max_epochs": 3, **arguments})
    run.fit(module, data or loader())
    return run


def said(caplog, words):
    return [r.getMessage() for r in caplog.records if words in r.getMessage()]


def momentum(module):
    return [[group[1:] for group in step] for step in module.settings]


@pytest.mark.parametrize("names", [(name,) for name in SCHEDULERS] + [("step", "plateau")])
def test_a_replaced_scheduler_changes_nothing_and_is_named_once(tmp_path, caplog, names):
    module = Scheduled(*names)
    plain = Scheduled(Scheduler(None, optimizer=module.schedulers[0].optimizer))
    plain.schedulers = []
    control, expected = DQNLRCallback(random_policy()), DQNLRCallback(random_policy())
    fit(tmp_path, control, module)
    lines = said(caplog, 'on_scheduler="scale"')
    fit(tmp_path, expected, plain)
    assert momentum(module) == momentum(plain)
    assert torch.allclose(torch.tensor(module.within), torch.tensor(plain.within), rtol=1e-6)
    assert str(control.trace) == str(expected.trace)
    (line,) = lines
    for scheduler in module.lr_schedulers() if len(names) > 1 else [module.lr_schedulers()]:
        assert type(scheduler).__name__ in line
    assert not said(caplog, "something else set the learning rate")


@pytest.mark.parametrize("name", ["step", "warm-up from zero", "one cycle"])
def test_start_optimizer_means_the_rate_before_the_scheduler(tmp_path, name):
    module = Scheduled(name)
    fit(tmp_path, DQNLRCallback(constant_policy(KEEP), start="optimizer", horizon=10**6), module)
    first = 0.5 / 25 if name == "one cycle" else 2.0  # OneCycle's own: max_lr / div_factor
    assert module.within[0] == pytest.approx([first, first / 10])


class SetsRate(lp.Callback):
    """Like a learning-rate finder: it sets the groups' rates before training begins."""

    def on_fit_start(self, trainer, pl_module):
        for group in trainer.optimizers[0].param_groups:
            group["lr"] = 0.125


def test_a_rate_that_a_finder_has_set_beside_a_scheduler_is_the_start(tmp_path):
    module, control = Scheduled("step"), DQNLRCallback(constant_policy(KEEP), start="optimizer")
    fit(tmp_path, SetsRate(), module, more_callbacks=[control], max_steps=3)
    assert module.within[0] == pytest.approx([0.125, 0.125], rel=0.01)


class LooksAtScheduler(Scheduled):
    def training_step(self, batch, batch_idx):
        self.log("lr", self.lr_schedulers().get_last_lr()[0])
        return super().training_step(batch, batch_idx)

    def lr_scheduler_step(self, scheduler, metric):
        self.stepped = True
        super().lr_scheduler_step(scheduler, metric)


def test_a_module_that_asks_for_its_scheduler_and_steps_it_its_own_way_is_trained(tmp_path):
    module, expected = LooksAtScheduler("step"), Scheduled("step")
    for net in (module, expected):
        fit(tmp_path, DQNLRCallback(random_policy()), net)
    assert not hasattr(module, "stepped")
    assert module.within == expected.within
    scaled = LooksAtScheduler("step")
    fit(tmp_path, DQNLRCallback(random_policy(), on_scheduler="scale"), scaled)
    assert scaled.stepped


@pytest.mark.parametrize("first", ["monitor", "control"])
@pytest.mark.parametrize("on_scheduler", ["replace", "scale"])
def test_lightnings_monitor_of_rates_works_beside_it(tmp_path, first, on_scheduler):
    logger = CSVLogger(tmp_path, name="", version="run")
    control = DQNLRCallback(random_policy(), on_scheduler=on_scheduler)
    beside = [LearningRateMonitor(log_momentum=True), control]
    one, other = beside if first == "monitor" else beside[::-1]
    arguments = {"logger": logger, "log_every_n_steps": 1}
    module = Scheduled("warm-up from zero")
    fit(tmp_path, one, module, more_callbacks=[other], **arguments)
    with open(tmp_path / "run" / "metrics.csv") as file:
        rows = list(csv.DictReader(file))
    shown = [float(row["lr-SGD/pg1"]) for row in rows if row["lr-SGD/pg1"]]
    if on_scheduler == "replace":
        assert shown == pytest.approx([first for first, _ in module.within], rel=1e-6)
    else:
        assert shown == pytest.approx([2 * min(1.0, step / 5) for step in range(36)])


@pytest.mark.parametrize("name", [n for n in SCHEDULERS if "plateau" not in n])
def test_a_scaled_scheduler_keeps_its_path_and_the_steps_follow_the_policy(tmp_path, name):
    alone, module = Scheduled(name), Scheduled(name)
    fit(tmp_path, lp.callbacks.TQDMProgressBar(), alone, enable_progress_bar=True)
    control = DQNLRCallback(random_policy(), on_scheduler="scale")
    fit(tmp_path, control, module)
    assert module.settings == alone.settings, "the path, between the steps"
    factors = [
        [step / own for step, own in zip(*rates, strict=True) if own]
        for rates in zip(module.within, alone.within, strict=True)
    ]
    assert all(f == pytest.approx([f[0]] * len(f)) for f in factors if f)
    firsts = [f[0] for f in factors if f]
    assert all(f * (1 + 1e-6) >= 1 / 8 and f <= 8 * (1 + 1e-6) for f in firsts)
    assert len({round(f, 3) for f in firsts}) > 3
    for record in control.trace:
        assert record["lr"] == module.within[record["step"] - 1][0]
        if record["step"] < len(module.within):
            assert record["next_lr"] == pytest.approx(module.within[record["step"]][0])


@pytest.mark.parametrize(("action", "factor"), [(QUADRUPLE, 8.0), (QUARTER, 1 / 8)])
def test_a_scaled_schedule_is_never_left_further_behind_than_eightfold(tmp_path, action, factor):
    module = Scheduled("epoch", lr=1e-3)
    control = DQNLRCallback(constant_policy(action), on_scheduler="scale")
    fit(tmp_path, control, module, max_epochs=6)
    assert module.within[-1][0] == pytest.approx(1e-3 * 0.5**5 * factor, rel=1e-3)
    assert float(control.controller.lr) == pytest.approx(1e-3 * factor), "it has not run on"


class BlowsUp(Scheduled):
    def training_step(self, batch, batch_idx):
        loss = super().training_step(batch, batch_idx)
        return loss * 1e6 if len(self.losses) == 30 else loss


def test_a_trip_cuts_the_factor_and_leaves_the_path_alone(tmp_path):
    alone, module = Scheduled("one cycle"), BlowsUp("one cycle")
    fit(tmp_path, lp.callbacks.TQDMProgressBar(), alone, enable_progress_bar=True, max_epochs=6)
    control = DQNLRCallback(constant_policy(KEEP), on_scheduler="scale", horizon=10**4)
    fit(tmp_path, control, module, max_epochs=6)
    tripped, *_ = [record["step"] for record in control.trace if record["tripped"]]
    assert module.settings == alone.settings
    factors = [m[0] / a[0] for m, a in zip(module.within, alone.within, strict=True)]
    assert factors[tripped] == pytest.approx(factors[tripped - 1] / 4, rel=1e-3)
    assert all(torch.isfinite(p).all() for p in module.parameters())


class LogsLoss(Scheduled):
    def on_train_epoch_end(self):
        self.log("monitored", 1.0)


def test_a_scaled_plateau_is_stepped_with_its_metric(tmp_path):
    monitors = {"monitor": "monitored", "interval": "epoch"}
    plateau = Scheduler(lambda o: schedulers.ReduceLROnPlateau(o, patience=0), monitors)
    module = LogsLoss(plateau, lr=1e-3)
    control = DQNLRCallback(constant_policy(KEEP), on_scheduler="scale", horizon=10**6)
    fit(tmp_path, control, module, max_epochs=4)
    rates = [rates[0] for rates in module.within]
    assert rates[::12] == pytest.approx([1e-3, 1e-3, 1e-4, 1e-5], rel=1e-3)


def test_a_plateau_that_reads_a_metric_of_epochs_does_not_fail_when_it_is_replaced(tmp_path):
    module = Scheduled("plateau")
    with pytest.raises(lp.utilities.exceptions.MisconfigurationException, match="never_logged"):
        fit(tmp_path, DQNLRCallback(constant_policy(KEEP), on_scheduler="scale"), module)
    fit(tmp_path, DQNLRCallback(constant_policy(KEEP)), Scheduled("plateau"))


def test_error_refuses_a_scheduler_by_name_and_nothing_else(tmp_path):
    control = DQNLRCallback(constant_policy(KEEP), on_scheduler="error")
    with pytest.raises(UnsupportedTrainingError, match=r"StepLR.*on_scheduler"):
        fit(tmp_path, control, Scheduled("step"))
    module = Scheduled("step")
    module.schedulers = []
    fit(tmp_path, control, module)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"on_scheduler": "keep"}, "on_scheduler='keep' must be one of"),
        ({"on_scheduler": "scale", "max_lr": 0.1}, 'max_lr: on_scheduler="scale" begins'),
        ({"on_scheduler": "scale", "start": "auto"}, 'start: on_scheduler="scale" begins'),
    ],
)
def test_arguments_that_contradict_each_other_are_refused_at_once(arguments, words):
    with pytest.raises(ConfigurationError, match=words):
        DQNLRCallback(constant_policy(KEEP), **arguments)


def batches():
    inputs, labels = examples()
    return Stateful(list(zip(inputs.split(8), labels.split(8), strict=True)))


def saver(folder):
    return ModelCheckpoint(folder, filename="{step}", every_n_train_steps=17, save_top_k=-1)


def run(folder, module, callback=None, ckpt_path=None):
    callbacks = ([callback] if callback else []) + [saver(folder)]
    run = trainer(
        callbacks[0],
        folder,
        max_steps=50,
        enable_checkpointing=True,
        more_callbacks=callbacks[1:],
    )
    run.fit(module, batches(), ckpt_path=ckpt_path, **SAFELY)
    return callback


@pytest.mark.parametrize("on_scheduler", ["replace", "scale"])
@pytest.mark.parametrize("name", ["step", "one cycle", "epoch", "one after the other"])
def test_a_resumed_run_beside_a_scheduler_is_exact(tmp_path, name, on_scheduler):
    def control():
        policy = random_policy()
        return DQNLRCallback(policy, on_scheduler=on_scheduler, save_snapshot=True, epsilon=0.2)

    whole, resumed = Scheduled(name), Scheduled(name)
    expected = run(tmp_path, whole, control())
    callback = run(tmp_path / "on", resumed, control(), tmp_path / "step=17.ckpt")
    assert resumed.within == whole.within[17:]
    assert resumed.settings == whole.settings[17:]
    assert str(callback.trace) == str(expected.trace)


@pytest.mark.parametrize("on_scheduler", ["replace", "scale"])
def test_a_checkpoint_of_the_scheduler_alone_is_gone_on_with(tmp_path, on_scheduler):
    run(tmp_path, Scheduled("step"))
    module = Scheduled("step")
    control = DQNLRCallback(
        constant_policy(KEEP),
        start=None if on_scheduler == "scale" else "optimizer",
        on_scheduler=on_scheduler,
        horizon=10**6,
    )
    run(tmp_path / "on", module, control, tmp_path / "step=17.ckpt")
    expected = 2.0 if on_scheduler == "replace" else 2.0 * 0.1 ** (17 // 3)
    assert module.within[0] == pytest.approx([expected, expected / 10], rel=1e-3)
    assert len(module.within) == 50 - 17


def test_a_checkpoint_of_the_callback_is_gone_on_with_by_the_scheduler_alone(tmp_path):
    run(tmp_path, Scheduled("step"), DQNLRCallback(constant_policy(KEEP), on_scheduler="scale"))
    alone, module = Scheduled("step"), Scheduled("step")
    run(tmp_path / "alone", alone)
    run(tmp_path / "on", module, None, tmp_path / "step=17.ckpt")
    assert module.within == alone.within[17:]


@pytest.mark.parametrize("then", ["replace", "scale"])
def test_a_resume_with_the_scheduler_treated_otherwise_is_refused(tmp_path, then):
    now = "scale" if then == "replace" else "replace"
    run(tmp_path, Scheduled("step"), DQNLRCallback(constant_policy(KEEP), on_scheduler=then))
    control = DQNLRCallback(constant_policy(KEEP), on_scheduler=now)
    with pytest.raises(ConfigurationError, match="on_scheduler: the saved run"):
        run(tmp_path / "on", Scheduled("step"), control, tmp_path / "step=17.ckpt")


@pytest.mark.parametrize("on_scheduler", ["replace", "scale"])
def test_fitting_twice_and_the_finder_of_rates_do_not_disturb(tmp_path, on_scheduler):
    control = DQNLRCallback(random_policy(), on_scheduler=on_scheduler)
    module, expected = Scheduled("step"), Scheduled("step")
    run = trainer(control, tmp_path, max_epochs=3)
    lp.tuner.Tuner(run).lr_find(module, loader(), num_training=10, update_attr=False)
    assert control.trace == []
    module.within.clear()
    module.settings.clear()
    fit(tmp_path, DQNLRCallback(random_policy(), on_scheduler=on_scheduler), expected)
    run.fit(module, loader())
    assert module.settings == expected.settings
    run.fit_loop.max_epochs = 5
    run.fit(module, loader())
    assert control.trace[-1]["step"] == 24


class Fails(Scheduled):
    def training_step(self, batch, batch_idx):
        if len(self.losses) == 5:
            raise RuntimeError("data loader died")
        return super().training_step(batch, batch_idx)


def test_an_exception_within_a_step_leaves_the_schedulers_rate(tmp_path):
    module = Fails("epoch")
    control = DQNLRCallback(constant_policy(QUADRUPLE), on_scheduler="scale")
    run = trainer(control, tmp_path, max_epochs=1)
    with pytest.raises(RuntimeError, match="data loader died"):
        run.fit(module, loader())
    (optimizer,) = run.optimizers
    assert [group["lr"] for group in optimizer.param_groups] == [2.0, 0.2]
    assert not optimizer._optimizer_step_pre_hooks
    assert not optimizer._optimizer_step_post_hooks


class TensorRates(Scheduled):
    def configure_optimizers(self):
        optimizer = torch.optim.Adam(self.parameters(), lr=torch.tensor(0.5))
        return [optimizer], [scheduler.beside(optimizer) for scheduler in self.schedulers]


@pytest.mark.parametrize("on_scheduler", ["replace", "scale"])
def test_rates_that_are_tensors_stay_the_same_tensors(tmp_path, on_scheduler):
    module = TensorRates("epoch")
    control = DQNLRCallback(random_policy(), on_scheduler=on_scheduler)
    run = fit(tmp_path, control, module)
    rate = run.optimizers[0].param_groups[0]["lr"]
    assert isinstance(rate, torch.Tensor)
    if on_scheduler == "scale":
        assert float(rate) == pytest.approx(0.5**4)
        assert len({round(rates[0], 6) for rates in module.within}) > 5
