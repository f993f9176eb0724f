"""What may be in a Trainer beside the callback: it must work, or be refused by name."""

from collections import OrderedDict

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_dqnlr import DQNLRCallback
from lightning_dqnlr.errors import UnsupportedTrainingError

from .control_runs import (
    SAFELY,
    Net,
    averaging,
    constant_policy,
    examples,
    finder_gives_back,
    loader,
    random_policy,
    trainer,
)

KEEP, QUADRUPLE = 3, 6


def fit(folder, callback, module, **arguments):
    run = trainer(callback, folder, **arguments)
    run.fit(module, loader())
    return run


class Regression(Net):
    """Zero weights, and a target that is a linear map of the inputs: the least loss is 0."""

    def __init__(self, optimizer):
        super().__init__(optimizer)
        self.net = nn.Linear(6, 1)
        nn.init.zeros_(self.net.weight)
        nn.init.zeros_(self.net.bias)

    def training_step(self, batch, batch_idx):
        inputs, _ = batch
        target = inputs @ torch.tensor([[3.0], [-2.0], [1.0], [0.5], [-0.5], [2.0]])
        loss = (self.net(inputs) - target).square().mean()
        self.losses.append(loss.item())
        return loss


@pytest.mark.parametrize("optimizer", [torch.optim.SGD, torch.optim.Adam])
def test_weights_that_all_begin_at_zero_are_trained(tmp_path, optimizer):
    module = Regression(optimizer)
    fit(tmp_path, DQNLRCallback(), module, max_epochs=25)
    assert sum(module.losses[-12:]) < 0.1 * sum(module.losses[:12])


class Words(Net):
    """A table of which the probe looks at some 1,000 of 400,000 numbers, and a batch at eight."""

    def __init__(self, masked=()):
        super().__init__(torch.optim.SGD)
        self.net = nn.Embedding(100_000, 4)
        self.masked = masked

    def training_step(self, batch, batch_idx):
        rows = torch.arange(100, 108)
        loss = (self.net(rows) - 1).square().mean() * (self.global_step not in self.masked)
        self.losses.append(loss.item())
        return loss


@pytest.mark.parametrize("masked", [(), (0,), (0, 1, 2, 3)])
def test_a_first_gradient_or_loss_of_zero_does_not_start_sgd_at_a_thousand(tmp_path, masked):
    module, callback = Words(masked), DQNLRCallback(constant_policy(KEEP))
    fit(tmp_path, callback, module, max_epochs=10)
    assert 0 < module.rates[0][0] < 1
    assert module.losses[-1] <= module.losses[4] > 0
    assert not any(record["tripped"] for record in callback.trace)


def saved(folder, module, **arguments):
    kept = ModelCheckpoint(folder, filename="end", save_last=False)
    fit(
        folder,
        DQNLRCallback(random_policy()),
        module,
        enable_checkpointing=True,
        more_callbacks=[kept],
        **arguments,
    )
    return folder / "end.ckpt"


class Examined(Net):
    def test_step(self, batch, batch_idx):  # for `Trainer.test`
        self.training_step(batch, batch_idx)


@pytest.mark.parametrize("looked", ["test", "fit"])
def test_a_checkpoint_that_was_only_looked_at_is_not_gone_on_with(tmp_path, looked):
    path = saved(tmp_path, Examined(), max_epochs=2)
    used = DQNLRCallback(random_policy())
    run = trainer(used, tmp_path, max_epochs=2)
    if looked == "test":
        run.test(Examined(), loader(), ckpt_path=path, **SAFELY)
    else:
        run.fit(Examined(), loader(), ckpt_path=path, **SAFELY)  # there is nothing left
        assert used.state_dict()["driver"]["controller"]["counters"][0] == 24  # if saved again
    module, expected = Examined(), Examined()
    fit(tmp_path, used, module, max_epochs=3)
    fit(tmp_path, DQNLRCallback(random_policy()), expected, max_epochs=3)
    assert module.rates == expected.rates
    assert len(used.trace) == len({record["step"] for record in used.trace})


