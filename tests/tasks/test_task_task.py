import dataclasses

import pytest
import torch
from torch import nn

from lightning_dqnlr.errors import ConfigurationError
from lightning_dqnlr.tasks.modules import SupervisedBuilder
from lightning_dqnlr.tasks.networks import MLPSpec
from lightning_dqnlr.tasks.task import OptimizerSpec, Task

NAMES = ("sgd", "momentum", "nesterov", "adam", "adamw", "rmsprop")


def make_task(**changes):
    spec = OptimizerSpec("sgd")
    task = Task(
        name="t",
        family="f",
        seed=0,
        build=SupervisedBuilder("t", MLPSpec(3, 2, 4), "mse", spec),
        train_data=(torch.zeros(10, 3), torch.zeros(10, 2)),
        validation_data=(torch.zeros(4, 3), torch.zeros(4, 2)),
        batch_size=5,
        optimizer="sgd",
        horizon=7,
    )
    return dataclasses.replace(task, **changes)


@pytest.mark.parametrize(
    ("name", "kind", "expected"),
    [
        ("sgd", torch.optim.SGD, {"momentum": 0, "nesterov": False, "weight_decay": 0.1}),
        ("momentum", torch.optim.SGD, {"momentum": 0.8, "nesterov": False, "weight_decay": 0.1}),
        ("nesterov", torch.optim.SGD, {"momentum": 0.8, "nesterov": True, "weight_decay": 0.1}),
        ("adam", torch.optim.Adam, {"betas": (0.8, 0.95), "weight_decay": 0.1}),
        ("adamw", torch.optim.AdamW, {"betas": (0.8, 0.95), "weight_decay": 0.1}),
        ("rmsprop", torch.optim.RMSprop, {"alpha": 0.95, "momentum": 0, "weight_decay": 0.1}),
    ],
)
def test_spec_builds_the_real_optimizer_with_all_of_its_settings(name, kind, expected):
    spec = OptimizerSpec(name, weight_decay=0.1, momentum=0.8, beta2=0.95)
    optimizer = spec.build([nn.Parameter(torch.ones(2))], lr=0.3)
    assert type(optimizer) is kind
    assert optimizer.param_groups[0]["lr"] == 0.3
    assert {key: optimizer.param_groups[0][key] for key in expected} == expected


@pytest.mark.parametrize("name", NAMES)
def test_displacement_is_linear_in_the_learning_rate(name):
    def displacement(lr: float) -> torch.Tensor:
        weights = nn.Parameter(torch.tensor([1.0, -2.0], dtype=torch.float64))
        spec = OptimizerSpec(name, weight_decay=0.1)
        optimizer = spec.build([weights], lr=lr)
        weights.grad = torch.tensor([0.5, 3.0], dtype=torch.float64)
        before = weights.detach().clone()
        optimizer.step()
        return weights.detach() - before

    torch.testing.assert_close(displacement(1e-3), displacement(1.0) * 1e-3)
    assert displacement(1.0).abs().min() > 0.01


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"name": "lion"}, "optimizer name must be one of"),
        ({"name": "sgd", "weight_decay": -0.1}, "weight_decay must be"),
        ({"name": "sgd", "weight_decay": float("inf")}, "weight_decay must be"),
        ({"name": "adam", "momentum": 1.0}, "momentum and beta2 must"),
        ({"name": "adam", "beta2": -0.5}, "momentum and beta2 must"),
        ({"name": "nesterov", "momentum": 0.0}, "nesterov needs momentum > 0"),
    ],
)
def test_spec_refuses_impossible_settings(fields, message):
    with pytest.raises(ConfigurationError, match=message):
        OptimizerSpec(**fields)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"train_data": ()}, "train_data must hold tensors"),
        ({"train_data": (torch.tensor(1.0),)}, "train_data must hold tensors"),
        ({"train_data": (torch.zeros(9, 3), torch.zeros(10, 2))}, "the tensors of train_data"),
        ({"validation_data": (torch.zeros(0, 3),) * 2}, "the tensors of validation_data"),
        ({"validation_data": (torch.zeros(4, 3),)}, "the same structure"),
        ({"batch_size": 0}, "batch_size must lie between 1 and the 10"),
        ({"batch_size": 11}, "batch_size must lie between 1 and the 10"),
        ({"horizon": 0}, "horizon must be at least 1"),
        ({"gradient_clip": 0.0}, "gradient_clip must be positive"),
        ({"gradient_clip": float("nan")}, "gradient_clip must be positive"),
    ],
)
def test_task_refuses_fields_that_cannot_train(changes, message):
    with pytest.raises(ConfigurationError, match=message):
        make_task(**changes)


def test_task_accepts_the_extremes_of_its_ranges():
    task = make_task(batch_size=10, horizon=1, gradient_clip=1e-9)
    assert (task.batch_size, task.horizon, task.gradient_clip) == (10, 1, 1e-9)
