import copy

import pytest
import torch
from torch import nn
from torch.func import functional_call, grad_and_value, stack_module_state, vmap

from lightning_dqnlr.tasks import DigitsCNNs, DigitsMLPs, NoisyQuadratics, TeacherMLPs

FAMILIES = (NoisyQuadratics, DigitsMLPs, TeacherMLPs, DigitsCNNs)
REPLICAS = 3

every_family = pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
every_seed = pytest.mark.parametrize("seed", range(6))


class TrainingStep(nn.Module):
    """Lets `functional_call`, which only calls `forward`, reach a module's training_step."""

    def __init__(self, module):
        super().__init__()
        self.module = module

    def forward(self, *batch):
        return self.module.training_step(batch, 0)


def set_dropout(module, probability):
    for layer in module.modules():
        if isinstance(layer, nn.Dropout):
            layer.p = probability


def replicas_of(task):
    """Three modules with their own weights, in float64 so that sums in another order agree."""
    modules = [task.build(seed).double().train() for seed in range(REPLICAS)]
    for module in modules:
        set_dropout(module, 0.0)
    return modules


def batches_of(task):
    """One batch per replica: tensors of shape (replicas, batch, ...)."""
    size = REPLICAS * task.batch_size
    batch = (t[:size].reshape(REPLICAS, -1, *t.shape[1:]) for t in task.train_data)
    return tuple(t.double() if t.is_floating_point() else t for t in batch)


def vmapped_step(modules):
    params, buffers = stack_module_state([TrainingStep(module) for module in modules])
    skeleton = TrainingStep(copy.deepcopy(modules[0]))

    def loss_of(params, buffers, *batch):
        return functional_call(skeleton, (params, buffers), batch)

    step = vmap(grad_and_value(loss_of), randomness="different")
    return step, {name: value.detach() for name, value in params.items()}, buffers


@every_family
@every_seed
def test_replicas_under_vmap_equal_plain_modules(family, seed):
    task = family().sample(seed)
    modules, batches = replicas_of(task), batches_of(task)
    step, params, buffers = vmapped_step(modules)
    gradients, losses = step(params, buffers, *batches)
    for index, module in enumerate(modules):
        loss = module.training_step(tuple(t[index] for t in batches), 0)
        loss.backward()
        torch.testing.assert_close(losses[index], loss.detach(), rtol=1e-9, atol=1e-12)
        for name, parameter in module.named_parameters():
            torch.testing.assert_close(
                gradients[f"module.{name}"][index], parameter.grad, rtol=1e-6, atol=1e-9
            )
        for name, buffer in module.named_buffers():  # BatchNorm's statistics, above all
            torch.testing.assert_close(buffers[f"module.{name}"][index], buffer)


@every_family
@every_seed
def test_float32_losses_under_vmap_equal_plain_losses(family, seed):
    task = family().sample(seed)
    modules = [module.float() for module in replicas_of(task)]
    batches = tuple(t.float() if t.is_floating_point() else t for t in batches_of(task))
    step, params, buffers = vmapped_step(modules)
    _, losses = step(params, buffers, *batches)
    plain = [m.training_step(tuple(t[i] for t in batches), 0) for i, m in enumerate(modules)]
    torch.testing.assert_close(losses, torch.stack(plain).detach(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("family", [DigitsMLPs, DigitsCNNs])
def test_dropout_masks_differ_between_equal_replicas(family):
    tasks = (family().sample(seed) for seed in range(100))
    task = next(t for t in tasks if any(isinstance(m, nn.Dropout) for m in t.build(0).modules()))
    module = task.build(0).train()
    set_dropout(module, 0.5)
    step, params, buffers = vmapped_step([module, copy.deepcopy(module)])
    batch = tuple(t[:32].expand(2, -1, *t.shape[1:]) for t in (x[:32] for x in task.train_data))
    _, losses = step(params, buffers, *batch)
    assert losses[0] != losses[1]
