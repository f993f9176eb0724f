"""`ordinary_probability`: tasks whose weights and inputs keep their ordinary scales."""

from dataclasses import replace

import pytest
import torch
from torch.utils import _pytree as pytree

from lightning_dqnlr.errors import ConfigurationError
from lightning_dqnlr.tasks.families.basic import TeacherMLPs
from lightning_dqnlr.tasks.families.random_tasks import ORDINARY

SCALED = TeacherMLPs()
PLAIN = replace(SCALED, **ORDINARY)


def tensors(task):
    weights = task.build(0).state_dict().values()
    return [*weights, *pytree.tree_leaves(task.train_data)]


def same(one, other):
    return all(torch.equal(a, b) for a, b in zip(tensors(one), tensors(other), strict=True))


def test_half_of_the_tasks_are_plain_and_the_others_are_those_of_the_scaled_family():
    half = replace(SCALED, ordinary_probability=0.5)
    plain = [same(half.sample(seed), PLAIN.sample(seed)) for seed in range(40)]
    assert 10 < sum(plain) < 30
    assert all(
        same(half.sample(seed), SCALED.sample(seed)) for seed in range(40) if not plain[seed]
    )


def test_an_ordinary_task_differs_from_its_scaled_twin_in_scale_alone():
    plain, scaled = PLAIN.sample(3), SCALED.sample(3)
    assert (plain.horizon, plain.optimizer, plain.name) == (
        scaled.horizon,
        scaled.optimizer,
        scaled.name,
    )
    inputs = scaled.train_data[0] / plain.train_data[0]
    torch.testing.assert_close(inputs, inputs.flatten()[:1].expand_as(inputs), rtol=1e-4, atol=0)
    assert inputs.flatten()[0].item() != pytest.approx(1.0, abs=1e-3)


def test_a_probability_above_one_is_refused():
    with pytest.raises(ConfigurationError, match="ordinary_probability"):
        TeacherMLPs(ordinary_probability=1.5)
