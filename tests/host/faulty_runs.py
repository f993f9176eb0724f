"""A plain loop with faults in it, for the tests of what becomes of a run that they befall."""

import math

import torch
from torch import nn

from lightning_dqnlr import DQNLRScheduler


def problem(count, seed=0):
    """Ten overlapping classes around ten centres, (count, 16) and (count,).

    The best loss there is is far above zero, so that runs that go well end alike.
    """
    centres = torch.randn(10, 16, generator=torch.Generator().manual_seed(0))
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(10, (count,), generator=generator)
    return centres[labels] + 1.5 * torch.randn(count, 16, generator=generator), labels


class FaultyLoop:
    """Trains a small network; every argument is a fault or how the run goes about it.

    Args:
        poison: steps, from 1 on, whose loss is NaN.
        left_out: whether the gradients of such a step are zeroed.
        scale, shift: the loss that the controller sees and trains on is scale * loss + shift.
        spoil: takes step, inputs and labels of each batch and returns other ones.
        change: takes step and loss and returns another loss.
        seed: of the weights.
        data: seed of the examples.
    """

    def __init__(
        self,
        optimizer=torch.optim.AdamW,
        steps=300,
        *,
        poison=(),
        left_out=False,
        scale=1.0,
        shift=0.0,
        spoil=None,
        change=None,
        dtype=torch.float32,
        options=None,
        seed=0,
        data=1,
        **arguments,
    ):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.net = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 10)).to(dtype)
        self.optimizer = optimizer(self.net.parameters(), **{"lr": 1e-3, **(options or {})})
        self.scheduler = DQNLRScheduler(self.optimizer, **{"horizon": steps, **arguments})
        self.steps, self.dtype, self.data = steps, dtype, data
        self.poison, self.left_out = poison, left_out
        self.scale, self.shift = scale, shift
        self.spoil, self.change = spoil, change
        self.rates = []

    def run(self):
        inputs, labels = problem(32 * self.steps, seed=self.data)
        for step in range(1, self.steps + 1):
            here = slice(32 * step - 32, 32 * step)
            batch = (inputs[here], labels[here])
            self._step(step, *(self.spoil(step, *batch) if self.spoil else batch))
        return self

    def _step(self, step, inputs, labels):
        loss = self._loss(inputs, labels) * self.scale + self.shift
        loss = self.change(step, loss) if self.change else loss
        loss = loss * math.nan if step in self.poison else loss
        self.optimizer.zero_grad()
        loss.backward()
        if self.left_out and step in self.poison:
            for parameter in self.net.parameters():
                parameter.grad.zero_()
        self.optimizer.step()
        self.rates.append(self.scheduler.get_last_lr()[0])
        self.scheduler.step(loss)

    def _loss(self, inputs, labels):
        return nn.functional.cross_entropy(self.net(inputs.to(self.dtype)).float(), labels)

    @torch.no_grad()
    def final(self, spoil=None):
        """The loss on examples of their own, without scale and shift."""
        batch = problem(2000, seed=2)
        return self._loss(*(spoil(self.steps, *batch) if spoil else batch)).item()

    @property
    def tripped(self):
        """The steps at which an interval was undone."""
        return [record["step"] for record in self.scheduler.trace if record["tripped"]]


def regret(loss, reference):
    """By how much a final loss is worse, in the units of the benchmark."""
    initial = math.log(10)
    return math.log((loss + 0.01 * initial) / (reference + 0.01 * initial))
