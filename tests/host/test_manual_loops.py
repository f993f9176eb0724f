"""Modules with manual optimisation, under both names of Lightning."""

import lightning.pytorch
import pytest
import pytorch_lightning
import torch
from torch import nn

from lightning_dqnlr import DQNLRCallback, DQNLRScheduler
from lightning_dqnlr.errors import ConfigurationError, UnsupportedTrainingError

from .control_runs import SAFELY, Net, OldNet, constant_policy, loader, random_policy, trainer

KEEP = 3
NEW, OLD = lightning.pytorch, pytorch_lightning
both = pytest.mark.parametrize("library", [NEW, OLD], ids=["lightning.pytorch", "older name"])


class ManualBody:
    """Two optimizers, for the first and the last layer, each with a loss and a scheduler."""

    def __init__(self, closure=False):
        super().__init__()
        self.automatic_optimization = False
        self.controls, self.closure = None, closure

    def configure_optimizers(self):
        return [torch.optim.Adam(self.net[i].parameters(), lr=5.0) for i in (0, 3)]

    def training_step(self, batch, batch_idx):
        if self.controls is None:
            self.controls = [
                DQNLRScheduler(o, random_policy(seed), horizon=48)
                for seed, o in enumerate(self.optimizers())
            ]
        inputs, labels = batch
        for weight, optimizer, control in zip(
            (1, 2), self.optimizers(), self.controls, strict=True
        ):
            loss = weight * nn.functional.cross_entropy(self.net(inputs), labels)
            optimizer.zero_grad()
            self.manual_backward(loss)
            if self.closure:
                optimizer.step(closure=lambda: None)
            else:
                optimizer.step()
            self.rates.append(control.get_last_lr()[0])
            self.losses.append(loss.item())
            control.step(loss)


class Manual(ManualBody, Net):
    pass


class OldManual(ManualBody, OldNet):
    pass


class Plain(nn.Module):
    """The same in a plain loop."""

    def run(self, net, epochs):
        optimizers = [torch.optim.Adam(net[i].parameters(), lr=5.0) for i in (0, 3)]
        controls = [
            DQNLRScheduler(o, random_policy(seed), horizon=48) for seed, o in enumerate(optimizers)
        ]
        rates = []
        for inputs, labels in (batch for _ in range(epochs) for batch in loader()):
            for weight, optimizer, control in zip((1, 2), optimizers, controls, strict=True):
                loss = weight * nn.functional.cross_entropy(net(inputs), labels)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                rates.append(control.get_last_lr()[0])
                control.step(loss)
        return rates


def quiet_trainer(folder, library, **arguments):
    bar = library.callbacks.Callback()
    return trainer(bar, folder, library, **{"max_epochs": 4, **arguments})


@both
def test_the_scheduler_in_a_manual_loop_of_lightning_is_that_of_a_plain_loop(tmp_path, library):
    module = Manual() if library is NEW else OldManual()
    run = quiet_trainer(tmp_path, library)
    run.fit(module, loader())
    assert module.rates == Plain().run(Net().net, 4)
    assert run.global_step == 96
    assert [control.trace[-1]["step"] for control in module.controls] == [48, 48]


@both
def test_a_closure_of_the_users_own_is_still_refused_in_a_manual_loop(tmp_path, library):
    module = Manual(closure=True) if library is NEW else OldManual(closure=True)
    with pytest.raises(UnsupportedTrainingError, match="closure"):
        quiet_trainer(tmp_path, library).fit(module, loader())


class Loop:
    """Steps each optimizer so many times per batch, with a loss of its own.

    The loss is told by `manual_backward`, by what is returned, or by the logger.
    """

    def __init__(self, times=(1, 1), tells="backward", scheduler=None, **options):
        self.times, self.tells, self.scheduler = times, tells, scheduler
        super().__init__(**options)
        self.automatic_optimization = False
        self.by_optimizer = [[] for _ in times]
        self.own_losses = [[] for _ in times]

    def configure_optimizers(self):
        layers = (self.net[0], self.net[3])[: len(self.times)]
        optimizers = [torch.optim.Adam(layer.parameters(), lr=5.0) for layer in layers]
        if self.scheduler is None:
            return optimizers
        return optimizers, [self.scheduler(optimizer) for optimizer in optimizers]

    def training_step(self, batch, batch_idx):
        inputs, labels = batch
        optimizers = self.optimizers()
        optimizers = optimizers if isinstance(optimizers, list) else [optimizers]
        for index, optimizer in enumerate(optimizers):
            for _ in range(self.times[index]):
                loss = (1 + index) * nn.functional.cross_entropy(self.net(inputs), labels)
                self.own_losses[index].append(loss.item())
                self.log(f"loss{index}", loss + 100)
                optimizer.zero_grad()
                (self.manual_backward if self.tells == "backward" else torch.Tensor.backward)(loss)
                optimizer.step()
                self.by_optimizer[index].append(float(optimizer.param_groups[0]["lr"]))
        if self.scheduler is not None:
            for scheduler in self.lr_schedulers():
                scheduler.step()
        return loss if self.tells == "return" else None


