"""A run that is stopped and resumed must be the run that was never stopped, bit for bit."""

import logging
import os
import signal
import subprocess
import sys
from copy import deepcopy
from pathlib import Path

import pytest
import torch
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from lightning.pytorch.plugins.precision import MixedPrecision

from lightning_dqnlr import DQNLRCallback
from lightning_dqnlr.errors import ConfigurationError

from .control_runs import (
    SAFELY,
    Loop,
    Net,
    Stateful,
    examples,
    random_policy,
    trainer,
    trying_policy,
)

STEPS = 200


def batches():
    inputs, labels = examples()
    return Stateful(list(zip(inputs.split(8), labels.split(8), strict=True)))


def checkpoints(folder, every):
    return ModelCheckpoint(folder, filename="{step}", every_n_train_steps=every, save_top_k=-1)


def run(folder, module, ckpt_path=None, every=1000, callback=None, then=(), **arguments):
    callback = callback or DQNLRCallback(random_policy(), epsilon=0.2, save_snapshot=True)
    run = trainer(
        callback,
        folder,
        **{"max_steps": STEPS, **arguments},
        enable_checkpointing=True,
        more_callbacks=[*then, checkpoints(folder, every)],
    )
    run.fit(module, batches(), ckpt_path=ckpt_path, **SAFELY)
    return callback


def module_of(optimizer):
    options = {"momentum": 0.9} if optimizer is torch.optim.SGD else {}
    return Net(optimizer, **options)


def assert_same(resumed, whole, steps):
    assert resumed.rates == whole.rates[-steps:]
    state, expected = resumed.state_dict(), whole.state_dict()
    assert all(torch.equal(state[name], expected[name]) for name in expected)


@pytest.mark.parametrize("optimizer", [torch.optim.SGD, torch.optim.AdamW])
@pytest.mark.parametrize("at", [2, 61])
def test_a_resumed_run_has_the_rates_and_weights_of_the_uninterrupted_one(tmp_path, optimizer, at):
    whole, resumed = module_of(optimizer), module_of(optimizer)
    expected = run(tmp_path, whole, every=at)
    saved = tmp_path / f"step={at}.ckpt"
    decided = [record["step"] for record in expected.trace]
    assert at == 2 or at not in decided, "this is meant to be the middle of an interval"
    callback = run(tmp_path / "resumed", resumed, ckpt_path=saved)
    assert_same(resumed, whole, STEPS - at)
    assert str(callback.trace) == str(expected.trace)  # a NaN is not equal to itself


class BlowsUp(Net):
    def training_step(self, batch, batch_idx):
        loss = super().training_step(batch, batch_idx)
        return loss * float("nan") if self.trainer.global_step in (66, 67) else loss


def test_the_state_to_go_back_to_survives_a_resume(tmp_path):
    whole, resumed = BlowsUp(), BlowsUp()
    expected = run(tmp_path, whole, every=66)
    callback = run(tmp_path / "resumed", resumed, ckpt_path=tmp_path / "step=66.ckpt")
    tripped = [record["step"] for record in expected.trace if record["tripped"]]
    assert any(67 <= step <= 70 for step in tripped)
    assert_same(resumed, whole, STEPS - 66)
    assert str(callback.trace) == str(expected.trace)  # a NaN is not equal to itself


def test_a_resume_within_accumulation_and_an_unknown_horizon_is_exact_too(tmp_path):
    whole, resumed = Net(), Net()
    arguments = {"accumulate_grad_batches": 5, "max_time": "00:01:00:00", "max_steps": 40}
    run(tmp_path, whole, every=17, **arguments)
    run(tmp_path / "resumed", resumed, ckpt_path=tmp_path / "step=17.ckpt", **arguments)
    assert_same_after(resumed, whole)


class First(Callback):
    """Like the control it puts itself first in the Trainer's list, but later."""

    def setup(self, trainer, pl_module, stage):
        trainer.callbacks = [self, *(c for c in trainer.callbacks if c is not self)]


class Saves(First):
    """Before the control: it saves when the step is made and its loss not yet counted."""

    def __init__(self, folder, at):
        self.folder, self.at = folder, at

    def on_train_batch_end(self, trainer, *_):
        path = self.folder / f"open-{trainer.global_step}.ckpt"
        # Within an accumulation window Lightning itself forgets the gradients.
        if trainer.global_step in self.at and not path.exists():
            trainer.save_checkpoint(path)


class Shifted(BlowsUp):
    def training_step(self, batch, batch_idx):
        loss = super().training_step(batch, batch_idx)
        self.log("shifted", loss + 1.0)
        return loss


@pytest.mark.parametrize("monitor", [None, "shifted"])
@pytest.mark.parametrize("accumulated", [1, 2])
def test_a_saver_before_the_control_resumes_exactly(tmp_path, monitor, accumulated):
    def control():
        return DQNLRCallback(random_policy(), epsilon=0.2, monitor=monitor, save_snapshot=True)

    steps = (1, 10, 51, 66, 67, 68, 69, 70)  # with ends of intervals, and around a trip
    whole, expected = Shifted(), control()
    arguments = {"accumulate_grad_batches": accumulated, "max_steps": 120}
    run(tmp_path, whole, callback=expected, then=[Saves(tmp_path, steps)], **arguments)
    assert any(record["tripped"] for record in expected.trace)
    decided = {record["step"] for record in expected.trace}
    assert decided & set(steps)
    assert set(steps) - decided
    for step in steps:
        resumed, callback = Shifted(), control()
        saved = tmp_path / f"open-{step}.ckpt"
        run(tmp_path / "on", resumed, ckpt_path=saved, callback=callback, **arguments)
        assert_same_after(resumed, whole)
        assert str(callback.trace) == str(expected.trace)


