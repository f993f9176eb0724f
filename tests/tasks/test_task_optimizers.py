"""The optimizers of the inner loop, torch's and the two that only training has."""

from typing import get_args

import pytest
import torch
from torch import nn

from lightning_dqnlr.errors import ConfigurationError
from lightning_dqnlr.tasks.optimizers import OptimizerName, OptimizerSpec, RobbinsMonro, Signum


@pytest.mark.parametrize(
    ("name", "kind", "expected"),
    [
        ("sgd", torch.optim.SGD, {"momentum": 0, "nesterov": False, "weight_decay": 0.1}),
        ("momentum", torch.optim.SGD, {"momentum": 0.8, "nesterov": False, "weight_decay": 0.1}),
        ("nesterov", torch.optim.SGD, {"momentum": 0.8, "nesterov": True, "weight_decay": 0.1}),
        ("adam", torch.optim.Adam, {"betas": (0.8, 0.95), "weight_decay": 0.1}),
        ("adamw", torch.optim.AdamW, {"betas": (0.8, 0.95), "weight_decay": 0.1}),
        ("rmsprop", torch.optim.RMSprop, {"alpha": 0.95, "momentum": 0, "weight_decay": 0.1}),
        ("signum", Signum, {"momentum": 0.8, "weight_decay": 0.1}),
        ("robbins_monro", RobbinsMonro, {"power": 0.5, "weight_decay": 0.1}),
    ],
)
def test_spec_builds_the_real_optimizer_with_all_of_its_settings(name, kind, expected):
    spec = OptimizerSpec(name, weight_decay=0.1, momentum=0.8, beta2=0.95)
    optimizer = spec.build([nn.Parameter(torch.ones(2))], lr=0.3)
    assert type(optimizer) is kind
    assert optimizer.param_groups[0]["lr"] == 0.3
    assert {key: optimizer.param_groups[0][key] for key in expected} == expected


@pytest.mark.parametrize("name", get_args(OptimizerName))
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
        ({"name": "lion"}, "optimizer name='lion' must be one of"),
        (
            {"name": "sgd", "weight_decay": -0.1},
            "weight_decay=-0.1 must be a number",
        ),
        ({"name": "sgd", "weight_decay": float("inf")}, "weight_decay=inf must be"),
        ({"name": "adam", "momentum": 1.0}, r"momentum=1.0 must be a number in \[0, 1\)"),
        ({"name": "adam", "beta2": -0.5}, r"beta2=-0.5 must be a number in \[0, 1\)"),
        ({"name": "nesterov", "momentum": 0.0}, "nesterov needs momentum > 0"),
    ],
)
def test_spec_refuses_impossible_settings(fields, message):
    with pytest.raises(ConfigurationError, match=message):
        OptimizerSpec(**fields)


def steps(optimizer, weight, gradients):
    """The weight after each step."""
    visited = []
    for gradient in gradients:
        weight.grad = torch.tensor([gradient])
        optimizer.step()
        visited.append(weight.item())
    return visited


def test_signum_steps_by_the_sign_of_its_running_mean_not_of_the_gradient():
    weight = nn.Parameter(torch.tensor([1.0]))
    optimizer = Signum([weight], lr=0.25, momentum=0.5)
    # Running means: 2, 0.5 (of a gradient of -1), -1.75, and 0 where nothing has ever pulled.
    assert steps(optimizer, weight, [4.0, -1.0, -4.0]) == [0.75, 0.5, 0.75]
    idle = nn.Parameter(torch.tensor([1.0]))
    assert steps(Signum([idle], lr=0.25), idle, [0.0]) == [1.0]


def test_robbins_monro_divides_its_steps_by_the_root_of_their_number():
    weight = nn.Parameter(torch.tensor([0.0]))
    visited = steps(RobbinsMonro([weight], lr=3.0), weight, [2.0, 0.0, 0.0, 2.0])
    assert visited == pytest.approx([-6.0, -6.0, -6.0, -9.0])


@pytest.mark.parametrize("kind", [Signum, RobbinsMonro])
def test_weight_decay_pulls_through_the_gradient(kind):
    weight = nn.Parameter(torch.tensor([4.0]))
    assert steps(kind([weight], lr=1.0, weight_decay=0.25), weight, [0.0]) == [3.0]
