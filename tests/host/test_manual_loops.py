"""Modules with manual optimisation, under both names of Lightning."""

import lightning.pytorch
import pytest
import pytorch_lightning
import torch
from torch import nn

from lightning_dqnlr import DQNLRScheduler
from lightning_dqnlr.errors import UnsupportedTrainingError

from .control_runs import Net, OldNet, loader, random_policy, trainer

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
