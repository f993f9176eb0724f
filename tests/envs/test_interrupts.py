"""A Trainer that is interrupted must not pass for a run that failed."""

import os
import signal

import pytest
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.demos.boring_classes import BoringModel, RandomDataset
from torch.utils.data import DataLoader

from lightning_dqnlr.envs.process import interruptible
from lightning_dqnlr.envs.trainer import TrainerEngine
from lightning_dqnlr.tasks.task import Task

SIGNALS = (signal.SIGINT, signal.SIGTERM)


def interrupted(*_):
    raise KeyboardInterrupt


class Module(BoringModel):
    """Calls a function in its third step."""

    def __init__(self, third_step):
        super().__init__()
        self.third_step, self.steps = third_step, 0

    def training_step(self, batch, batch_idx):
        self.steps += 1
        if self.steps == 3:
            self.third_step()
        return super().training_step(batch, batch_idx)


def train(module):
    quiet = {f"enable_{name}": False for name in ("checkpointing", "progress_bar", "model_summary")}
    trainer = Trainer(max_steps=8, limit_val_batches=0, logger=False, accelerator="cpu", **quiet)
    trainer.fit(module, DataLoader(RandomDataset(32, 16)))


@pytest.fixture(autouse=True)
def handlers():
    """Ctrl-C as Python has it; afterwards as before."""
    before = {number: signal.getsignal(number) for number in SIGNALS}
    signal.signal(signal.SIGINT, signal.default_int_handler)
    yield {number: signal.getsignal(number) for number in SIGNALS}
    for number, handler in before.items():
        signal.signal(number, handler)


def ctrl_c():
    os.kill(os.getpid(), signal.SIGINT)


def sigterm():
    os.kill(os.getpid(), signal.SIGTERM)


@pytest.mark.parametrize("third_step", [ctrl_c, sigterm])
def test_a_signal_in_a_step_comes_out_as_an_interrupt(third_step, handlers):
    module = Module(third_step)
    with pytest.raises(KeyboardInterrupt), interruptible():
        train(module)
    assert module.steps == 3
    assert {number: signal.getsignal(number) for number in SIGNALS} == handlers


def test_an_interrupt_that_the_trainer_stumbles_over_is_one_still(monkeypatch, handlers):
    """Before the first batch it asks a loader that has not begun for its length."""
    monkeypatch.setattr(DataLoader, "__iter__", interrupted)
    with pytest.raises(KeyboardInterrupt) as caught, interruptible():
        train(Module(interrupted))
    assert isinstance(caught.value.__cause__, RuntimeError)
    assert {number: signal.getsignal(number) for number in SIGNALS} == handlers


@pytest.mark.parametrize("error", [ValueError("no such word"), SystemExit(3)])
def test_a_failure_that_nothing_interrupted_stays_what_it_is(error):
    def fail():
        raise error

    with pytest.raises(type(error)) as caught, interruptible():
        train(Module(fail))
    assert caught.value is error


@pytest.mark.parametrize("stumbles", [False, True])
def test_an_interrupt_while_a_rival_is_tuned_is_no_failed_task(monkeypatch, stumbles):
    if stumbles:
        monkeypatch.setattr(DataLoader, "__iter__", interrupted)

    def build(seed):
        return Module(interrupted)

    data = torch.randn(16, 32), torch.randn(8, 32)
    task = Task("interrupted", "none", 0, build, *data, 4, "sgd", 8)
    with pytest.raises(KeyboardInterrupt):
        TrainerEngine().follow(task, [0], lambda step: torch.tensor([0.1]))
