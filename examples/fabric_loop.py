"""The same control in a training loop of Lightning Fabric.

    python examples/fabric_loop.py

A network learns a noisy function in bfloat16. The run is saved by Fabric at its half, and goes on
from there in new objects.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

import torch
from lightning.fabric import Fabric
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_dqnlr import DQNLRScheduler


def build(fabric: Fabric, horizon: int) -> dict[str, Any]:
    """Network, optimizer and scheduler, as Fabric's `save` and `load` take them."""
    network: Any = nn.Sequential(
        nn.Linear(2, 32), nn.Tanh(), nn.Linear(32, 32), nn.Tanh(), nn.Linear(32, 1)
    )
    # A learning rate that is far too small; it is never used.
    network, optimizer = fabric.setup(network, torch.optim.Adam(network.parameters(), lr=1e-6))
    scheduler = DQNLRScheduler(optimizer, horizon=horizon, module=network)
    return {"network": network, "optimizer": optimizer, "scheduler": scheduler}


def train(fabric: Fabric, run: dict[str, Any], loader: Any, until: int) -> None:
    """Trains up to a step of the whole run."""
    while True:
        for inputs, targets in loader:
            if run["scheduler"].last_epoch == until:
                return
            run["optimizer"].zero_grad()
            loss = nn.functional.mse_loss(run["network"](inputs), targets)
            fabric.backward(loss)
            run["optimizer"].step()
            run["scheduler"].step(loss)


def main() -> None:
    """Trains in two halves, and prints every eighth decision."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=400)
    steps = parser.parse_args().steps
    fabric = Fabric(accelerator="cpu", devices=1, precision="bf16-mixed")
    fabric.seed_everything(0, verbose=False)
    inputs = torch.rand(2048, 2) * 6 - 3
    targets = torch.sin(inputs[:, :1]) * inputs[:, 1:] + 0.05 * torch.randn(2048, 1)
    data = TensorDataset(inputs, targets)
    loader = fabric.setup_dataloaders(DataLoader(data, batch_size=64, shuffle=True))

    run = build(fabric, steps)
    train(fabric, run, loader, steps // 2)
    with tempfile.TemporaryDirectory() as folder:
        fabric.save(Path(folder) / "half.ckpt", run)
        run = build(fabric, steps)
        fabric.load(Path(folder) / "half.ckpt", run, weights_only=True)
    train(fabric, run, loader, steps)

    for record in run["scheduler"].trace[::8]:
        print(
            f"step {record['step']:4d}  loss {record['loss']:.4f}  "
            f"lr {record['lr']:.1e} -> {record['next_lr']:.1e}  {record['reason']}"
        )
    with torch.no_grad():
        final = nn.functional.mse_loss(run["network"](inputs), targets).item()
    print(f"final loss {final:.4f} (noise alone: 0.0025)")


if __name__ == "__main__":
    main()
