"""The distribution of `tasks=broad`, as its file describes it."""

from pathlib import Path

import pytest
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf

from lightning_dqnlr.tasks.optimizers import COMMON
from tests.tasks.every_family import FAMILIES

CONFIG = Path(__file__).parents[2] / "conf" / "tasks" / "broad.yaml"


@pytest.fixture(scope="module")
def broad():
    return instantiate(OmegaConf.load(CONFIG), _convert_="all")


def test_every_family_is_trained_on_short_and_long_and_held_out(broad):
    short, long = (
        {type(family) for family in broad.train.families if family.max_horizon == longest}
        for longest in (300, 4000)
    )
    held_out = [type(family) for family in broad.held_out.families]
    assert short == long == set(held_out) == set(FAMILIES)
    assert len(held_out) == len(FAMILIES)


def test_held_out_runs_span_100_to_4000_steps_and_training_runs_are_mostly_short(broad):
    spans = [(family.min_horizon, family.max_horizon) for family in broad.held_out.families]
    assert set(spans) == {(100, 4000), (100, 1000)}
    assert spans.count((100, 4000)) == 9
    weights = torch.tensor(broad.train.weights)
    long = torch.tensor([family.min_horizon >= 300 for family in broad.train.families])
    assert 0.05 < (weights[long].sum() / weights.sum()).item() < 0.15
    assert not any(
        family.max_horizon > 300
        for family, is_long in zip(broad.train.families, long, strict=True)
        if not is_long
    )


def test_every_optimizer_and_unknown_horizons_are_drawn_by_every_family(broad):
    assert all(set(family.optimizers) == set(COMMON) for family in broad.held_out.families)
    trained = {*COMMON, "signum", "robbins_monro"}
    assert all(set(family.optimizers) == trained for family in broad.train.families)
    for family in (*broad.train.families, *broad.held_out.families):
        assert 0.0 < family.known_horizon_probability < 1.0
        assert tuple(family.wide_initial_scales) == (0.01, 100.0)
        assert family.ordinary_probability == 0.5


def test_sampled_tasks_come_from_many_families_and_from_the_splits_own_distribution(broad):
    tasks = [broad.sample(seed, "validation") for seed in range(60)]
    assert len({task.family for task in tasks}) >= 12
    assert max(task.horizon for task in tasks) > 2000
    assert any(not task.known_horizon for task in tasks)
    assert {task.name.split("/")[1] for task in tasks} == {"validation"}
