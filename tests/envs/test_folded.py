import pytest
import torch
from lightning import LightningModule
from torch import nn
from torch.func import grad, vmap

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
    "grouped": lambda: nn.Conv2d(6, 6, 3, padding="same", groups=3, dilation=2, bias=False),
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


def test_a_vmap_within_the_module_keeps_its_own_batch():
    """Two images per replica mapped over once more: the inner batch is 2, the outer 3."""
    weights, images = torch.randn(3, 5, 4, 3, 3), torch.randn(3, 2, 8, 4, 6, 6)

    def outer(weight, batches):
        return vmap(lambda batch: nn.functional.conv2d(batch, weight, padding=1))(batches)

    with FoldedChannels():
        mapped = vmap(outer)(weights, images)
    for r in range(3):
        for i in range(2):
            expected = nn.functional.conv2d(images[r, i], weights[r], padding=1)
            torch.testing.assert_close(mapped[r, i], expected, rtol=1e-4, atol=1e-5)


def test_gradients_taken_within_vmap_are_right_too():
    """There, layers meet tensors of `grad`, which are no replicas."""
    weights, images = torch.randn(3, 5, 4, 3, 3), torch.randn(3, 8, 4, 6, 6)

    def loss(weight, batch):
        hidden = nn.functional.conv2d(batch, weight, padding=1)
        return nn.functional.avg_pool2d(nn.functional.group_norm(hidden, 5), 2).square().sum()

    with FoldedChannels():
        gradients = vmap(grad(loss))(weights, images)
    for r in range(3):
        torch.testing.assert_close(
            gradients[r], grad(loss)(weights[r], images[r]), rtol=1e-4, atol=1e-4
        )


def test_layers_called_by_keyword_take_their_own_way():
    weights, images = torch.randn(3, 5, 4, 3, 3), torch.randn(3, 8, 4, 6, 6)
    with FoldedChannels():
        mapped = vmap(lambda w, x: nn.functional.conv2d(input=x, weight=w))(weights, images)
        joined = vmap(lambda x: torch.cat([x, x]))(images)
    torch.testing.assert_close(
        mapped[2], nn.functional.conv2d(images[2], weights[2]), rtol=1e-4, atol=1e-5
    )
    torch.testing.assert_close(joined[1], torch.cat([images[1], images[1]]))
