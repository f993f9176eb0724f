"""The same control without Lightning: `DQNLRScheduler` in a plain torch loop.

    python examples/plain_torch.py

A network learns a noisy function. The optimizer's learning rate of 1e-6 is far too small; it is
never used. The script prints what the controller decided, and why.
"""

from __future__ import annotations

import argparse

import torch
from torch import nn

from lightning_dqnlr import DQNLRScheduler


def main() -> None:
    """Trains and prints every eighth decision."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=600)
    steps = parser.parse_args().steps
    torch.manual_seed(0)
    inputs = torch.rand(2048, 2) * 6 - 3
    targets = torch.sin(inputs[:, :1]) * inputs[:, 1:] + 0.05 * torch.randn(2048, 1)

    network = nn.Sequential(
        nn.Linear(2, 32), nn.Tanh(), nn.Linear(32, 32), nn.Tanh(), nn.Linear(32, 1)
    )
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-6)
    scheduler = DQNLRScheduler(optimizer, horizon=steps)
    for _ in range(steps):
        batch = torch.randint(len(inputs), (64,))
        optimizer.zero_grad()
        loss = nn.functional.mse_loss(network(inputs[batch]), targets[batch])
        loss.backward()
        optimizer.step()
        scheduler.step(loss)

    for record in scheduler.trace[::8]:
        print(
            f"step {record['step']:4d}  loss {record['loss']:.4f}  "
            f"lr {record['lr']:.1e} -> {record['next_lr']:.1e}  {record['reason']}"
        )
    with torch.no_grad():
        final = nn.functional.mse_loss(network(inputs), targets).item()
    print(f"final loss {final:.4f} (noise alone: 0.0025)")


if __name__ == "__main__":
    main()
