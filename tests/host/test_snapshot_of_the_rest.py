"""What else belongs to a training state: it comes back, or is refused by name."""

import copy

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import nn

from lightning_dqnlr import DQNLRCallback, DQNLRScheduler
from lightning_dqnlr.control.probe import Probe, real_shape
from lightning_dqnlr.errors import UnsupportedTrainingError
from lightning_dqnlr.host.rehearsal import rehearsed
from lightning_dqnlr.host.snapshot import Snapshot

from .control_runs import SAFELY, Loop, Net, constant_policy, loader, random_policy, trainer

KEEP = 3


class Several(torch.optim.Optimizer):
    """Two optimizers in one, as combinations of Muon and AdamW are written."""

    def __init__(self, parameters, lr):
        parameters = list(parameters)
        super().__init__(parameters, {"lr": lr})
        adam = torch.optim.Adam(parameters[:2], lr=lr)
        self.inside = [adam, torch.optim.SGD(parameters[2:], lr=lr, momentum=0.9)]

    def step(self, closure=None):
        for optimizer in self.inside:
            for group in optimizer.param_groups:
                group["lr"] = self.param_groups[0]["lr"]
            optimizer.step()


def test_optimizers_inside_a_wrapper_forget_what_was_undone():
    loop = Loop(Several, constant_policy(KEEP))
    loop.run(60, poison=(30,))
    assert sum(record["tripped"] for record in loop.scheduler.trace) == 1
    states = [s for o in loop.optimizer.inside for s in o.state.values()]
    assert all(torch.as_tensor(v).isfinite().all() for s in states for v in s.values())


class Averaged(Net):
    """Keeps a copy of its network, which it never froze, as a moving average."""

    def __init__(self):
        super().__init__()
        self.average = copy.deepcopy(self.net)

    def training_step(self, batch, batch_idx):
        with torch.no_grad():
            pairs = zip(self.average.parameters(), self.net.parameters(), strict=True)
            for mine, its in pairs:
                mine.lerp_(its, 0.1)
        loss = super().training_step(batch, batch_idx)
        return loss * (float("nan") if len(self.losses) == 30 else 1.0)

    def configure_optimizers(self):
        return torch.optim.Adam(self.net.parameters(), lr=self.lr)


def test_a_trainable_copy_kept_as_an_average_forgets_what_was_undone(tmp_path):
    module, control = Averaged(), DQNLRCallback(constant_policy(KEEP), horizon=512)
    trainer(control, tmp_path, max_epochs=5).fit(module, loader())
    assert sum(record["tripped"] for record in control.trace) == 1
    assert all(p.isfinite().all() for p in module.parameters())
    hooks = [p._post_accumulate_grad_hooks for p in module.average.parameters()]
    assert not any(hooks)


class Packed(torch.Tensor):
    """A quantised state like torchao's: plain tensors inside, and no clone."""

    @staticmethod
    def __new__(cls, codes):
        return torch.Tensor._make_wrapper_subclass(cls, codes.shape, dtype=torch.float32)

    def __init__(self, codes):
        self.codes = codes

    def __tensor_flatten__(self):
        return ["codes"], ()

    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), kwargs=None):
        if function is torch.ops.aten.detach.default:
            return cls(args[0].codes)
        raise NotImplementedError(f"{function} of a packed tensor")


class Opaque(Packed):
    __tensor_flatten__ = property(lambda self: self.nothing)


class Quantised(torch.optim.Optimizer):
    def __init__(self, parameters, lr, kind=Packed):
        super().__init__(parameters, {"lr": lr})
        self.kind = kind

    @torch.no_grad()
    def step(self, closure=None):
        for p in self.param_groups[0]["params"]:
            state = self.state[p]
            if not state:
                state["momentum"] = self.kind(torch.zeros_like(p))
            state["momentum"].codes.mul_(0.9).add_(p.grad)
            p.sub_(self.param_groups[0]["lr"] * state["momentum"].codes)


def test_the_parts_of_a_state_that_cannot_be_cloned_come_back():
    loop = Loop(Quantised, constant_policy(KEEP))
    loop.run(60, poison=(30,))
    assert sum(record["tripped"] for record in loop.scheduler.trace) == 1
    codes = [state["momentum"].codes for state in loop.optimizer.state.values()]
    assert all(c.isfinite().all() and c.abs().sum() > 0 for c in codes)


def opaque(parameters, lr):
    return Quantised(parameters, lr, Opaque)


UNCOPYABLE = r"'state/0/momentum' of the training state cannot be copied.*circuit_breaker=False"


def test_a_state_that_cannot_be_copied_is_refused_before_the_first_step():
    with pytest.raises(UnsupportedTrainingError, match=UNCOPYABLE):
        Loop(opaque, constant_policy(KEEP))
    Loop(opaque, constant_policy(KEEP), circuit_breaker=False).run(3)


