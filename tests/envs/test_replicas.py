import pytest
import torch
from lightning import LightningModule
from torch import nn

from lightning_dqnlr.envs.replicas import BatchOrder, Replicas
from lightning_dqnlr.envs.replicated_optimizer import configured_optimizer
from lightning_dqnlr.errors import UnsupportedTrainingError
from lightning_dqnlr.tasks.optimizers import OptimizerSpec
from lightning_dqnlr.tasks.task import Task

SEEDS = (3, 11, 4)
RATES = (0.003, 0.01, 0.03)
OPTIMIZERS = [
    OptimizerSpec("sgd"),
    OptimizerSpec("sgd", weight_decay=0.1),
    OptimizerSpec("momentum", weight_decay=0.01),
    OptimizerSpec("nesterov"),
    OptimizerSpec("adam"),
    OptimizerSpec("adam", weight_decay=0.1),
    OptimizerSpec("adamw", weight_decay=0.1),
    OptimizerSpec("rmsprop"),
    OptimizerSpec("signum", weight_decay=0.01),
    OptimizerSpec("robbins_monro", weight_decay=0.01),
]


class Net(LightningModule):
    def __init__(self, optimizer, norm=False):
        super().__init__()
        self.optimizer = optimizer
        middle = nn.BatchNorm1d(12) if norm else nn.LayerNorm(12)
        # A bias before BatchNorm has no gradient but rounding noise, which Adam would amplify.
        first = nn.Linear(6, 12, bias=not norm)
        self.net = nn.Sequential(first, middle, nn.Tanh(), nn.Linear(12, 3))

    def training_step(self, batch, batch_idx):
        inputs, labels = batch
        return nn.functional.cross_entropy(self.net(inputs), labels)

    def configure_optimizers(self):
        return self.optimizer.build(self.parameters(), lr=0.1)


class Tied(Net):
    """One weight under two names."""

    def __init__(self, optimizer):
        super().__init__(optimizer)
        self.net = nn.Sequential(nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 6))
        self.net[2].weight = self.net[0].weight


class Branching(Net):
    def training_step(self, batch, batch_idx):
        loss = super().training_step(batch, batch_idx)
        return loss if loss > 0 else -loss


def make_task(optimizer, module=Net, clip=None, horizon=60, **arguments):
    def build(seed):
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            return module(optimizer, **arguments)

    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(50, 6, generator=generator)
    data = (inputs, torch.randint(3, (50,), generator=generator))
    return Task("test", "test", 0, build, data, data, 8, optimizer.name, horizon, True, clip)


def plain_loop(task, seed, rates):
    """The same run with torch.optim alone; returns losses and the final module."""
    module = task.build(seed)
    optimizer = module.configure_optimizers()
    order, losses = BatchOrder(50, 8, [seed]), []
    for rate in rates:
        index = order.next()[0]
        loss = module.training_step(tuple(t[index] for t in task.train_data), 0)
        optimizer.zero_grad()
        loss.backward()
        if task.gradient_clip is not None:
            nn.utils.clip_grad_norm_(module.parameters(), task.gradient_clip)
        optimizer.param_groups[0]["lr"] = rate
        optimizer.step()
        losses.append(loss.detach())
    return torch.stack(losses), module


@pytest.mark.parametrize("norm", [False, True], ids=["layernorm", "batchnorm"])
@pytest.mark.parametrize("optimizer", OPTIMIZERS, ids=lambda o: f"{o.name}-{o.weight_decay}")
@pytest.mark.parametrize("clip", [None, 0.3])
def test_every_replica_equals_a_plain_loop_with_its_own_changing_rate(optimizer, norm, clip):
    task = make_task(optimizer, clip=clip, norm=norm)
    replicas, rows = Replicas(task, SEEDS), []
    factors = [1.0] * 20 + [2.0] * 20 + [0.1] * 20
    # At 0.03, RMSprop turns a rounding error of 1e-7 in the initial weights into 3e-3 at the end.
    rates = [rate / 3 if optimizer.name == "rmsprop" else rate for rate in RATES]
    for factor in factors:
        rows.append(replicas.backward())
        replicas.update(factor * torch.tensor(rates))
    losses = torch.stack(rows)
    for r, (seed, rate) in enumerate(zip(SEEDS, rates, strict=True)):
        expected, module = plain_loop(task, seed, [factor * rate for factor in factors])
        torch.testing.assert_close(losses[:, r], expected, rtol=2e-3, atol=2e-4)
        weights = nn.utils.parameters_to_vector(module.parameters())
        torch.testing.assert_close(replicas.weights[r], weights, rtol=5e-3, atol=1e-3)
        module.eval()
        with torch.no_grad():
            final = module.training_step(task.train_data, 0)
        evaluated = replicas.evaluate(task.train_data)[r]
        torch.testing.assert_close(evaluated, final, rtol=5e-3, atol=1e-3)