def looped(library, *mixins, **options):
    base = Net if library is NEW else OldNet
    return type("Looped", (*mixins, Loop, base), {})(**options)


def fit(folder, library, callback, module, **arguments):
    path = arguments.pop("ckpt_path", None)
    run = trainer(callback, folder, library, **{"max_epochs": 4, **arguments})
    run.fit(module, loader(), ckpt_path=path, **SAFELY)
    return run


def records(callback, index):
    return [record for record in callback.trace if record["optimizer"] == index]


@both
def test_every_optimizer_of_a_manual_loop_has_a_control_of_its_own(tmp_path, library):
    module, callback = looped(library), DQNLRCallback(random_policy())
    run = fit(tmp_path, library, callback, module)
    assert run.global_step == 96
    for index, used in enumerate(module.by_optimizer):
        mine = records(callback, index)
        assert mine[-1]["step"] == callback.controllers[index].horizon == 48
        for record in mine[:-1]:
            assert used[record["step"] - 1] == record["lr"]
            assert used[record["step"]] == record["next_lr"]
        assert mine[0]["loss"] == pytest.approx(module.own_losses[index][0], rel=1e-6)
    assert module.by_optimizer[0] != module.by_optimizer[1]
    assert callback.plot(tmp_path / "lr.png").exists()
    assert "optimizer" in callback.save_trace(tmp_path / "lr.csv").read_text().splitlines()[0]


def test_the_bundled_policy_trains_two_optimizers(tmp_path):
    module = looped(NEW)
    fit(tmp_path, NEW, DQNLRCallback(), module, max_epochs=20)
    assert sum(module.own_losses[1][-12:]) < 0.5 * sum(module.own_losses[1][:12])


@both
def test_one_optimizer_of_a_manual_loop_is_controlled_as_in_an_automatic_one(tmp_path, library):
    """Its loss is that of the whole network, as in the automatic loop of the same weights."""
    module, callback = looped(library, times=(1,)), DQNLRCallback(random_policy())
    fit(tmp_path, library, callback, module)

    class Automatic(Net if library is NEW else OldNet):
        def configure_optimizers(self):
            return torch.optim.Adam(self.net[0].parameters(), lr=5.0)

    expected, control = Automatic(), DQNLRCallback(random_policy())
    fit(tmp_path, library, control, expected)
    assert str(callback.trace) == str(control.trace)
    assert module.by_optimizer[0] == [rate for (rate,) in expected.rates]


@pytest.mark.parametrize(
    ("monitor", "tells", "shift"),
    [({0: "loss0", 1: "loss1"}, "nothing", (100, 100)), ({1: "loss1"}, "backward", (0, 100))],
)
def test_a_metric_for_each_optimizer_replaces_its_loss(tmp_path, monitor, tells, shift):
    module, callback = looped(NEW, tells=tells), DQNLRCallback(random_policy(), monitor=monitor)
    fit(tmp_path, NEW, callback, module)
    for index in (0, 1):
        first = records(callback, index)[0]["loss"]
        assert first == pytest.approx(module.own_losses[index][0] + shift[index], rel=1e-6)


def test_a_returned_loss_is_enough_and_no_loss_at_all_is_refused_with_the_remedy(tmp_path):
    module, callback = looped(NEW, times=(1,), tells="return"), DQNLRCallback(random_policy())
    fit(tmp_path, NEW, callback, module)
    assert callback.trace[0]["loss"] == pytest.approx(module.own_losses[0][0], rel=1e-6)
    with pytest.raises(ConfigurationError, match=r"no loss of Adam's step.*manual_backward"):
        fit(tmp_path, NEW, DQNLRCallback(random_policy()), looped(NEW, tells="nothing"))


@pytest.mark.parametrize("monitor", ["loss0", {2: "loss2"}])
def test_a_monitor_of_other_optimizers_is_refused_before_training(tmp_path, monitor):
    module = looped(NEW)
    with pytest.raises(ConfigurationError, match=r"monitor=.*there are 2 optimizers"):
        fit(tmp_path, NEW, DQNLRCallback(random_policy(), monitor=monitor), module)
    assert module.own_losses == [[], []]


@pytest.mark.parametrize("limit", [{"max_epochs": 4}, {"max_epochs": -1, "max_steps": 48 * 4}])
def test_steps_of_an_optimizer_that_is_stepped_more_often_all_count(tmp_path, limit):
    module, callback = looped(NEW, times=(3, 1)), DQNLRCallback(constant_policy(KEEP))
    fit(tmp_path, NEW, callback, module, **limit)
    first, second = callback.controllers
    assert (first.horizon, second.horizon) == (144, 48)
    assert [len(used) for used in module.by_optimizer] == [144, 48]
    assert records(callback, 0)[-1]["step"] >= 140
    # The decay reaches the end of both, and neither is told that it is over.
    for index in (0, 1):
        rates = [record["lr"] for record in records(callback, index)]
        assert rates[-1] < 0.2 * max(rates)


