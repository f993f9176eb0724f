import dataclasses

import pytest
import torch

from lightning_dqnlr.errors import ConfigurationError
from lightning_dqnlr.tasks.modules import SupervisedBuilder
from lightning_dqnlr.tasks.networks.mlp_cnn import MLPSpec
from lightning_dqnlr.tasks.optimizers import OptimizerSpec
from lightning_dqnlr.tasks.task import Task


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
    ("changes", "message"),
    [
        ({"train_data": ()}, "train_data must hold tensors"),
        ({"train_data": (torch.tensor(1.0),)}, "train_data must hold tensors"),
        ({"train_data": (torch.zeros(9, 3), torch.zeros(10, 2))}, "the tensors of train_data"),
        ({"validation_data": (torch.zeros(0, 3),) * 2}, "the tensors of validation_data"),
        ({"validation_data": (torch.zeros(4, 3),)}, "the same structure"),
        ({"batch_size": 0}, "batch_size=0 must be an integer from 1 to 10"),
        ({"batch_size": 11}, "batch_size=11 must be an integer from 1 to 10"),
        ({"horizon": 0}, "horizon=0 must be an integer of at least 1"),
        ({"gradient_clip": 0.0}, r"gradient_clip=0.0 must be a number in \(0, inf\], or None"),
        ({"gradient_clip": float("nan")}, "gradient_clip=nan must be a number"),
    ],
)
def test_task_refuses_fields_that_cannot_train(changes, message):
    with pytest.raises(ConfigurationError, match=message):
        make_task(**changes)


def test_task_accepts_the_extremes_of_its_ranges():
    task = make_task(batch_size=10, horizon=1, gradient_clip=1e-9)
    assert (task.batch_size, task.horizon, task.gradient_clip) == (10, 1, 1e-9)