@finder_gives_back
def test_what_a_finder_saves_and_restores_is_not_the_control_of_the_fit_before(tmp_path):
    used, module, expected = DQNLRCallback(random_policy()), Net(), Net()
    fit(tmp_path, used, Net(), max_epochs=2)
    finder = pl.callbacks.LearningRateFinder(num_training_steps=5)
    fit(tmp_path, used, module, max_epochs=3, more_callbacks=[finder])
    fit(tmp_path, DQNLRCallback(random_policy()), expected, max_epochs=3)
    assert used.controller.step == 36
    assert module.rates[-36:] == expected.rates


class Column(Net):
    def training_step(self, batch, batch_idx):
        return super().training_step(batch, batch_idx).reshape(1)


@pytest.mark.parametrize("accumulated", [1, 2])
def test_a_loss_of_one_element_is_as_good_as_a_scalar(tmp_path, accumulated):
    module, expected = Column(), Net()
    for net in (module, expected):
        callback = DQNLRCallback(random_policy())
        fit(tmp_path, callback, net, max_epochs=3, accumulate_grad_batches=accumulated)
    assert module.rates == expected.rates


class BlowsUp(Net):
    """The loss of one step is NaN, and so are the weights from then on."""

    def __init__(self, at=30, **options):
        super().__init__(**options)
        self.at = at

    def training_step(self, batch, batch_idx):
        loss = super().training_step(batch, batch_idx)
        return loss * (float("nan") if len(self.losses) == self.at else 1.0)


@pytest.mark.parametrize("first", ["control", "average"])
@pytest.mark.parametrize(
    ("average", "arguments"), [("EMAWeightAveraging", {"decay": 0.9}), ("WeightAveraging", {})]
)
def test_an_average_of_the_weights_forgets_what_was_undone(tmp_path, average, arguments, first):
    build = averaging(pl, average)
    module, control = BlowsUp(), DQNLRCallback(constant_policy(KEEP), horizon=512)
    average = build(**arguments)
    one, other = (control, average) if first == "control" else (average, control)
    fit(tmp_path, one, module, max_epochs=5, more_callbacks=[other])
    assert sum(record["tripped"] for record in control.trace) == 1
    assert all(torch.isfinite(p).all() for p in module.parameters())


class Momentum(BlowsUp):
    """A target network, the moving average of the trained one, by which the loss is made."""

    def __init__(self, held):
        super().__init__()
        self.held = held  # whether the optimizer has its parameters
        self.target = nn.Linear(6, 12).requires_grad_(False)

    def training_step(self, batch, batch_idx):
        with torch.no_grad():
            for mine, its in zip(self.target.parameters(), self.net[0].parameters(), strict=True):
                mine.data = 0.9 * mine.data + 0.1 * its.data
        loss = super().training_step(batch, batch_idx)
        return loss + 0.1 * self.target(batch[0]).square().mean()

    def configure_optimizers(self):
        return torch.optim.Adam((self if self.held else self.net).parameters())


@pytest.mark.parametrize("held", [False, True])
def test_a_target_network_forgets_what_was_undone(tmp_path, held):
    module, callback = Momentum(held), DQNLRCallback(constant_policy(KEEP), horizon=512)
    fit(tmp_path, callback, module, max_epochs=5)
    assert sum(record["tripped"] for record in callback.trace) == 1
    assert all(torch.isfinite(p).all() for p in module.parameters())


class Unfreezes(pl.Callback):
    def __init__(self, at):
        self.at, self.weight = at, None

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        layer = pl_module.net[0]
        layer.requires_grad_(trainer.global_step >= self.at)
        if trainer.global_step == self.at:
            self.weight = layer.weight.detach().clone()


class WeightAfterTrip(pl.Callback):
    def __init__(self, control):
        self.control, self.weight = control, None

    def on_train_batch_end(self, trainer, pl_module, *_):
        tripped = [record for record in self.control.trace if record["tripped"]]
        if tripped and self.weight is None:
            self.weight = pl_module.net[0].weight.detach().clone()


