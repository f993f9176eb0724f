"""A GAN: manual optimisation, two optimizers, a control for each, against the usual rates.

    python examples/gan.py

A generator learns a ring of eight Gaussians in the plane. No loss of a GAN says how good it is, so
the runs are measured by the energy distance (Székely and Rizzo 2013) between what the generator
makes and held-out points. Zero means that the distributions are the same; `chance` is what two
samples of the true distribution differ by. The losses do not fall as training succeeds: the circuit
breaker may undo only what is not finite (`circuit_breaker="finite"`), and `max_lr` bounds a rate
whose effect no loss shows. The generator that is measured is the moving average of
the trained one's weights, as is usual for GANs.
"""

from __future__ import annotations

import argparse
import logging
import math
import statistics
import warnings

import torch
from lightning.pytorch import Callback, LightningModule, Trainer, seed_everything
from torch import Tensor, nn
from torch.nn.functional import softplus
from torch.utils.data import DataLoader, TensorDataset

from lightning_dqnlr import DQNLRCallback

LR = 2e-4  # Radford et al. 2016, section 4, with their beta_1 of 0.5
BATCH_SIZE = 128
EXAMPLES = 16 * BATCH_SIZE
NOISE = 8
AVERAGED = 0.99


def ring(count: int, seed: int) -> Tensor:
    """Points of eight Gaussians on the unit circle, (count, 2)."""
    generator = torch.Generator().manual_seed(seed)
    angles = torch.randint(8, (count,), generator=generator) * (math.pi / 4)
    centres = torch.stack([angles.cos(), angles.sin()], dim=1)
    return centres + 0.05 * torch.randn(count, 2, generator=generator)


def energy_distance(a: Tensor, b: Tensor) -> float:
    """2 E|x - y| - E|x - x'| - E|y - y'| over samples (N, 2) and (N, 2); 0 if alike."""
    within = sum(torch.pdist(points).mean() for points in (a, b))
    return float(2 * torch.cdist(a, b).mean() - within)


def network(inputs: int, outputs: int) -> nn.Sequential:
    """Two hidden layers."""
    return nn.Sequential(
        *(nn.Linear(inputs, 64), nn.LeakyReLU(0.2), nn.Linear(64, 64), nn.LeakyReLU(0.2)),
        nn.Linear(64, outputs),
    )


class GAN(LightningModule):
    """The non-saturating loss (Goodfellow et al. 2014), a step of each network per batch."""

    def __init__(self, lr: float = LR) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.lr = lr
        self.generator, self.discriminator = network(NOISE, 2), network(2, 1)
        average = torch.optim.swa_utils.get_ema_multi_avg_fn(AVERAGED)
        self.average = torch.optim.swa_utils.AveragedModel(self.generator, multi_avg_fn=average)

    def training_step(self, batch: list[Tensor], batch_idx: int) -> None:
        generator, discriminator = self.optimizers()
        real = batch[0]
        fake = self.generator(torch.randn(len(real), NOISE, device=self.device))

        d_loss = softplus(-self.discriminator(real)) + softplus(self.discriminator(fake.detach()))
        discriminator.zero_grad()
        self.manual_backward(d_loss.mean())
        discriminator.step()

        generator.zero_grad()
        self.manual_backward(softplus(-self.discriminator(fake)).mean())
        generator.step()
        self.average.update_parameters(self.generator)

    def configure_optimizers(self) -> list[torch.optim.Optimizer]:
        networks = (self.generator, self.discriminator)
        return [torch.optim.Adam(n.parameters(), lr=self.lr, betas=(0.5, 0.999)) for n in networks]


def train(seed: int, steps: int, lr: float, callbacks: list[Callback]) -> float:
    """Trains once; the energy distance to held-out points."""
    seed_everything(seed, verbose=False)
    gan = GAN(lr)
    loader = DataLoader(TensorDataset(ring(EXAMPLES, seed=0)), BATCH_SIZE, shuffle=True)
    trainer = Trainer(
        max_epochs=math.ceil(steps * BATCH_SIZE / EXAMPLES),
        callbacks=callbacks,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(gan, loader)
    gan.eval()
    with torch.no_grad():
        made = gan.average(torch.randn(2000, NOISE))
    return energy_distance(made, ring(2000, seed=1))


def main() -> None:
    """Trains both ways on every seed and prints a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=1600, help="of each optimizer")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--lr", type=float, default=LR, help="the usual rate")
    arguments = parser.parse_args()
    lr = arguments.lr
    seeds = range(arguments.first_seed, arguments.first_seed + arguments.seeds)
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    logging.getLogger("lightning_dqnlr").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="lightning")

    print(f"chance {energy_distance(ring(2000, seed=1), ring(2000, seed=2)):.4f}")
    rows = {
        f"Adam at {lr:g}": lambda: [],
        "DQNLRCallback()": lambda: [DQNLRCallback()],
        '"finite", max_lr=5 * lr': lambda: [DQNLRCallback(circuit_breaker="finite", max_lr=5 * lr)],
    }
    for name, callbacks in rows.items():
        found = [train(seed, arguments.steps, lr, callbacks()) for seed in seeds]
        each = " ".join(f"{distance:.4f}" for distance in found)
        print(f"{name:26s} median {statistics.median(found):.4f}  of {each}", flush=True)


if __name__ == "__main__":
    main()
