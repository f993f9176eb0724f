"""`DQNLRScheduler` where one of torch's schedulers is expected: in loops that pass it no loss."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.optim.lr_scheduler import LRScheduler

from lightning_dqnlr import DQNLRScheduler
from lightning_dqnlr.errors import CallOrderError

from .control_runs import Loop, Reads, constant_policy, examples, random_policy

pytest.importorskip("accelerate")

from .other_homes import accelerated

KEEP = 3


class WithLoss(nn.Module):
    """A model that computes its loss itself, and returns it in one of the usual ways."""

    def __init__(self, way):
        super().__init__()
        self.way, self.net = way, nn.Linear(6, 2)

    def forward(self, inputs, labels):
        logits = self.net(inputs)
        loss = nn.functional.cross_entropy(logits, labels)
        return {"dict": {"loss": loss, "logits": logits}, "tuple": (loss, logits)}[self.way]


def test_accelerate_prepares_saves_and_resumes_it_and_steps_it_once_a_window(tmp_path):
    whole, rates = accelerated(tmp_path, random_policy(), 60)
    assert isinstance(whole, LRScheduler)
    assert whole.trace[-1]["step"] == whole.last_epoch == 30
    resumed, same = accelerated(tmp_path, random_policy(), 60, resume=True)
    assert same == rates[30:]
    assert resumed.last_epoch == 30
    assert len(set(same)) > 3
    assert [r["loss"] for r in resumed.trace] == [r["loss"] for r in whole.trace]


def test_the_loss_of_a_window_is_the_mean_of_its_batches(tmp_path):
    passed, observed = Loop(), Loop()
    for loop in (passed, observed):
        for _ in range(20):
            losses = []
            for _ in range(2):
                losses.append(loop.loss())
                (losses[-1] / 2).backward()
                loop.done += 1
            loop.optimizer.step()
            if loop is passed:
                loop.scheduler.step(sum(losses) / 2)
            else:
                for loss in losses:
                    loop.scheduler.observe(loss)
                loop.scheduler.step()
            loop.optimizer.zero_grad()
    assert observed.scheduler.trace == passed.scheduler.trace


@pytest.mark.parametrize("way", ["dict", "tuple"])
def test_a_model_that_returns_its_loss_is_followed_and_its_validation_is_not(way):
    model = WithLoss(way)
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    scheduler = DQNLRScheduler(optimizer, constant_policy(KEEP), horizon=9, loss_from=model)
    inputs, labels = examples()
    seen = []
    for _ in range(9):
        with torch.no_grad():
            model(inputs + 9, 1 - labels)
        optimizer.zero_grad()
        output = model(inputs, labels)
        loss = output["loss"] if way == "dict" else output[0]
        loss.backward()
        optimizer.step()
        scheduler.step()
        seen.append(loss.item())
    assert scheduler.trace[0]["loss"] == pytest.approx(seen[0])
    assert scheduler.trace[-1]["step"] >= 6
    scheduler.close()
    assert not model._forward_hooks


def test_a_step_without_any_loss_and_one_too_early_are_errors():
    loop = Loop()
    loop.loss().backward()
    loop.optimizer.step()
    with pytest.raises(CallOrderError, match=r"loss_from=model"):
        loop.scheduler.step()
    loop = Loop()
    loop.scheduler.observe(loop.loss())
    with pytest.raises(CallOrderError, match=r"without an optimizer step"):
        loop.scheduler.step()


def test_a_loss_that_was_observed_beside_one_that_is_passed_is_no_part_of_a_later_step():
    loop = Loop()
    loop.scheduler.observe(7.0)
    loop.run(1)
    loop.loss().backward()
    loop.optimizer.step()
    with pytest.raises(CallOrderError, match=r"loss_from=model"):
        loop.scheduler.step()


def test_calls_for_the_other_processes_of_accelerate_wait_for_no_device(monkeypatch):
    monkeypatch.setattr("lightning_dqnlr.host.scheduler.world_size", lambda: 4)
    loop = Loop()
    loop.run(1)
    with Reads() as reads:
        for _ in range(3):
            loop.scheduler.step()
    assert reads.count == 0
    with pytest.raises(CallOrderError, match=r"without an optimizer step"):
        loop.scheduler.step()


def test_gradients_are_seen_before_the_loop_clips_them_if_it_says_so():
    def rates(clips, looks):
        loop = Loop(lambda p, lr: torch.optim.SGD(p, lr))
        for _ in range(12):
            loop.optimizer.zero_grad()
            loss = loop.loss()
            loss.backward()
            if looks:
                loop.scheduler.look()
            if clips:
                nn.utils.clip_grad_norm_(loop.net.parameters(), 1e-3)
            loop.optimizer.step()
            loop.scheduler.step(loss)
        return [record["lr"] for record in loop.scheduler.trace]

    assert rates(clips=True, looks=True)[0] == rates(clips=False, looks=False)[0]
    assert rates(clips=True, looks=False)[0] > 10 * rates(clips=True, looks=True)[0]


def test_two_processes_of_a_trainer_and_of_accelerate_share_their_rates(tmp_path):
    random_policy().save(tmp_path / "policy")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    place = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    running = [
        subprocess.Popen(
            [sys.executable, "-m", "tests.host.other_homes", str(tmp_path)],
            env={
                **os.environ,
                **place,
                "RANK": rank,
                "LOCAL_RANK": rank,
                "ACCELERATE_USE_CPU": "1",
            },
            cwd=Path(__file__).parents[2],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in "01"
    ]
    found = []
    for process in running:
        output, errors = process.communicate(timeout=300)
        lines = [line for line in output.splitlines() if line.startswith("RATES")]
        assert lines, errors
        found.append(json.loads(lines[0].removeprefix("RATES")))
    assert found[0] == found[1]
    whole, resumed, _ = found[0]
    assert len(whole) > 5
    assert len(set(whole)) > 3
    assert resumed[:4] == whole[:4]
