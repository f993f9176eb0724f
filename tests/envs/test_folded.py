import pytest
import torch
from lightning import LightningModule
from torch import nn

from lightning_dqnlr.envs.folded import FoldedChannels
from lightning_dqnlr.envs.replicas import BatchOrder, Replicas
from lightning_dqnlr.tasks.task import Task

SEEDS = (3, 11, 4)
LAYERS = {
    "batch": lambda: nn.BatchNorm2d(6),
    "batch-momentum": lambda: nn.BatchNorm2d(6, eps=0.1, momentum=0.7),
    "batch-plain": lambda: nn.BatchNorm2d(6, affine=False),
    "batch-stateless": lambda: nn.BatchNorm2d(6, track_running_stats=False),
    "group": lambda: nn.GroupNorm(3, 6, eps=0.1),
    "group-plain": lambda: nn.GroupNorm(2, 6, affine=False),
    "pool": lambda: nn.AvgPool2d(2),
    "pool-padded": lambda: nn.AvgPool2d(3, stride=2, padding=1, count_include_pad=False),
    "max-pool": lambda: nn.MaxPool2d(2),
    "none": nn.Identity,
}


class Net(LightningModule):
    def __init__(self, layer):
        super().__init__()
        first, second = nn.Conv2d(2, 6, 3, padding=1), nn.Conv2d(6, 4, 3, stride=2)
        self.net = nn.Sequential(first, LAYERS[layer](), nn.Tanh(), second, nn.Flatten())
        self.head = nn.LazyLinear(3)
        self.head(self.net.eval()(torch.zeros(1, 2, 7, 7)))
        self.net.train()

    def training_step(self, batch, batch_idx):
        images, labels = batch
        return nn.functional.cross_entropy(self.head(self.net(images)), labels)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def make_task(layer):
    def build(seed):
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            return Net(layer)

    generator = torch.Generator().manual_seed(0)
    images = torch.randn(40, 2, 7, 7, generator=generator)
    data = (images, torch.randint(3, (40,), generator=generator))
    return Task("test", "test", 0, build, data, data, 8, "sgd", 20, True, None)


def alone(task, seed, steps):
    module = task.build(seed)
    optimizer, order = module.configure_optimizers(), BatchOrder(40, 8, [seed])
    for _ in range(steps):
        index = order.next()[0]
        loss = module.training_step(tuple(t[index] for t in task.train_data), 0)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return loss.detach(), module


@pytest.mark.parametrize("layer", LAYERS)
def test_folded_layers_keep_replicas_apart(layer):
    task = make_task(layer)
    replicas = Replicas(task, SEEDS)
    for _ in range(12):
        losses = replicas.backward()
        replicas.update(torch.full((3,), 0.1))
    evaluated = replicas.evaluate(task.validation_data)
    for r, seed in enumerate(SEEDS):
        loss, module = alone(task, seed, 12)
        torch.testing.assert_close(losses[r], loss, rtol=1e-4, atol=1e-5)
        weights = nn.utils.parameters_to_vector(module.parameters()).detach()
        torch.testing.assert_close(replicas.weights[r], weights, rtol=1e-4, atol=1e-5)
        for name, buffer in module.named_buffers():
            kept = replicas._buffers[f"module.{name}"][r]
            torch.testing.assert_close(kept, buffer, rtol=1e-4, atol=1e-5)
        final = module.eval().training_step(task.validation_data, 0)
        torch.testing.assert_close(evaluated[r], final.detach(), rtol=1e-4, atol=1e-5)


def test_layers_outside_of_replicas_are_left_as_they_are():
    images, norm = torch.randn(8, 6, 4, 4), nn.BatchNorm2d(6)
    expected = nn.BatchNorm2d(6)(images)
    with FoldedChannels():
        torch.testing.assert_close(norm(images), expected)
