"""What the tests of the callback, the scheduler and the three hosts share: a policy and tasks."""

import atexit
from inspect import signature

import lightning.pytorch
import pytest
import pytorch_lightning
import torch
from lightning.pytorch import LightningModule, Trainer
from packaging.version import Version
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.data import DataLoader, TensorDataset

from lightning_dqnlr import DQNLRScheduler
from lightning_dqnlr.control.spec import ControllerSpec, TrialSpec
from lightning_dqnlr.policy.network import QNetwork
from lightning_dqnlr.policy.policy import LRPolicy


def leave_process_group():
    """Else threads of gloo may abort a process as it ends (pytorch/pytorch issue 190489)."""
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


atexit.register(leave_process_group)  # of the spawned processes: Lightning leaves NCCL's only

# Checkpoints are loaded safely where this Lightning can: `fit` and `test` are asked for it.
SAFELY = {"weights_only": True} if "weights_only" in signature(Trainer.fit).parameters else {}


# Before, the steps of Lightning's finder were taken off the run that follows, without us too.
finder_gives_back = pytest.mark.skipif(
    Version(lightning.__version__) < Version("2.5.5"),
    reason="the finder counts its steps",
)


def random_policy(seed=0, spec=None):
    """A Q-network of random weights whose actions vary and whose Q-values never tie."""
    spec = spec or ControllerSpec()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = QNetwork(len(spec.features), len(spec.actions))
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if name.startswith("advantage"):
                parameter.mul_(30.0)
    return LRPolicy(network, spec)


def constant_policy(action, spec=None):
    """A policy that always takes one action."""
    spec = spec or ControllerSpec()
    network = QNetwork(len(spec.features), len(spec.actions), hidden=(), dueling=False)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.zero_()
        network.advantage[0].bias[action] = 1.0
    return LRPolicy(network, spec)


def trying_policy():
    """A policy that keeps its rate, under trials of higher ones that any gain keeps."""
    trials = TrialSpec(margin=0.0, pause=2, least_steps=1)
    spec = ControllerSpec(trials=trials)
    return constant_policy(spec.actions.keep, spec)


class Stateful:
    """A data loader that a resumed run finds where the checkpoint left it."""

    def __init__(self, batches):
        self.batches, self.position = batches, 0

    def __len__(self):
        return len(self.batches)

    def __iter__(self):
        while self.position < len(self.batches):
            self.position += 1
            yield self.batches[self.position - 1]
        self.position = 0

    def state_dict(self):
        return {"position": self.position}

    def load_state_dict(self, state):
        self.position = state["position"]


def examples(count=96, seed=0):
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(count, 6, generator=generator)
    return inputs, (inputs[:, :3].sum(1) > 0).long()


def loader(batch_size=8, **arguments):
    return DataLoader(TensorDataset(*examples()), batch_size=batch_size, **arguments)


class NetBody:
    """A small classifier; records the learning rates and the raw losses of its steps."""

    def __init__(self, optimizer=torch.optim.Adam, lr=10.0, **options):
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(1)
            self.net = nn.Sequential(
                nn.Linear(6, 12), nn.BatchNorm1d(12), nn.Tanh(), nn.Linear(12, 2)
            )
        self.build, self.lr, self.options = optimizer, lr, options
        self.rates, self.losses = [], []

    def training_step(self, batch, batch_idx):
        inputs, labels = batch
        loss = nn.functional.cross_entropy(self.net(inputs), labels)
        self.losses.append(loss.item())
        return loss

    def optimizer_step(self, epoch, batch_idx, optimizer, optimizer_closure=None):
        super().optimizer_step(epoch, batch_idx, optimizer, optimizer_closure)
        self.rates.append([float(group["lr"]) for group in optimizer.param_groups])

    def configure_optimizers(self):
        return self.build(self.parameters(), lr=self.lr, **self.options)


class Net(NetBody, LightningModule):
    """For a Trainer of `lightning.pytorch`."""


class OldNet(NetBody, pytorch_lightning.LightningModule):
    """For a Trainer of `pytorch_lightning`, which has all classes a second time."""


def trainer(callback, folder, library=lightning.pytorch, **arguments):
    defaults = {
        "logger": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "enable_checkpointing": False,
        "accelerator": "cpu",
        "default_root_dir": folder,
    }
    callbacks = [callback, *arguments.pop("more_callbacks", ())]
    return library.Trainer(callbacks=callbacks, **{**defaults, **arguments})


def averaging(library, name):
    """One of Lightning's averages of weights; a version that has none skips the test."""
    return getattr(library.callbacks, name, None) or pytest.skip(f"no {name} in this Lightning")


class Reads(TorchDispatchMode):
    """Counts the tensors whose value the host asks for, which makes it wait for a device."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.count += "local_scalar_dense" in str(function)
        return function(*args, **(kwargs or {}))


class Loop:
    """A plain training loop whose batches depend on the step's number only."""

    def __init__(self, optimizer=torch.optim.Adam, policy=None, wrap=None, **arguments):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(2)
            self.net = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 2))
        self.optimizer = optimizer(self.net.parameters(), lr=5.0)
        arguments = {"horizon": 200, "module": self.net, **arguments}
        self.scheduler = DQNLRScheduler(self.optimizer, policy or random_policy(), **arguments)
        self.inputs, self.labels = examples()
        self.done, self.rates = 0, []

    def loss(self):
        index = torch.arange(self.done * 8, self.done * 8 + 8) % len(self.inputs)
        return nn.functional.cross_entropy(self.net(self.inputs[index]), self.labels[index])

    def run(self, steps, poison=()):
        for _ in range(steps):
            self.optimizer.zero_grad()
            loss = self.loss() * (float("nan") if self.done in poison else 1.0)
            loss.backward()
            self.optimizer.step()
            self.rates.append(self.scheduler.get_last_lr()[0])
            self.scheduler.step(loss)
            self.done += 1

    def state(self):
        parts = (self.net, self.optimizer, self.scheduler)
        return [part.state_dict() for part in parts]