def test_what_no_copy_of_the_optimizer_can_tell_is_refused_when_it_is_met():
    class Peculiar(Quantised):
        def __init__(self, parameters, lr):
            super().__init__(parameters, lr, Opaque)
            self.kinds = [Opaque]  # not a plain setting, so a copy lacks it

        def step(self, closure=None):
            self.kind = self.kinds[0]
            super().step(closure)

    loop = Loop(Peculiar, constant_policy(KEEP))
    with pytest.raises(UnsupportedTrainingError, match=UNCOPYABLE):
        loop.run(3)


def test_the_rehearsal_leaves_weights_state_random_numbers_and_wrappers_alone():
    class Random(torch.optim.SGD):
        def step(self, closure=None):
            torch.rand(1)
            return super().step(closure)

    weight = nn.Parameter(torch.ones(2, 2))
    weight.grad = torch.ones(2, 2)
    optimizer = Random([weight], lr=0.1, momentum=0.9)
    torch.optim.lr_scheduler.StepLR(optimizer, 1)  # puts a wrapper around `step`
    seen = []
    optimizer.register_step_post_hook(lambda *_: seen.append(1))
    torch.manual_seed(0)
    assert [list(state) for state in rehearsed(optimizer)] == [["momentum_buffer"]]
    drawn = torch.rand(1)
    torch.manual_seed(0)
    assert torch.equal(drawn, torch.rand(1))
    assert (len(optimizer.state), seen) == (0, [])
    assert torch.equal(weight, torch.ones(2, 2))


def test_buffers_of_inference_mode_and_on_no_device_do_no_harm():
    net = nn.Linear(2, 1)
    with torch.inference_mode():
        net.register_buffer("made", torch.ones(2))
    net.register_buffer("nowhere", torch.empty(3, device="meta"))
    frozen = nn.Parameter(torch.empty(1, 2, device="meta"), requires_grad=False)
    net.register_parameter("unloaded", frozen)
    snapshot = Snapshot(torch.optim.SGD([net.weight], lr=0.1), net)
    snapshot.take(0)
    with torch.inference_mode():
        net.made.fill_(7.0)
    net.weight.data.fill_(9.0)
    snapshot.restore()
    assert net.made.tolist() == [1, 1]
    assert net.weight.abs().max() < 1


def test_the_probe_sees_imaginary_parts():
    weight = torch.tensor([1 + 2j, 3 - 4j])
    probe = Probe([real_shape(weight)])
    assert probe.read([weight]).tolist() == [1, 2, 3, -4]
    assert probe.read([weight.conj()]).tolist() == [1, -2, 3, 4]
    assert probe.lecun_norm == Probe([(2,)]).lecun_norm
    assert Probe([real_shape(torch.zeros((), dtype=torch.complex64))]).total == 2


def test_a_run_of_imaginary_updates_is_seen_to_move():
    weight = nn.Parameter(torch.tensor([1 + 1j, 1 - 1j]))
    optimizer = torch.optim.SGD([weight], lr=1.0)
    scheduler = DQNLRScheduler(optimizer, constant_policy(KEEP), horizon=50)
    for _ in range(10):
        optimizer.zero_grad()
        loss = (weight.imag - 3).square().sum()
        loss.backward()
        optimizer.step()
        scheduler.step(loss)
    assert float(scheduler._driver.controller.update_ratio) > 1e-5


class Ruined(Net):
    def training_step(self, batch, batch_idx):
        loss = super().training_step(batch, batch_idx)
        return loss * (float("nan") if self.global_step == 26 else 1.0)


@pytest.mark.parametrize("kept", [True, False])
def test_checkpoints_hold_the_copies_only_if_asked_to(tmp_path, kept):
    def fit(ckpt_path=None):
        module = Ruined()
        saves = ModelCheckpoint(tmp_path, filename="{step}", every_n_train_steps=24, save_top_k=-1)
        control = DQNLRCallback(constant_policy(KEEP), horizon=1000, save_snapshot=kept)
        more = [] if ckpt_path else [saves]
        arguments = {"max_epochs": 4, "enable_checkpointing": not ckpt_path}
        run = trainer(control, tmp_path, more_callbacks=more, **arguments)
        run.fit(module, loader(), ckpt_path=ckpt_path, **SAFELY)
        return module, control

    _, expected = fit()
    content = torch.load(tmp_path / "step=24.ckpt", weights_only=True)
    saved = content["callbacks"]["DQNLRCallback"]["driver"]["snapshot"]
    assert (saved is not None) == kept
    resumed, control = fit(tmp_path / "step=24.ckpt")
    tripped = [record for record in control.trace if record["tripped"]]
    assert len(tripped) == 1
    assert all(p.isfinite().all() for p in resumed.parameters())
    assert kept == (str(control.trace) == str(expected.trace))
    if not kept:
        assert "restored step 24;" in tripped[0]["reason"]


def test_copies_in_the_hosts_memory_give_the_same_run():
    runs = []
    for place in ("device", "cpu"):
        loop = Loop(policy=random_policy(), snapshot=place)
        loop.run(60, poison=(30,))
        runs.append(loop.rates)
    assert runs[0] == runs[1]
