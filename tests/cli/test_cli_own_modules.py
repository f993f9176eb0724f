"""`dqnlr-train` on a module that somebody else wrote, named in a configuration of their own."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from lightning_dqnlr.policy.policy import LRPolicy

MODULE = '''
import torch
from lightning import LightningModule
from torch.utils.data import DataLoader, TensorDataset


class Curve(LightningModule):
    """Its step branches on a tensor, which vmap cannot carry."""

    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(3, 1)

    def training_step(self, batch):
        inputs, targets = batch
        loss = (self.layer(inputs) - targets).square().mean()
        return loss if loss < 100 else 100 * loss.log()

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=0.1)


def points():
    inputs = torch.randn(40, 3, generator=torch.Generator().manual_seed(0))
    return DataLoader(TensorDataset(inputs, inputs.sum(1, keepdim=True)), batch_size=8)
'''
TASKS = """
_target_: lightning_dqnlr.tasks.OwnTasks
tasks:
  - _target_: lightning_dqnlr.tasks.Task.from_lightning
    module: {_target_: my_curves.Curve, _partial_: true}
    dataloader: {_target_: my_curves.points}
    horizon: 12
"""
SMALL = (
    *("env.collect.replicas=2", "train.warm_up_episodes=0", "train.updates=2"),
    *("train.evaluation_tasks=1", "train.evaluation_seeds=1"),
)


@pytest.fixture
def project(tmp_path):
    (tmp_path / "my_curves.py").write_text(MODULE)
    (tmp_path / "conf" / "tasks").mkdir(parents=True)
    (tmp_path / "conf" / "tasks" / "mine.yaml").write_text(TASKS)
    return tmp_path


def train(project, *overrides):
    script = Path(sys.executable).with_name("dqnlr-train")
    command = [script, "--config-dir", project / "conf", "tasks=mine", f"folder={project / 'run'}"]
    environment = {**os.environ, "PYTHONPATH": str(project), "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [*command, *SMALL, *overrides],
        capture_output=True,
        text=True,
        timeout=300,
        env=environment,
        cwd=project,
        check=False,
    )


def test_a_module_that_replicas_cannot_carry_trains_a_policy_in_real_trainers(project):
    done = train(project, "env=trainer", "train.episodes=2")
    assert done.returncode == 0, done.stderr
    policy = LRPolicy.load(project / "run" / "best")
    assert policy.record["failed_tasks"] == 0
    assert "TrainerEngine" in policy.record["engine"]


def test_replicas_refuse_it_in_one_line_that_names_the_remedy(project):
    done = train(project, "train.episodes=20")
    assert done.returncode == 2
    error = done.stderr.strip().splitlines()[-1]
    assert error.startswith("dqnlr-train: error: ")
    assert "Curve" in error
    assert "env=trainer" in error
