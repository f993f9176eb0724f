"""What only a GPU can show; skipped where there is none. `pytest tests/host/test_cuda.py -n 0`."""

from contextlib import contextmanager, nullcontext

import pytest
import torch
from torch import nn

from lightning_dqnlr import DQNLRCallback
from lightning_dqnlr.control.spec import ControllerSpec
from lightning_dqnlr.envs.environment import Terms
from lightning_dqnlr.envs.vector import VectorLREnv
from lightning_dqnlr.host.options import ControlOptions
from lightning_dqnlr.host.timed_driver import TimedDriver
from lightning_dqnlr.policy.policy import LRPolicy
from lightning_dqnlr.tasks.families.basic import DigitsCNNs, TeacherMLPs
from lightning_dqnlr.tasks.task import Task

from .control_runs import Net, constant_policy, loader, random_policy, trainer
from .test_callback_resume import run as run_to_the_end

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


@contextmanager
def no_host_sync():
    """Raises at whatever makes the host wait for the device."""
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_no_step_between_decisions_makes_the_host_wait():
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(64, 300), nn.Tanh(), nn.Linear(300, 1)).cuda()
    optimizer = torch.optim.AdamW(module.parameters())
    options = ControlOptions(horizon=1000)
    driver = TimedDriver(optimizer, LRPolicy.load("default"), options, module=module)
    inputs, controller, quiet = torch.randn(32, 64, device="cuda"), driver.controller, 0
    for number in range(1, 401):
        optimizer.zero_grad()
        loss = module(inputs).square().mean()
        loss.backward()
        decides = number == controller.step + controller.interval
        with nullcontext() if decides else no_host_sync():
            driver.before_step()
            optimizer.step()
            driver.after_step()
            assert driver.finish_step(loss.detach()) == decides
        quiet += not decides
    assert quiet > 300


class Placed(Net):
    def training_step(self, batch, batch_idx):
        self.seen_on = batch[0].device.type
        return super().training_step(batch, batch_idx)


def in_a_trainer_on(device, folder):
    callback, module = DQNLRCallback(random_policy(seed=3), horizon=200), Placed(lr=1.0)
    run = trainer(callback, folder, max_steps=60, accelerator=device, devices=1)
    run.fit(module, loader())
    return callback, module


def rates(callback):
    return [record["lr"] for record in callback.trace]


def test_a_trainer_on_the_gpu_takes_the_rates_of_one_on_the_cpu(tmp_path):
    on_cpu, _ = in_a_trainer_on("cpu", tmp_path)
    on_gpu, module = in_a_trainer_on("cuda", tmp_path)
    assert module.seen_on == "cuda"
    assert len(rates(on_gpu)) > 15
    assert rates(on_gpu) == pytest.approx(rates(on_cpu), rel=1e-2)


@pytest.mark.parametrize("precision", ["16-mixed", "bf16-mixed"])
@pytest.mark.parametrize("fused", [False, True])
def test_mixed_precision_counts_real_steps_only_and_learns(tmp_path, precision, fused):
    callback = DQNLRCallback()
    run = trainer(
        callback, tmp_path, max_steps=300, accelerator="cuda", devices=1, precision=precision
    )
    module = Net(optimizer=torch.optim.AdamW, fused=fused)
    run.fit(module, loader())
    skipped = run.global_step - callback.controller.step
    assert 0 <= skipped < 30  # a gradient scaler begins by finding its scale
    assert skipped == 0 or precision == "16-mixed"
    assert sum(module.losses[-12:]) < 0.5 * sum(module.losses[:12])


@pytest.mark.parametrize("family", [TeacherMLPs, DigitsCNNs])
def test_replicas_on_the_gpu_take_the_rates_of_those_on_the_cpu(family):
    task, policy = small_task(family), random_policy(seed=3)
    on_cpu, on_gpu = (in_the_environment(task, policy, device) for device in ("cpu", "cuda"))
    assert on_gpu.device.type == "cuda"
    torch.testing.assert_close(on_gpu.cpu(), on_cpu, rtol=1e-2, atol=0.0)


def small_task(family) -> Task:
    tasks = family(
        optimizers=["adam"], min_horizon=180, max_horizon=220, known_horizon_probability=1.0
    )
    return tasks.sample(0, "train")


def in_the_environment(task, policy, device):
    env = VectorLREnv(task, policy.spec, (5, 6), Terms(), device=device)
    observation, lrs = env.reset(), [env.controller.lr]
    for _ in range(12):
        observation = env.step(policy.act(observation.cpu()).to(device)).observation
        lrs.append(env.controller.lr)
    return torch.stack(lrs)


def test_a_blown_up_run_comes_back_on_the_gpu(tmp_path):
    spec = ControllerSpec(max_update_ratio=1e9)
    largest = spec.actions.multipliers.index(max(spec.actions.multipliers))
    callback = DQNLRCallback(constant_policy(largest, spec))
    module = Net(optimizer=torch.optim.SGD)
    trainer(callback, tmp_path, max_steps=200, accelerator="cuda", devices=1).fit(module, loader())
    assert any(record["tripped"] for record in callback.trace)
    assert all(bool(p.isfinite().all()) for p in module.parameters())


def test_a_run_resumed_on_the_gpu_takes_the_rates_of_the_uninterrupted_one(tmp_path):
    whole = run_to_the_end(tmp_path, Net(), every=61, accelerator="cuda", devices=1)
    saved = tmp_path / "step=61.ckpt"
    resumed = run_to_the_end(tmp_path, Net(), ckpt_path=saved, accelerator="cuda", devices=1)
    assert resumed.trace[:15] == whole.trace[:15]
    assert rates(resumed) == pytest.approx(rates(whole), rel=1e-4)