class BlowsUp:
    at = 61

    def manual_backward(self, loss, *args, **kwargs):
        self.backwards = getattr(self, "backwards", 0) + 1
        super().manual_backward(loss * (float("nan") if self.backwards == self.at else 1.0))


class BlowsUpAtTheEnd(BlowsUp):
    at = 95  # of 96; the first optimizer's last step


def test_what_the_end_of_a_manual_run_undoes_is_in_the_trace(tmp_path):
    module, callback = looped(NEW, BlowsUpAtTheEnd), DQNLRCallback(constant_policy(KEEP))
    fit(tmp_path, NEW, callback, module)
    assert records(callback, 0)[-1]["tripped"]
    assert len(callback.trace) == sum(len(c.trace) for c in callback._control.drivers)
    assert all(torch.isfinite(p).all() for p in module.net[0].parameters())


@both
def test_a_blow_up_of_one_optimizer_goes_back_and_the_other_goes_on(tmp_path, library):
    module, callback = looped(library, BlowsUp), DQNLRCallback(constant_policy(KEEP), horizon=512)
    fit(tmp_path, library, callback, module, max_epochs=6)
    assert sum(record["tripped"] for record in records(callback, 0)) >= 1
    assert all(torch.isfinite(p).all() for p in module.parameters())


@both
def test_a_resumed_manual_run_is_exact(tmp_path, library):
    def saver(folder):
        return library.callbacks.ModelCheckpoint(folder, filename="{epoch}", save_top_k=-1)

    def control():
        return DQNLRCallback(random_policy(), epsilon=0.2, save_snapshot=True)

    whole, expected = looped(library, times=(2, 1)), control()
    arguments = {"enable_checkpointing": True, "more_callbacks": [saver(tmp_path)]}
    fit(tmp_path, library, expected, whole, **arguments)
    resumed, callback = looped(library, times=(2, 1)), control()
    arguments["more_callbacks"] = [saver(tmp_path / "on")]
    path = tmp_path / "epoch=1.ckpt"
    fit(tmp_path, library, callback, resumed, ckpt_path=path, **arguments)
    assert resumed.by_optimizer[0] == whole.by_optimizer[0][48:]
    assert resumed.by_optimizer[1] == whole.by_optimizer[1][24:]
    mine, theirs = (sorted(map(str, c.trace)) for c in (callback, expected))
    assert mine == theirs
    before = [record["step"] for record in callback.trace if record["step"] <= 12]
    assert before == sorted(before), "the records of the run before come in their order, too"


def test_the_random_actions_of_two_optimizers_are_not_the_same(tmp_path):
    callback = DQNLRCallback(constant_policy(KEEP), epsilon=1.0)
    fit(tmp_path, NEW, callback, looped(NEW))
    first, second = ([r["action"] for r in records(callback, index)] for index in (0, 1))
    assert first != second


class StepsPastLater:
    """From the second epoch on one optimizer is stepped inside Lightning's wrapper."""

    def optimizers(self):
        first, second = super().optimizers()
        return [first.optimizer if self.current_epoch else first, second]


def test_later_steps_past_the_wrapper_do_not_count_and_are_said_once(tmp_path, caplog):
    callback = DQNLRCallback(constant_policy(KEEP), horizon=50)
    fit(tmp_path, NEW, callback, looped(NEW, StepsPastLater))
    assert records(callback, 0)[-1]["step"] <= 12
    assert records(callback, 1)[-1]["step"] > 40
    assert sum("inside Lightning's wrapper" in r.getMessage() for r in caplog.records) == 1


class StepsPast:
    def optimizers(self):
        return super().optimizers(use_pl_optimizer=False)


def test_steps_past_the_wrapper_are_refused_by_name(tmp_path):
    with pytest.raises(UnsupportedTrainingError, match=r"inside Lightning's wrapper.*optimizers"):
        fit(tmp_path, NEW, DQNLRCallback(constant_policy(KEEP)), looped(NEW, StepsPast))


@pytest.mark.parametrize("on_scheduler", ["replace", "scale"])
def test_schedulers_that_a_manual_loop_steps_are_overruled_or_scaled(tmp_path, on_scheduler):
    def decay(optimizer):
        return torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)

    module = looped(NEW, scheduler=decay, tells="backward")
    expected, control = looped(NEW), DQNLRCallback(random_policy())
    callback = DQNLRCallback(random_policy(), on_scheduler=on_scheduler)
    fit(tmp_path, NEW, callback, module)
    fit(tmp_path, NEW, control, expected)
    path = [5.0 * 0.9**step for step in range(48)]
    if on_scheduler == "replace":
        assert module.own_losses == expected.own_losses
    else:
        assert module.by_optimizer == [pytest.approx(path), pytest.approx(path)]
        rates = [record["lr"] for record in records(callback, 0)]
        steps = [record["step"] for record in records(callback, 0)]
        factors = [rate / path[step - 1] for rate, step in zip(rates, steps, strict=True)]
        assert len({round(factor, 3) for factor in factors}) > 3
        assert all(1 / 8.01 < factor < 8.01 for factor in factors)
