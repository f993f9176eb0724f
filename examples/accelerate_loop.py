"""The same control in a training loop of Hugging Face Accelerate.

    python examples/accelerate_loop.py          # or: accelerate launch examples/accelerate_loop.py

`DQNLRScheduler` goes through `accelerator.prepare` as any scheduler of torch does. It takes the
loss from the criterion, because the loop calls `scheduler.step()` without one. The state is saved
and loaded by Accelerate in the middle of the run.
"""

from __future__ import annotations

import argparse
import tempfile

import torch
from accelerate import Accelerator
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_dqnlr import DQNLRScheduler


def main() -> None:
    """Trains over windows of two batches, and prints every eighth decision."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=400)
    steps = parser.parse_args().steps
    accelerator = Accelerator(gradient_accumulation_steps=2)
    torch.manual_seed(0)
    inputs = torch.rand(2048, 2) * 6 - 3
    targets = torch.sin(inputs[:, :1]) * inputs[:, 1:] + 0.05 * torch.randn(2048, 1)
    loader = DataLoader(TensorDataset(inputs, targets), batch_size=32, shuffle=True)

    network = nn.Sequential(
        nn.Linear(2, 32), nn.Tanh(), nn.Linear(32, 32), nn.Tanh(), nn.Linear(32, 1)
    )
    criterion = nn.MSELoss()
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-6)  # far too small; it is never used
    control = DQNLRScheduler(optimizer, horizon=steps, module=network, loss_from=criterion)
    network, optimizer, scheduler, loader = accelerator.prepare(network, optimizer, control, loader)

    with tempfile.TemporaryDirectory() as folder:
        half = False
        while control.last_epoch < steps:
            for batch, wanted in loader:
                with accelerator.accumulate(network):
                    loss = criterion(network(batch), wanted)
                    accelerator.backward(loss)
                    optimizer.step()
                    scheduler.step()
                    optimizer.zero_grad()
                if control.last_epoch == steps:
                    break
            if control.last_epoch > steps // 2 and not half:
                half = True
                accelerator.save_state(folder)
                accelerator.load_state(folder)

    for record in control.trace[::8]:
        accelerator.print(
            f"step {record['step']:4d}  loss {record['loss']:.4f}  "
            f"lr {record['lr']:.1e} -> {record['next_lr']:.1e}  {record['reason']}"
        )
    with torch.no_grad():
        device = accelerator.device
        final = criterion(network(inputs.to(device)), targets.to(device)).item()
    accelerator.print(f"final loss {final:.4f} (noise alone: 0.0025)")


if __name__ == "__main__":
    main()
