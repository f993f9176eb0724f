"""Rates that others set: a group's ratio is theirs, the rate itself is the controller's."""

import lightning.pytorch as pl
import pytest
import torch
from torch import nn

from lightning_dqnlr import DQNLRCallback
from lightning_dqnlr.errors import UnsupportedTrainingError
from lightning_dqnlr.host.group_rates import GroupRates

from .control_runs import Loop, Net, constant_policy, loader, random_policy, trainer

KEEP = 3


def fit(folder, callback, module, **arguments):
    run = trainer(callback, folder, **arguments)
    run.fit(module, loader())
    return run


class TwoGroups(Net):
    def configure_optimizers(self):
        first, *others = self.net
        rest = [p for layer in others for p in layer.parameters()]
        groups = [{"params": rest}, {"params": first.parameters(), "lr": self.lr * self.ratio}]
        return torch.optim.Adam(groups, lr=self.lr)

    def __init__(self, ratio=0.5):
        super().__init__()
        self.ratio = ratio


class SetsRatio(pl.Callback):
    """Sets the second group's rate once, relative to the first group's rate of that moment."""

    def __init__(self, at, ratio, moment):
        self.at, self.ratio, self.moment = at, ratio, moment

    def on_train_batch_start(self, trainer, *_):
        self.set(trainer, "start", trainer.global_step)

    def on_train_batch_end(self, trainer, *_):
        self.set(trainer, "end", trainer.global_step)

    def set(self, trainer, moment, step):
        if moment == self.moment and step == self.at:
            first, second = trainer.optimizers[0].param_groups
            second["lr"] = self.ratio * first["lr"]


@pytest.mark.parametrize("moment", ["start", "end"])
@pytest.mark.parametrize("before", [0.5, 0.0])
def test_a_ratio_that_somebody_changes_is_kept_from_then_on(tmp_path, before, moment):
    """Also that of a group which began switched off; also in a step that ends an interval."""
    for at in (20, 21, 22, 23):
        module, control = TwoGroups(before), DQNLRCallback(random_policy(), horizon=200)
        sets = SetsRatio(at, 0.25, moment)
        fold = trainer(sets, tmp_path, max_epochs=8, more_callbacks=[control])
        fold.fit(module, loader())
        ratios = [second / first for first, second in module.rates]
        assert ratios[:at] == pytest.approx([before] * at)
        assert ratios[at:] == pytest.approx([0.25] * (96 - at))
        assert len({first for first, _ in module.rates[at:]}) > 2


def test_a_rate_above_the_reference_groups_becomes_equal_to_it(tmp_path):
    module, control = TwoGroups(), DQNLRCallback(random_policy(), horizon=200)
    fit(tmp_path, control, module, max_epochs=4, more_callbacks=[SetsRatio(20, 3.0, "start")])
    assert all(second == first for first, second in module.rates[20:])


def test_a_warm_up_of_all_groups_keeps_their_ratios_and_is_overruled(tmp_path, caplog):
    class WarmsUp(TwoGroups):
        def optimizer_step(self, epoch, batch_idx, optimizer, optimizer_closure=None):
            for group, base in zip(optimizer.param_groups, (1.0, 0.5), strict=True):
                group["lr"] = 0.1 * base * self.global_step
            super().optimizer_step(epoch, batch_idx, optimizer, optimizer_closure)

    module, expected = WarmsUp(), TwoGroups()
    for net in (module, expected):
        fit(tmp_path, DQNLRCallback(random_policy(), horizon=200), net, max_epochs=4)
    assert module.losses == expected.losses
    assert sum("something else set" in r.getMessage() for r in caplog.records) == 1


class Finetuned(Net):
    def __init__(self):
        super().__init__()
        self.backbone, self.net = self.net[:3], nn.Linear(12, 2)

    def training_step(self, batch, batch_idx):
        loss = nn.functional.cross_entropy(self.net(self.backbone(batch[0])), batch[1])
        self.losses.append(loss.item())
        return loss

    def configure_optimizers(self):
        return torch.optim.Adam([p for p in self.parameters() if p.requires_grad], lr=self.lr)


