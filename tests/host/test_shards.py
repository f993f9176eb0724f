"""Weights that are spread over processes (`fully_shard`, tensor parallelism) are one model."""

import subprocess
import sys
from pathlib import Path

import lightning.pytorch
import pytest
import pytorch_lightning
import torch
from lightning.pytorch.strategies import DDPStrategy, DeepSpeedStrategy, FSDPStrategy

from lightning_dqnlr import DQNLRCallback
from lightning_dqnlr.errors import UnsupportedTrainingError

from .control_runs import Net, OldNet, loader, trainer
from .sharded_runs import RUINED, STEPS, Even, control

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """What each of two processes kept of each run."""
    folder = tmp_path_factory.mktemp("sharded")
    command = [sys.executable, "-m", "tests.host.sharded_runs", str(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr[-3000:]
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in (0, 1)]


def rates(run):
    return torch.tensor([record["next_lr"] for record in run["trace"]])


@pytest.mark.parametrize("name", ["ddp", "fully_shard", "resumed", "ruined", "tensor_parallel"])
def test_both_processes_decide_the_same(runs, name):
    one, other = (run[name] for run in runs)
    assert one["steps"] == STEPS
    assert len(one["trace"]) > 5
    assert one["trace"] == other["trace"]


def test_a_sharded_run_has_the_rates_and_losses_of_the_replicated_one(runs):
    expected, found = runs[0]["ddp"], runs[0]["fully_shard"]
    assert torch.allclose(rates(found), rates(expected), rtol=1e-3)
    assert [r["action"] for r in found["trace"]] == [r["action"] for r in expected["trace"]]


def test_a_run_of_tensor_parallelism_has_the_rates_of_one_process(runs, tmp_path):
    callback = control()
    trainer(callback, tmp_path, max_steps=STEPS).fit(Even(), loader())
    expected = [record["next_lr"] for record in callback.trace]
    assert rates(runs[0]["tensor_parallel"]).tolist() == pytest.approx(expected, rel=1e-3)


def test_each_process_copies_its_own_shards_and_no_more(runs):
    for run in runs:
        assert run["fully_shard"]["copied"] == run["fully_shard"]["held"]
    held = [run["fully_shard"]["held"] for run in runs]
    assert sum(held) == runs[0]["fully_shard"]["whole"]
    assert min(held) > 0


def test_nan_in_the_shard_of_one_process_is_undone_on_both(runs):
    for run in runs:
        tripped = [record["step"] for record in run["ruined"]["trace"] if record["tripped"]]
        assert len(tripped) == 1
        assert RUINED <= tripped[0] <= RUINED + 4
        assert all(weight.isfinite().all() for weight in run["ruined"]["weights"])


def test_a_resumed_sharded_run_is_exact_on_both(runs):
    """From within an interval: each process needs its own part of the statistics."""
    for run in runs:
        assert run["resumed"]["trace"] == run["fully_shard"]["trace"]
        for found, expected in zip(
            run["resumed"]["weights"], run["fully_shard"]["weights"], strict=True
        ):
            assert torch.equal(found, expected)


class OnCPU(FSDPStrategy):
    """The Trainer refuses the class itself on a CPU."""


class OlderOnCPU(pytorch_lightning.strategies.FSDPStrategy):
    """The same under the older name."""


class WithoutPackage(DeepSpeedStrategy):
    """DeepSpeed's own initialisation needs the package, and its environment a GPU."""

    def __init__(self):
        DDPStrategy.__init__(self)

    def setup_environment(self):
        pass


@pytest.mark.parametrize(
    ("library", "module", "strategy", "words"),
    [
        (lightning.pytorch, Net, OnCPU, "OnCPU: .*FullyShardedDataParallel.*ModelParallelStrategy"),
        (pytorch_lightning, OldNet, OlderOnCPU, "OlderOnCPU: .*FullyShardedDataParallel"),
        (
            lightning.pytorch,
            Net,
            WithoutPackage,
            "DeepSpeed makes.*ModelParallelStrategy",
        ),
    ],
)
def test_other_ways_to_split_weights_are_refused_before_they_are_split(
    tmp_path, library, module, strategy, words
):
    run = trainer(DQNLRCallback(), tmp_path, library, strategy=strategy(), devices=1)
    with pytest.raises(UnsupportedTrainingError, match=words):
        run.fit(module(), loader())