def test_a_layer_unfrozen_in_the_interval_that_blows_up_goes_back_too(tmp_path):
    module, control = BlowsUp(at=41), DQNLRCallback(constant_policy(KEEP), horizon=512)
    unfreezes, after = Unfreezes(at=38), WeightAfterTrip(control)
    fit(tmp_path, control, module, max_epochs=5, more_callbacks=[unfreezes, after])
    assert torch.equal(after.weight, unfreezes.weight)


class Lookahead(torch.optim.Optimizer):
    """A wrapper as it is often written: its __init__ does not call torch's."""

    def __init__(self, inner):
        self.inner = inner
        self.defaults, self.state, self.param_groups = {}, inner.state, inner.param_groups

    def step(self, closure=None):
        return self.inner.step(closure)


class WithHooks(Lookahead):
    """Torch makes it call them in `zero_grad`, which comes within the first step."""

    def __init__(self, inner):
        super().__init__(inner)
        self._optimizer_step_pre_hooks = OrderedDict()
        self._optimizer_step_post_hooks = OrderedDict()


class Silent(WithHooks):
    def zero_grad(self, set_to_none=True):
        self.inner.zero_grad(set_to_none)


class Wrapped(Net):
    def __init__(self, wrapper):
        super().__init__()
        self.wrapper = wrapper

    def configure_optimizers(self):
        return self.wrapper(super().configure_optimizers())


@pytest.mark.parametrize("wrapper", [Lookahead, Silent])
def test_an_optimizer_that_does_not_tell_of_its_steps_is_refused_by_name(tmp_path, wrapper):
    module = Wrapped(wrapper)
    with pytest.raises(UnsupportedTrainingError, match=f"{wrapper.__name__} does not tell"):
        fit(tmp_path, DQNLRCallback(constant_policy(KEEP)), module, max_epochs=1)
    assert len(module.losses) <= 2


def test_a_wrapper_that_tells_from_its_second_step_on_is_controlled(tmp_path):
    callback = DQNLRCallback(constant_policy(KEEP))
    fit(tmp_path, callback, Wrapped(WithHooks), max_epochs=2)
    assert callback.trace[-1]["step"] == 23


class WarmsUp(Net):
    def __init__(self, after):
        super().__init__()
        self.after = after

    def optimizer_step(self, epoch, batch_idx, optimizer, optimizer_closure=None):
        if not self.after:
            self.warm_up(optimizer)
        super().optimizer_step(epoch, batch_idx, optimizer, optimizer_closure)
        if self.after:
            self.warm_up(optimizer)

    def warm_up(self, optimizer):
        for group in optimizer.param_groups:
            group["lr"] = 0.01 * (self.global_step + 1)


@pytest.mark.parametrize("after", [False, True])
def test_a_warm_up_by_hand_is_said_once_and_overruled(tmp_path, caplog, after):
    module, expected = WarmsUp(after), Net()
    for net in (module, expected):
        callback = DQNLRCallback(random_policy(), horizon=512)  # intervals of several steps, too
        fit(tmp_path, callback, net, max_epochs=4)
        states = callback.trace
    assert module.losses == expected.losses
    assert [r["step"] for r in states] == sorted({r["step"] for r in states})
    assert sum("warm-up in optimizer_step" in r.getMessage() for r in caplog.records) == 1


def test_double_precision_is_trained(tmp_path):
    callback, module = DQNLRCallback(random_policy()), Net()
    inputs, labels = examples()
    run = trainer(callback, tmp_path, max_epochs=2, precision="64-true")
    run.fit(module, DataLoader(TensorDataset(inputs.double(), labels), 8))
    assert callback.trace[-1]["step"] == 24


def test_a_state_loaded_by_hand_is_gone_on_with(tmp_path):
    path = saved(tmp_path, Examined(), max_epochs=2)
    state = torch.load(path, weights_only=True)["callbacks"]["DQNLRCallback"]
    callback = DQNLRCallback(random_policy())
    callback.load_state_dict(state)
    fit(tmp_path, callback, Examined(), max_epochs=3)
    assert callback.controller.step == 24 + 36