def test_backbone_finetuning_keeps_the_rate_of_its_group(tmp_path):
    tuning = pl.callbacks.BackboneFinetuning(1, lambda epoch: 1.5, 0.1, should_align=False)
    module, control = Finetuned(), DQNLRCallback(constant_policy(KEEP), horizon=1000)
    fit(tmp_path, control, module, max_epochs=4, more_callbacks=[tuning])
    ratios = [second / first for first, second in module.rates[12:]]
    expected = [0.1 * 1.5**epoch for epoch in (0, 1, 2) for _ in range(12)]
    assert ratios == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize("rate", [float("nan"), float("inf"), -1.0])
def test_a_rate_that_is_no_rate_is_overruled(rate):
    groups = [{"params": [torch.ones(1)], "lr": lr} for lr in (1.0, 0.5)]
    optimizer = torch.optim.SGD(groups)
    rates = GroupRates(optimizer)
    rates.set(2.0)
    for index in (0, 1):
        optimizer.param_groups[index]["lr"] = rate
        rates.hold()
        assert [group["lr"] for group in optimizer.param_groups] == [2.0, 1.0]


class StepsPast(Net):
    def __init__(self, after):
        super().__init__()
        self.after, self.steps = after, 0

    def optimizer_step(self, epoch, batch_idx, optimizer, optimizer_closure=None):
        self.steps += 1
        if self.steps <= self.after:
            return super().optimizer_step(epoch, batch_idx, optimizer, optimizer_closure)
        return optimizer.optimizer.step(optimizer_closure)


def test_steps_past_the_wrapper_are_refused_at_first_and_said_once_later(tmp_path, caplog):
    with pytest.raises(UnsupportedTrainingError, match=r"StepsPast\.optimizer_step.*closure="):
        fit(tmp_path, DQNLRCallback(constant_policy(KEEP)), StepsPast(0), max_epochs=1)
    control = DQNLRCallback(constant_policy(KEEP), horizon=50)
    fit(tmp_path, control, StepsPast(5), max_epochs=1)
    assert control.controller.step == 5
    assert sum("StepsPast.optimizer_step" in r.getMessage() for r in caplog.records) == 1


class SAM(torch.optim.SGD):
    """Sharpness-aware minimisation (Foret et al. 2021): the gradient of weights moved by rho."""

    def step(self, closure=None):
        with torch.enable_grad():
            loss = closure()
        weights = [p for group in self.param_groups for p in group["params"]]
        kept = [p.detach().clone() for p in weights]
        norm = torch.stack([p.grad.norm() for p in weights]).norm()
        with torch.no_grad():
            for p in weights:
                p.add_(0.05 * p.grad / norm)
        with torch.enable_grad():
            closure()
        with torch.no_grad():
            for p, before in zip(weights, kept, strict=True):
                p.copy_(before)
        super().step()
        return loss


def test_the_updates_of_sam_are_measured_from_the_weights_before_its_step(tmp_path):
    control = DQNLRCallback(constant_policy(KEEP), horizon=1000)
    fit(tmp_path, control, Net(SAM), max_steps=4)
    assert 1e-5 < float(control.controller.update_ratio) < 1e-3  # the safe start's is 1e-4


def test_a_rate_changed_in_a_plain_loop_is_kept_too():
    loop = Loop(policy=constant_policy(KEEP))
    loop.optimizer.add_param_group({"params": [nn.Parameter(torch.ones(3))], "lr": 2.5})
    loop.run(3)
    for ratio in (0.0, 0.25, 1.0):
        loop.optimizer.param_groups[1]["lr"] = ratio * loop.scheduler.get_last_lr()[0]
        loop.run(10)
        first, second = loop.scheduler.get_last_lr()
        assert second == pytest.approx(ratio * first)
