import copy

import pytest
import torch
from torch import nn
from torch.func import functional_call, grad_and_value, stack_module_state, vmap

from lightning_dqnlr.envs.replicas import Replicas
from lightning_dqnlr.tasks import DigitsCNNs, DigitsMLPs, NoisyQuadratics, TextTransformers
from tests.tasks.every_family import every_family

REPLICAS = 3

every_seed = pytest.mark.parametrize("seed", range(3))


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


def batches_of(task, step=0):
    """One batch per replica: tensors of shape (replicas, batch, ...)."""
    size = REPLICAS * task.batch_size
    index = torch.arange(step * size, (step + 1) * size) % len(task.train_data[0])
    batch = (t[index].reshape(REPLICAS, -1, *t.shape[1:]) for t in task.train_data)
    return tuple(t.double() if t.is_floating_point() else t for t in batch)


def vmapped_step(modules):
    params, buffers = stack_module_state([TrainingStep(module) for module in modules])
    skeleton = TrainingStep(copy.deepcopy(modules[0]))

    def loss_of(params, buffers, *batch):
        return functional_call(skeleton, (params, buffers), batch)

    step = vmap(grad_and_value(loss_of), randomness="different")
    return step, {name: value.detach() for name, value in params.items()}, buffers


def downhill(parameter, gradient):
    """A step that is small whatever the scale of the task."""
    return parameter - 1e-2 * gradient / (1.0 + gradient.norm())


@every_family
@every_seed
def test_three_steps_under_vmap_equal_three_steps_of_plain_modules(family, seed):
    task = family().sample(seed)
    modules = replicas_of(task)
    gradients_of, params, buffers = vmapped_step(modules)
    for step in range(3):
        batches = batches_of(task, step)
        gradients, losses = gradients_of(params, buffers, *batches)
        params = {name: vmap(downhill)(p, gradients[name]) for name, p in params.items()}
        for index, module in enumerate(modules):
            module.zero_grad()
            loss = module.training_step(tuple(t[index] for t in batches), 0)
            loss.backward()
            torch.testing.assert_close(losses[index], loss.detach(), rtol=1e-8, atol=1e-12)
            for name, p in module.named_parameters():
                gradient = gradients[f"module.{name}"][index]
                torch.testing.assert_close(gradient, p.grad, rtol=1e-6, atol=1e-8)
                p.data = downhill(p.data, p.grad)
            for name, buffer in module.named_buffers():  # BatchNorm's statistics, above all
                torch.testing.assert_close(buffers[f"module.{name}"][index], buffer)


@every_family
def test_replicas_of_every_family_train_and_are_evaluated_in_the_engine(family):
    replicas = Replicas(family().sample(2), [0, 1])
    for _ in range(2):
        assert replicas.backward().isfinite().all()
        replicas.update(torch.full((2,), 1e-4))
    assert replicas.evaluate(replicas.task.validation_data).isfinite().all()
    assert replicas.gradient.abs().amax(1).min() > 0.0


@every_family
def test_replicas_can_be_evaluated_under_vmap_without_gradients(family):
    # As nn.GRU cannot be: its fused kernel is what runs when no gradient is asked for.
    task = family().sample(1)
    modules = [module.eval() for module in replicas_of(task)]
    params, buffers = stack_module_state([TrainingStep(module) for module in modules])
    skeleton = TrainingStep(copy.deepcopy(modules[0]))
    batch = tuple(t[0] for t in batches_of(task))
    with torch.no_grad():
        losses = vmap(
            lambda p, b: functional_call(skeleton, (p, b), batch), randomness="different"
        )(params, buffers)
        plain = torch.stack([module.training_step(batch, 0) for module in modules])
    torch.testing.assert_close(losses, plain, rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("rotated", [True, False])
def test_closed_form_of_the_quadratics_equals_vmap(rotated, dtype):
    tasks = (NoisyQuadratics().sample(seed) for seed in range(100))
    task = next(t for t in tasks if (t.build(0).rotation is not None) == rotated)
    modules = [module.to(dtype) for module in replicas_of(task)]
    batch = tuple(t.to(dtype) for t in batches_of(task))
    gradients_of, params, buffers = vmapped_step(modules)
    expected, expected_losses = gradients_of(params, buffers, *batch)
    plain = {name.removeprefix("module."): value for name, value in buffers.items()}
    gradients, losses = modules[0].gradients_and_losses(params["module.theta"], plain, batch)
    tolerance = {"rtol": 1e-4, "atol": 1e-5} if dtype == torch.float32 else {}
    torch.testing.assert_close(gradients, expected["module.theta"], **tolerance)
    torch.testing.assert_close(losses, expected_losses, **tolerance)


@every_family
def test_float32_losses_under_vmap_equal_plain_losses(family):
    task = family().sample(3)
    modules = [module.float() for module in replicas_of(task)]
    batches = tuple(t.float() if t.is_floating_point() else t for t in batches_of(task))
    step, params, buffers = vmapped_step(modules)
    _, losses = step(params, buffers, *batches)
    plain = [m.training_step(tuple(t[i] for t in batches), 0) for i, m in enumerate(modules)]
    torch.testing.assert_close(losses, torch.stack(plain).detach(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("family", [DigitsMLPs, DigitsCNNs, TextTransformers])
def test_dropout_masks_differ_between_equal_replicas(family):
    tasks = (family().sample(seed) for seed in range(100))
    task = next(t for t in tasks if any(isinstance(m, nn.Dropout) for m in t.build(0).modules()))
    module = task.build(0).train()
    set_dropout(module, 0.5)
    step, params, buffers = vmapped_step([module, copy.deepcopy(module)])
    batch = tuple(t[:32].expand(2, -1, *t.shape[1:]) for t in (x[:32] for x in task.train_data))
    _, losses = step(params, buffers, *batch)
    assert losses[0] != losses[1]
