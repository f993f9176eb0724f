import os
import signal
import sys

import pytest
import torch

from lightning_dqnlr.errors import ConfigurationError
from lightning_dqnlr.meta.ray import RayWorkers
from lightning_dqnlr.meta.workers import LocalWorkers
from tests.meta.test_meta_workers import job, trained
from tests.meta.tiny_tasks import Deadly, TinyTasks


@pytest.fixture(scope="module", autouse=True)
def ray_for_tests():
    """No token in the home folder, no message to its makers."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_AUTH_MODE", "disabled")
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        yield


def test_two_tasks_of_which_one_is_killed_learn_bit_for_bit_what_one_process_learns(tmp_path):
    """Killed in the fifth of six episodes; nothing is lost, nothing is learned twice."""
    alone, _ = trained(tmp_path / "one", TinyTasks(), LocalWorkers(1))
    deadly = Deadly(marker=tmp_path / "killed", seed=4)
    shared, reports = trained(tmp_path / "two", deadly, RayWorkers(2, restarts=1))
    assert (tmp_path / "killed").exists()
    assert [report.episode for report in reports] == [1, 2, 3, 4, 5, 6]
    assert [report.outcome.failure for report in reports] == [None] * 6
    assert len(alone.replay) == len(shared.replay)
    assert alone.learner.updates == shared.learner.updates == 25
    for a, b in zip(
        alone.learner.online.parameters(), shared.learner.online.parameters(), strict=True
    ):
        assert torch.equal(a, b)


class Stubborn(TinyTasks):
    """Its worker is killed, however often it is replaced."""

    def sample(self, seed, split="train"):
        os.kill(os.getpid(), signal.SIGKILL)


def test_workers_that_die_again_and_again_end_the_run_with_advice():
    with (
        RayWorkers(1, restarts=0).open() as collect,
        pytest.raises(ConfigurationError, match=r"again and again.*resume=true and fewer"),
    ):
        list(collect([job(Stubborn())]))


@pytest.mark.parametrize(
    ("settings", "name"),
    [({"workers": 0}, "collector.workers=0"), ({"num_gpus": -1.0}, "collector.num_gpus=-1.0")],
)
def test_a_setting_out_of_range_is_named(settings, name):
    with pytest.raises(ConfigurationError, match=name):
        RayWorkers(**settings)


def test_without_ray_the_extra_is_named_before_any_work(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ConfigurationError, match=r"pip install 'lightning-dqnlr\[ray\]'"):
        RayWorkers()


def test_a_cluster_that_is_not_there_is_named():
    workers = RayWorkers(1, address="127.0.0.1:1")
    with (
        pytest.raises(ConfigurationError, match=r"address='127\.0\.0\.1:1' did not answer"),
        workers.open(),
    ):
        pass


def test_a_cluster_without_room_is_an_error_not_a_wait_for_ever():
    workers = RayWorkers(1, num_gpus=64.0, start_minutes=0.02)
    with (
        workers.open() as collect,
        pytest.raises(ConfigurationError, match=r"num_gpus=64.0 each: there was no room"),
    ):
        list(collect([job(TinyTasks())]))