def test_tiny_rates_are_not_lost_in_rounding():
    task = make_task(OptimizerSpec("adam"))
    replicas = Replicas(task, SEEDS)
    before = replicas.weights.clone()
    replicas.backward()
    replicas.update(torch.full((3,), 1e-6))
    moved = (replicas.weights - before).abs()
    # Adam's first update is lr in every coordinate with a gradient.
    assert moved.median().item() == pytest.approx(1e-6, rel=0.05)


def test_restore_brings_back_the_last_snapshot_but_one_of_the_masked_replicas_only():
    task = make_task(OptimizerSpec("momentum"), norm=True)
    replicas, rate = Replicas(task, SEEDS), torch.full((3,), 0.05)
    states = []

    def advance_and_snapshot(mask):
        for _ in range(3):
            replicas.backward()
            replicas.update(rate)
        states.append({name: value.clone() for name, value in replicas._state().items()})
        replicas.snapshot(torch.tensor(mask))

    advance_and_snapshot([True, True, True])
    advance_and_snapshot([True, True, False])
    advance_and_snapshot([True, False, True])
    assert any("momentum_buffer" in name for name in states[0])
    assert any("running_mean" in name for name in states[0])
    replicas.restore(torch.tensor([True, True, False]))
    for name, value in replicas._state().items():
        assert torch.equal(value[0], states[1][name][0]), name
        assert torch.equal(value[1], states[0][name][1]), name
        assert torch.equal(value[2], states[2][name][2]), name
    advance_and_snapshot([True, True, False])  # follows the restored state
    replicas.restore(torch.tensor([True, True, True]))
    for name, value in replicas._state().items():
        assert torch.equal(value[0], states[1][name][0]), name
        assert torch.equal(value[2], states[0][name][2]), name


def test_data_order_depends_on_the_seed_alone():
    together, alone = BatchOrder(20, 6, [1, 2, 3]), BatchOrder(20, 6, [2])
    for _ in range(7):
        assert torch.equal(together.next()[1], alone.next()[0])


def test_an_epoch_repeats_no_example_and_drops_the_rest():
    order = BatchOrder(20, 6, [5])
    epoch = torch.cat([order.next()[0] for _ in range(3)])
    assert len(epoch.unique()) == 18


class Recurrent(Net):
    """torch has no batching rule for a GRU without gradients."""

    def __init__(self, optimizer):
        super().__init__(optimizer)
        self.net = nn.GRU(1, 4, batch_first=True)

    def training_step(self, batch, batch_idx):
        return self.net(batch[0].unsqueeze(-1))[0].square().mean()


def test_a_recurrent_layer_trains_and_evaluates_as_it_does_alone():
    task = make_task(OptimizerSpec("sgd"), module=Recurrent)
    replicas = Replicas(task, SEEDS)
    for _ in range(5):
        replicas.backward()
        replicas.update(torch.tensor(RATES))
    for r, (seed, rate) in enumerate(zip(SEEDS, RATES, strict=True)):
        _, module = plain_loop(task, seed, [rate] * 5)
        final = module.training_step(task.train_data, 0)
        torch.testing.assert_close(replicas.evaluate(task.train_data)[r], final.detach())


def test_a_python_branch_on_a_tensor_is_refused_with_the_modules_name():
    task = make_task(OptimizerSpec("sgd"), module=Branching)
    replicas = Replicas(task, SEEDS)
    for use in (replicas.backward, lambda: replicas.evaluate(task.train_data)):
        with pytest.raises(UnsupportedTrainingError, match=r"Branching.*env=trainer"):
            use()


