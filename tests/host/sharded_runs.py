"""Runs of two processes, which `test_shards.py` starts once and looks at.

    python -m tests.host.sharded_runs FOLDER

Lightning starts the second process by the same command.
"""

import math
import sys
from pathlib import Path

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

from lightning_dqnlr import DQNLRCallback
from tests.host.control_runs import Stateful, loader, random_policy, trainer

STEPS = 24
RUINED = 13  # after so many steps


class Model(LightningModule):
    """Without BatchNorm, whose statistics differ from process to process."""

    replicas = 2

    def __init__(self):
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(1)
            # 5 and 3 rows: two processes have parts of different sizes.
            self.net = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3), nn.Linear(3, 2))

    def training_step(self, batch, batch_idx):
        """Each process has a part of the batch, so that the order of the data is the test's."""
        inputs, labels = (part[self.global_rank % self.replicas :: self.replicas] for part in batch)
        return nn.functional.cross_entropy(self.net(inputs), labels)

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=10.0)


class FullyShard(Model):
    def configure_model(self):
        mesh = self.device_mesh["data_parallel"]
        for layer in (self.net[0], self.net[2], self.net[3], self.net):
            fully_shard(layer, mesh=mesh)


class Even(Model):
    """Tensor parallelism needs sizes that the number of processes divides."""

    replicas = 1

    def __init__(self):
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(1)
            self.net = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 2))


class TensorParallel(Even):
    def configure_model(self):
        mesh = self.device_mesh["tensor_parallel"]
        parallelize_module(self.net, mesh, {"0": ColwiseParallel(), "2": RowwiseParallel()})


class RuinsOneShard(Callback):
    """Writes NaN into what the second process holds of the first layer."""

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if trainer.global_step == RUINED and trainer.global_rank == 1:
            weight = next(pl_module.parameters())
            weight.detach().to_local().fill_(math.nan)


def control():
    return DQNLRCallback(random_policy(), epsilon=0.2, horizon=600)


def kept(callback, module, run):
    """What the test compares: plain tensors, the parameters as this process holds them."""
    parts = [p.to_local() if hasattr(p, "to_local") else p for p in module.parameters()]
    snapshot = callback._control.drivers[0]._snapshot
    copied = sum(v.numel() for k, v in snapshot._copies[0].saved.items() if k.startswith("weight"))
    return {
        "trace": [{k: v for k, v in r.items() if k != "q_values"} for r in callback.trace],
        "weights": [p.detach().clone() for p in parts],
        "copied": copied,
        "held": sum(p.numel() for p in parts),
        "whole": sum(p.numel() for p in module.parameters()),
        "steps": run.global_step,
    }


def train(folder, module, strategy, others=(), path=None, **arguments):
    callback = control()
    run = trainer(
        callback,
        folder,
        strategy=strategy,
        devices=2,
        more_callbacks=others,
        use_distributed_sampler=False,
        **{"max_steps": STEPS, **arguments},
    )
    run.fit(module, Stateful(list(loader())), ckpt_path=path)
    return kept(callback, module, run)


def sharded(data=2, tensor=1):
    sizes = {"data_parallel_size": data, "tensor_parallel_size": tensor}
    return ModelParallelStrategy(process_group_backend="gloo", **sizes)


def main(folder):
    saver = ModelCheckpoint(folder / "saved", filename="{step}", every_n_train_steps=10)
    saves = {"others": [saver], "enable_checkpointing": True}
    path = folder / "saved" / "step=20.ckpt"
    results = {
        "ddp": train(folder, Model(), DDPStrategy(process_group_backend="gloo")),
        "fully_shard": train(folder, FullyShard(), sharded(), **saves),
        "resumed": train(folder, FullyShard(), sharded(), path=path),
        "ruined": train(folder, FullyShard(), sharded(), others=[RuinsOneShard()]),
        "tensor_parallel": train(folder, TensorParallel(), sharded(data=1, tensor=2)),
    }
    torch.save(results, folder / f"{torch.distributed.get_rank()}.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