def test_a_saver_before_the_control_keeps_the_loss_without_its_scale(tmp_path):
    """The hook that tells of the loss tells of it scaled, where gradients are scaled."""
    losses = []

    class Looks(First):
        def on_train_batch_end(self, trainer, *_):
            losses.append(trainer.callbacks[1].state_dict()["open_loss"].item())

    module, control = Net(), DQNLRCallback(random_policy())
    plugin = MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu", init_scale=1024.0))
    run(tmp_path, module, callback=control, then=[Looks()], max_steps=20, plugins=plugin)
    assert losses == module.losses


def test_the_schedulers_state_between_a_step_and_its_loss_is_exact():
    whole, resumed = Loop(epsilon=0.3), Loop(epsilon=0.3)
    whole.run(40)
    whole.optimizer.zero_grad()
    loss = whole.loss()
    loss.backward()
    whole.optimizer.step()
    state = deepcopy(whole.state())
    for part, saved in zip((resumed.net, resumed.optimizer, resumed.scheduler), state, strict=True):
        part.load_state_dict(saved)
    for loop in (whole, resumed):
        loop.scheduler.step(loss.detach())
        loop.done = 41
        loop.run(60)
    assert resumed.rates == whole.rates[40:]
    assert str(resumed.scheduler.trace) == str(whole.scheduler.trace)


def test_a_run_that_is_stopped_in_a_trial_goes_on_with_it(tmp_path):
    def control():
        return DQNLRCallback(trying_policy(), save_snapshot=True)

    probe = run(tmp_path / "first", Net(), callback=control())
    trials = [record["trial"] for record in probe.trace]
    at = probe.trace[trials.index("going on")]["step"] + 1
    assert at not in {record["step"] for record in probe.trace}
    whole, resumed = Net(), Net()
    expected = run(tmp_path, whole, every=at, callback=control())
    saved = tmp_path / f"step={at}.ckpt"
    callback = run(tmp_path / "resumed", resumed, ckpt_path=saved, callback=control())
    assert_same(resumed, whole, STEPS - at)
    assert callback.trace == expected.trace
    assert "undone" in trials
    assert any("kept" in trial for trial in trials)


def assert_same_after(resumed, whole):
    state, expected = resumed.state_dict(), whole.state_dict()
    assert all(torch.equal(state[name], expected[name]) for name in expected)


KILLED = """
import os, signal, sys
from lightning.pytorch import Callback
from tests.host.control_runs import Net
from tests.host.test_callback_resume import run
import tests.host.test_callback_resume as resume

class Dies(Net):
    def training_step(self, batch, batch_idx):
        if self.trainer.global_step == 80:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().training_step(batch, batch_idx)

run(sys.argv[1], Dies(), every=61)
"""


def test_a_killed_process_resumes_exactly(tmp_path):
    root = Path(__file__).parents[2]
    environment = {**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}
    killed = subprocess.run(
        [sys.executable, "-c", KILLED, str(tmp_path)],
        cwd=root,
        env=environment,
        capture_output=True,
        check=False,
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr.decode()
    whole, resumed = Net(), Net()
    run(tmp_path / "whole", whole)
    run(tmp_path / "resumed", resumed, ckpt_path=tmp_path / "step=61.ckpt")
    assert_same(resumed, whole, STEPS - 61)


def test_a_longer_run_on_resume_is_said_and_followed(tmp_path, caplog):
    run(tmp_path, Net(), every=50)
    module = Net()
    with caplog.at_level(logging.WARNING, "lightning_dqnlr"):
        callback = run(tmp_path / "on", module, ckpt_path=tmp_path / "step=100.ckpt", max_steps=300)
    assert any("was 200 steps" in r.getMessage() for r in caplog.records)
    assert callback.state_dict()["driver"]["controller"]["horizon"] == 300
    assert callback.trace[-1]["step"] == 300


def test_a_checkpoint_without_the_callback_starts_control_at_that_point(tmp_path):
    plain = trainer(checkpoints(tmp_path, 40), tmp_path, max_steps=40, enable_checkpointing=True)
    plain.fit(Net(lr=1e-3), batches())
    callback = run(tmp_path / "on", Net(), ckpt_path=tmp_path / "step=40.ckpt")
    assert callback.trace[0]["step"] == 1
    assert callback.trace[-1]["step"] == STEPS - 40


def test_the_state_of_another_model_is_refused(tmp_path):
    run(tmp_path, Net(), every=60)
    content = torch.load(tmp_path / "step=60.ckpt", weights_only=True)
    content["callbacks"]["DQNLRCallback"]["driver"]["sizes"][0] += 1
    torch.save(content, tmp_path / "other.ckpt")
    with pytest.raises(ConfigurationError, match="another model"):
        run(tmp_path / "on", Net(), ckpt_path=tmp_path / "other.ckpt")