LINEAR_IN_THE_RATE = {
    "sgd-dampening": lambda p: torch.optim.SGD(p, 1.0, momentum=0.9, dampening=0.5),
    "adagrad": lambda p: torch.optim.Adagrad(p, 1.0, lr_decay=0.1, weight_decay=0.01),
    "adadelta": lambda p: torch.optim.Adadelta(p, 1.0, weight_decay=0.01),
    "adamax": lambda p: torch.optim.Adamax(p, 1.0, weight_decay=0.01),
    "nadam": lambda p: torch.optim.NAdam(p, 1.0, weight_decay=0.1, decoupled_weight_decay=True),
    "radam": lambda p: torch.optim.RAdam(p, 1.0, weight_decay=0.1),
    "amsgrad": lambda p: torch.optim.AdamW(p, 1.0, amsgrad=True, weight_decay=0.1),
    "rmsprop": lambda p: torch.optim.RMSprop(p, 1.0, momentum=0.9, centered=True),
}


class Built:
    """An optimizer as users build it, in the place of an `OptimizerSpec`."""

    def __init__(self, name):
        self.name = name

    def build(self, parameters, lr):
        return LINEAR_IN_THE_RATE[self.name](list(parameters))


@pytest.mark.parametrize("name", LINEAR_IN_THE_RATE)
def test_every_optimizer_that_is_taken_steps_as_it_does_alone(name):
    task = make_task(Built(name))
    replicas, rows = Replicas(task, SEEDS), []
    for _ in range(30):
        rows.append(replicas.backward())
        replicas.update(torch.tensor(RATES))
    for r, (seed, rate) in enumerate(zip(SEEDS, RATES, strict=True)):
        expected, _ = plain_loop(task, seed, [rate] * 30)
        torch.testing.assert_close(torch.stack(rows)[:, r], expected, rtol=2e-3, atol=2e-4)


class Unknown(torch.optim.Adam):
    """Whatever this does, it is not known to be linear."""


@pytest.mark.parametrize(
    "optimizer",
    [
        lambda p: torch.optim.Rprop(p),
        lambda p: Unknown(p),
        lambda p: torch.optim.SGD(p, 0.1, maximize=True),
    ],
)
def test_an_optimizer_not_known_to_be_linear_is_refused(optimizer):
    LINEAR_IN_THE_RATE["unknown"] = optimizer
    try:
        with pytest.raises(UnsupportedTrainingError, match="env=trainer"):
            Replicas(make_task(Built("unknown")), SEEDS)
    finally:
        del LINEAR_IN_THE_RATE["unknown"]


class Scheduled(Net):
    """A tenth of the rate in one group, a warm-up that begins at zero, and momentum cycled."""

    def configure_optimizers(self):
        first, *rest = self.parameters()
        groups = [{"params": rest}, {"params": first, "lr": 0.01}]
        optimizer = torch.optim.SGD(groups, 0.1, momentum=0.7)
        schedulers = torch.optim.lr_scheduler
        warm_up = schedulers.LambdaLR(optimizer, lambda step: min(1.0, step / 9))
        cycle = schedulers.OneCycleLR(optimizer, [0.1, 0.01], 100)
        return [optimizer], [{"scheduler": warm_up, "interval": "step"}, cycle]


def test_schedulers_beside_the_optimizer_are_taken_off():
    optimizer = configured_optimizer(Scheduled(None))
    assert [group["momentum"] for group in optimizer.param_groups] == [0.7, 0.7]
    slow, fast = sorted(group["lr"] for group in optimizer.param_groups)
    assert slow == pytest.approx(fast / 10)


def test_a_weight_under_two_names_is_trained_as_one():
    task = make_task(OptimizerSpec("momentum"), module=Tied)
    replicas = Replicas(task, SEEDS)
    assert replicas.weights.shape == (3, 36 + 6 + 6)
    for _ in range(20):
        losses = replicas.backward()
        replicas.update(torch.full((3,), 0.1))
    for r, seed in enumerate(SEEDS):
        expected, module = plain_loop(task, seed, [0.1] * 20)
        torch.testing.assert_close(losses[r], expected[-1], rtol=1e-4, atol=1e-5)
        weights = nn.utils.parameters_to_vector(module.parameters())
        torch.testing.assert_close(replicas.weights[r], weights, rtol=1e-4, atol=1e-5)
