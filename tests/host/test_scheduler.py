import logging
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from lightning.fabric import Fabric
from torch import nn

from lightning_dqnlr import DQNLRScheduler
from lightning_dqnlr.control.probe import Probe
from lightning_dqnlr.errors import (
    CallOrderError,
    ConfigurationError,
    NonFiniteLossError,
    UnsupportedTrainingError,
)

from .control_runs import Loop, constant_policy, examples, random_policy

KEEP, QUADRUPLE = 3, 6


def test_a_plain_loop_is_controlled_without_lightning_being_loaded(tmp_path):
    folder = random_policy().save(tmp_path / "policy")
    code = f"""
import sys, torch
from lightning_dqnlr import DQNLRScheduler
from lightning_dqnlr.control.probe import Probe
net = torch.nn.Linear(4, 1)
optimizer = torch.optim.SGD(net.parameters(), lr=10.0)
scheduler = DQNLRScheduler(optimizer, {str(folder)!r}, horizon=50)
for _ in range(50):
    optimizer.zero_grad()
    loss = (net(torch.randn(8, 4)) - 1).square().mean()
    loss.backward()
    optimizer.step()
    scheduler.step(loss)
assert scheduler.trace[-1]["step"] == 50
unwanted = {{"lightning", "pytorch_lightning", "transformers", "accelerate", "huggingface_hub"}}
print(unwanted & set(sys.modules))
"""
    root = Path(__file__).parents[2]
    shown = subprocess.run(
        [sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=False
    )
    assert shown.stdout.strip() == "set()", shown.stderr


def test_saved_in_the_middle_of_an_interval_it_goes_on_exactly(tmp_path):
    whole = Loop(epsilon=0.3, save_snapshot=True)
    whole.run(70)
    torch.save(whole.state(), tmp_path / "state.pt")
    whole.run(50, poison=(80,))
    resumed = Loop(epsilon=0.3)
    states = torch.load(tmp_path / "state.pt", weights_only=True)
    for part, state in zip(
        (resumed.net, resumed.optimizer, resumed.scheduler), states, strict=True
    ):
        part.load_state_dict(state)
    resumed.done = 70
    resumed.run(50, poison=(80,))
    assert resumed.rates == whole.rates[70:]
    assert any(record["tripped"] for record in whole.scheduler.trace)
    assert all(
        torch.equal(a, b)
        for a, b in zip(
            resumed.net.state_dict().values(), whole.net.state_dict().values(), strict=True
        )
    )


def test_a_group_that_joins_between_decisions_keeps_its_ratio_and_a_resume_changes_nothing():
    """It joins in the middle of an interval, at a tenth of the reference's rate of that moment."""
    whole = Loop(horizon=1000, epsilon=0.5)
    whole.run(300)
    decisions = len(whole.scheduler.trace)
    with_newcomer(whole, 0.1 * whole.scheduler.get_last_lr()[0]).run(1)
    saved = whole.state()
    assert len(whole.scheduler.trace) == decisions, "this is meant to be within an interval"
    resumed = with_newcomer(Loop(), 1.0)
    resumed.net.load_state_dict(saved[0])
    resumed.optimizer.load_state_dict(saved[1])
    resumed.scheduler.close()  # a Trainer, too, makes the control once the optimizer is restored
    resumed.scheduler = DQNLRScheduler(
        resumed.optimizer, random_policy(), horizon=1000, epsilon=0.5, module=resumed.net
    )
    resumed.scheduler.load_state_dict(saved[2])
    resumed.done = whole.done
    for _ in range(60):
        whole.run(1)
        resumed.run(1)
        first, newcomer = whole.scheduler.get_last_lr()
        assert newcomer == pytest.approx(0.1 * first)
        assert resumed.scheduler.get_last_lr() == [first, newcomer]
    assert len(set(whole.rates[-60:])) > 1


def with_newcomer(loop, lr):
    """The loop, whose optimizer has got one more group; its parameter never moves."""
    loop.optimizer.add_param_group({"params": [nn.Parameter(torch.ones(3))], "lr": lr})
    return loop


def test_a_state_saved_before_the_first_step_loads():
    fresh, other = Loop(), Loop()
    other.scheduler.load_state_dict(fresh.scheduler.state_dict())
    other.run(10)
    fresh.run(10)
    assert other.rates == fresh.rates


def test_loading_a_state_sets_the_learning_rate_whatever_the_optimizer_had():
    loop, other = Loop(), Loop()
    loop.run(50)
    other.scheduler.load_state_dict(loop.scheduler.state_dict())
    assert other.scheduler.get_last_lr() == loop.scheduler.get_last_lr()


def test_a_state_that_is_kept_in_memory_does_not_change_with_the_run():
    loop = Loop(save_snapshot=True)
    loop.run(50)
    state = loop.scheduler.state_dict()
    copies = [copy["saved"] for copy in state["snapshot"]["copies"]]
    assert len(copies) == 2
    saved = [{k: v.clone() for k, v in c.items() if k.startswith("weight")} for c in copies]
    vectors = state["telemetry"]["vectors"].clone()
    loop.run(50)
    for copy, before in zip(copies, saved, strict=True):
        assert all(torch.equal(copy[k], v) for k, v in before.items())
    assert torch.equal(state["telemetry"]["vectors"], vectors)


@pytest.mark.parametrize("epsilon", [0.0, 0.5])
def test_the_network_runs_once_per_decision(epsilon):
    policy, calls = random_policy(), []
    policy.network.register_forward_hook(lambda *_: calls.append(1))
    loop = Loop(policy=policy, epsilon=epsilon)
    loop.run(60)
    assert len(calls) == len(loop.scheduler.trace) > 10


def test_a_state_that_an_older_version_saved_goes_on_at_the_rates_of_that_version():
    """Saved at commit 7154b4c after 70 steps, with the rates of the 40 steps that followed."""
    saved = torch.load(Path(__file__).parent / "scheduler_state_0.1.0.pt", weights_only=True)
    net = nn.Linear(6, 1)
    optimizer = torch.optim.Adam(net.parameters(), lr=5.0)
    policy = random_policy(seed=1)
    scheduler = DQNLRScheduler(optimizer, policy, horizon=400, epsilon=0.3, module=net)
    for part, name in ((net, "net"), (optimizer, "optimizer"), (scheduler, "scheduler")):
        part.load_state_dict(saved[name])
    inputs, labels = examples()
    rates = []
    for step in range(70, 110):
        index = torch.arange(step * 8, step * 8 + 8) % len(inputs)
        optimizer.zero_grad()
        loss = (net(inputs[index]).squeeze(1) - labels[index].float()).square().mean()
        loss.backward()
        optimizer.step()
        rates.append(scheduler.get_last_lr()[0])
        scheduler.step(loss)
    assert rates == pytest.approx(saved["rates"], rel=1e-4)
    assert len(set(rates)) == 8


def test_a_horizon_of_numpy_is_saved_as_plain_data(tmp_path):
    for given in (Loop(horizon=np.int64(200)), Loop(horizon=400)):
        given.scheduler.load_state_dict(Loop(horizon=np.int64(200)).scheduler.state_dict())
        given.run(20)
        torch.save(given.scheduler.state_dict(), tmp_path / "state.pt")
        saved = torch.load(tmp_path / "state.pt", weights_only=True)
        assert saved["controller"]["horizon"] == given.scheduler._driver.options.horizon


def test_step_without_an_optimizer_step_is_an_error():
    loop = Loop()
    with pytest.raises(CallOrderError, match=r"optimizer\.step\(\)"):
        loop.scheduler.step(torch.tensor(1.0))
    loop.run(2)
    with pytest.raises(CallOrderError, match=r"once after each"):
        loop.scheduler.step(1.0)


def test_a_step_that_the_gradient_scaler_skips_does_not_count():
    loop = Loop(policy=constant_policy(KEEP))
    loop.run(3)
    scaler = torch.amp.GradScaler("cpu")
    factors = (1.0, float("inf"), 1.0)
    for factor in factors:
        loop.optimizer.zero_grad()
        loss = loop.loss()
        (scaler.scale(loss) * factor).backward()
        scaler.step(loop.optimizer)
        scaler.update()
        loop.scheduler.step(loss)
    assert loop.scheduler.state_dict()["telemetry"]["counters"][1] == 5


def test_gradients_of_a_fused_optimizer_are_unscaled_and_its_skipped_steps_do_not_count():
    def first_rate(scaled, fused):
        loop = Loop(lambda p, lr: torch.optim.SGD(p, lr, fused=fused), constant_policy(KEEP))
        scaler = torch.amp.GradScaler("cpu", enabled=scaled)
        for factor in (float("inf"), 1.0) if scaled else (1.0,):
            loop.optimizer.zero_grad()
            loss = loop.loss()
            (scaler.scale(loss) * factor).backward()
            scaler.step(loop.optimizer)
            scaler.update()
            loop.scheduler.step(loss)
        assert loop.scheduler.state_dict()["telemetry"]["counters"][1] == 1
        return loop.scheduler.trace[0]["lr"]

    assert first_rate(True, True) == pytest.approx(first_rate(False, True), rel=1e-5)
    assert first_rate(True, False) == pytest.approx(first_rate(False, False), rel=1e-5)


@pytest.mark.parametrize("loss", [torch.ones(3), [1.0, 2.0]])
def test_a_loss_that_is_not_a_scalar_is_an_error(loss):
    loop = Loop()
    loop.run(1)
    with pytest.raises(ConfigurationError, match=r"loss must be a scalar.*mean"):
        loop.scheduler.step(loss)


def test_a_closure_is_refused_because_its_gradients_cannot_be_seen():
    loop = Loop()
    with pytest.raises(UnsupportedTrainingError, match="closure"):
        loop.optimizer.step(lambda: loop.loss())


def test_a_first_loss_that_is_not_finite_is_an_error():
    with pytest.raises(NonFiniteLossError, match="first step is nan"):
        Loop().run(1, poison=(0,))


def test_an_optimizer_without_a_learning_rate_is_refused_by_name():
    optimizer = torch.optim.SGD([nn.Parameter(torch.ones(2))], lr=1.0)
    optimizer.param_groups[0]["lr"] = None
    with pytest.raises(ConfigurationError, match=r"lr=None in parameter groups \[0\]"):
        DQNLRScheduler(optimizer, constant_policy(KEEP))


def test_the_state_of_another_version_is_refused_by_what_it_lacks():
    loop = Loop()
    loop.run(3)
    state = loop.scheduler.state_dict()
    state["trace"] = state.pop("record")["trace"]
    with pytest.raises(ConfigurationError, match=r"lacks \['record'\]"):
        Loop().scheduler.load_state_dict(state)


def test_the_state_of_a_version_that_remembered_less_is_refused_by_what_it_lacks():
    loop = Loop()
    loop.run(3)
    state = loop.scheduler.state_dict()
    del state["controller"]["history"]["undone"]
    with pytest.raises(ConfigurationError, match=r"history lacks \['undone'\]"):
        Loop().scheduler.load_state_dict(state)


def test_another_horizon_on_resume_is_said_and_followed_and_none_keeps_the_saved_one(caplog):
    first = Loop(horizon=200)
    first.run(5)
    state = first.scheduler.state_dict()
    for given, horizon in ((400, 400), (None, 200)):
        loop, caplog.records[:] = Loop(horizon=given), []
        caplog.clear()
        with caplog.at_level(logging.WARNING, "lightning_dqnlr"):
            loop.scheduler.load_state_dict(state)
        assert ("was 200 steps" in caplog.text) == (given == 400)
        assert loop.scheduler.state_dict()["controller"]["horizon"] == horizon


def test_a_learning_rate_that_the_loop_sets_too_is_said_once_and_overruled(caplog):
    loop, expected = Loop(), Loop()
    for step in range(20):
        loop.optimizer.param_groups[0]["lr"] = 2.0 + step
        loop.run(1)
        expected.run(1)
    assert loop.rates == expected.rates
    said = [r.getMessage() for r in caplog.records if "something else set" in r.getMessage()]
    assert len(said) == 1
    assert "set the learning rate to 3, where" in said[0]  # 2 was before the start


class Hookless(torch.optim.SGD):
    def __init__(self, inner):
        self.defaults, self.state, self.param_groups = {}, inner.state, inner.param_groups


def test_an_optimizer_without_hooks_is_refused_by_name():
    inner = torch.optim.SGD([nn.Parameter(torch.ones(2))], lr=1.0)
    with pytest.raises(UnsupportedTrainingError, match="Hookless does not tell of its steps"):
        DQNLRScheduler(Hookless(inner), constant_policy(KEEP))


def test_going_back_leaves_alone_what_another_optimizer_trains():
    other = nn.Linear(6, 8)
    other_optimizer = torch.optim.SGD(other.parameters(), lr=0.1)
    loop = Loop(policy=constant_policy(KEEP))
    loop.net.add_module("other", other)  # in the module whose buffers are kept
    loop.net.forward = lambda x: nn.Sequential(*list(loop.net)[:4])(x)
    for _ in range(40):
        loop.run(1, poison=(30,))
        other(loop.inputs).sum().backward()
        other_optimizer.step()
        before = other.weight.detach().clone()
        if loop.scheduler.trace[-1]["tripped"]:
            assert torch.equal(other.weight, before)
            other_optimizer.zero_grad()
    assert any(record["tripped"] for record in loop.scheduler.trace)
    assert other.weight.detach().mean() < -5  # 40 steps down, none of them taken back


def test_lbfgs_and_other_objects_are_refused():
    net = nn.Linear(2, 1)
    with pytest.raises(UnsupportedTrainingError, match="LBFGS"):
        DQNLRScheduler(torch.optim.LBFGS(net.parameters()), constant_policy(KEEP))
    with pytest.raises(ConfigurationError, match="optimizer must be"):
        DQNLRScheduler(net, constant_policy(KEEP))


@pytest.mark.parametrize("columns_first", [False, True])
def test_the_probe_sees_parameters_that_move_and_any_layout_of_memory(columns_first):
    weights = [torch.randn(60, 50), torch.randn(9)]
    if columns_first:
        weights[0] = torch.randn(50, 60).t()
    probe = Probe([(3000,), (9,)], max_coordinates=100)
    for _ in range(2):
        for change in (lambda w: w.mul_(-2.0), lambda w: w.set_(w.clone() + 1.0)):
            flat = torch.cat([w.reshape(-1) for w in weights])
            assert torch.equal(probe.read_parameters(weights), probe.read_flat(flat))
            assert torch.equal(probe.read(weights), probe.read_flat(flat))
            for weight in weights:
                change(weight)


def test_closing_takes_both_hooks_off_and_leaves_the_rate():
    loop = Loop()
    loop.run(5)
    rate = loop.scheduler.get_last_lr()
    loop.scheduler.close()
    loop.scheduler.close()
    assert not loop.optimizer._optimizer_step_pre_hooks
    assert not loop.optimizer._optimizer_step_post_hooks
    assert loop.scheduler.get_last_lr() == rate


def test_plain_floats_will_do_as_losses():
    net = nn.Linear(2, 1)
    optimizer = torch.optim.SGD(net.parameters(), lr=1.0)
    scheduler = DQNLRScheduler(optimizer, constant_policy(KEEP), horizon=10)
    for _ in range(5):
        loss = net(torch.ones(1, 2)).square().sum()
        loss.backward()
        optimizer.step()
        scheduler.step(loss.item())
    assert scheduler.trace[0]["loss"] > 0


def test_parameters_without_a_gradient_and_frozen_ones_do_no_harm():
    net = nn.ModuleList([nn.Linear(6, 2), nn.Linear(50, 50), nn.Embedding(30, 6, sparse=True)])
    net[1].weight.requires_grad_(False)
    optimizer = torch.optim.SGD(net.parameters(), lr=1.0)
    scheduler = DQNLRScheduler(
        optimizer, constant_policy(QUADRUPLE), horizon=50, save_snapshot=True
    )
    for step in range(20):
        optimizer.zero_grad()
        loss = net[0](net[2](torch.tensor([step, step + 1]))).square().sum()
        loss.backward()
        optimizer.step()
        scheduler.step(loss)
    assert scheduler.trace[-1]["step"] >= 17
    state = scheduler.state_dict()
    assert state["sizes"] == [12, 2, 50, 180]  # the frozen 50 x 50 weights are not looked at
    assert all("weight/2" not in copy["saved"] for copy in state["snapshot"]["copies"])


def test_fabrics_wrapper_of_an_optimizer_is_controlled():
    fabric = Fabric(accelerator="cpu", devices=1)
    net = nn.Linear(6, 2)
    net, optimizer = fabric.setup(net, torch.optim.AdamW(net.parameters(), lr=10.0))
    scheduler = DQNLRScheduler(optimizer, constant_policy(KEEP), horizon=20)
    inputs, labels = examples()
    for _ in range(10):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(net(inputs), labels)
        fabric.backward(loss)
        optimizer.step()
        scheduler.step(loss)
    assert scheduler.trace[-1]["step"] >= 8
    assert optimizer.param_groups[0]["lr"] == scheduler.trace[-1]["next_lr"] < 1e-2
