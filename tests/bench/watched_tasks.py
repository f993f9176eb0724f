"""Tasks whose modules keep what happened to them: losses and learning rates of every step."""

from dataclasses import replace
from functools import partial

import torch
from lightning.pytorch import LightningModule
from torch import nn

from lightning_dqnlr.bench.runs.suite import Suite, plan, your_own
from lightning_dqnlr.tasks.task import Task

SGD = partial(torch.optim.SGD, lr=0.1)


class Watched(LightningModule):
    """Keeps the training loss, the learning rates and the weights' sum of every step."""

    def __init__(self, net, optimizer):
        super().__init__()
        self.net, self.optimizer = net, optimizer
        self.losses, self.rates, self.trained_with = [], [], None

    def training_step(self, batch, batch_idx):
        inputs, targets = batch
        loss = nn.functional.mse_loss(self.net(inputs), targets)
        if self.training:
            self.losses.append(loss.item())
        self.log("loss", loss)
        return loss

    def optimizer_step(self, epoch, batch_idx, optimizer, optimizer_closure=None):
        super().optimizer_step(epoch, batch_idx, optimizer, optimizer_closure)
        self.rates.append([group["lr"] for group in optimizer.param_groups])
        self.trained_with = optimizer.optimizer

    def configure_optimizers(self):
        return self.optimizer(self.parameters())


class Scripted(Watched):
    """Its losses are written down beforehand; its weight does not matter."""

    def __init__(self, losses, optimizer):
        super().__init__(nn.Linear(4, 1), optimizer)
        self.script = losses

    def training_step(self, batch, batch_idx):
        step = len(self.losses)
        nothing = 0.0 * self.net(batch[0]).sum()
        if not self.training:
            return nothing + 1.0
        self.losses.append(self.script[step])
        return nothing + self.script[step]


class Pushed(Watched):
    """Its gradients, pairs of numbers, are written down beforehand."""

    def __init__(self, gradients, optimizer):
        super().__init__(None, optimizer)
        self.theta = nn.Parameter(torch.zeros(2))
        self.gradients = torch.tensor(gradients)

    def training_step(self, batch, batch_idx):
        if not self.training:
            return self.theta.sum() * 0.0 + 1.0
        self.losses.append(0.0)
        return self.theta @ self.gradients[len(self.losses) - 1]


class Spiked(Watched):
    """One of its batches spoils the weights for good."""

    def __init__(self, step, optimizer):
        super().__init__(nn.Linear(4, 1), optimizer)
        self.step = step

    def training_step(self, batch, batch_idx):
        loss = super().training_step(batch, batch_idx)
        return loss * float("nan") if self.training and len(self.losses) == self.step else loss


class Failing(Watched):
    """Raises in its fourth step."""

    def __init__(self, error, optimizer):
        super().__init__(nn.Linear(4, 1), optimizer)
        self.error = error

    def training_step(self, batch, batch_idx):
        if self.training and len(self.losses) == 3:
            raise self.error
        return super().training_step(batch, batch_idx)


class Build:
    """Builds one kind of module and keeps all of them; the last one is that of the run."""

    def __init__(self, kind, optimizer=SGD):
        self.kind, self.optimizer, self.built = kind, optimizer, []

    def __call__(self, seed):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.built.append(self.kind(self.optimizer))
        return self.built[-1]

    @property
    def trained(self):
        return self.built[-1]


def noisy_net(optimizer):
    """Batch statistics and dropout: what evaluations could disturb."""
    net = nn.Sequential(
        nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Dropout(0.3), nn.Linear(8, 1)
    )
    return Watched(net, optimizer)


def plain_net(optimizer):
    return Watched(nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1)), optimizer)


def task(kind=noisy_net, optimizer=SGD, horizon=20, examples=48, **settings):
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(examples + 16, 4, generator=generator)
    targets = inputs.sum(1, keepdim=True)
    return Task(
        name="watched",
        family="watched",
        seed=0,
        build=Build(kind, optimizer),
        train_data=(inputs[:examples], targets[:examples]),
        validation_data=(inputs[examples:], targets[examples:]),
        batch_size=8,
        optimizer="sgd",
        horizon=horizon,
        **settings,
    )


def scripted(losses):
    return task(partial(Scripted, losses), horizon=len(losses))


def planned_run(method, job, lr=None, seed=0, **settings):
    """A suite's run of one task, at a learning rate and a seed."""
    *_, last = plan(Suite(seeds=seed + 1, points=1, **settings), [your_own(job, 1.0)], [method])
    return replace(last, lr=lr, key=last.key._replace(lr=lr))


def run(method, job, lr=None, seed=0, **settings):
    """The record of such a run."""
    return planned_run(method, job, lr, seed, **settings).make(job)
