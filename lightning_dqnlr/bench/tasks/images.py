"""Image tasks of architectures that no family draws, on scikit-learn's digits."""

from __future__ import annotations

import math
from functools import cache, partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_dqnlr.bench.tasks.task import USUAL_LR, cross_entropy, fixed_draws, own_task
from lightning_dqnlr.tasks.data.examples import Examples
from lightning_dqnlr.tasks.data.scikit_learn import digits
from lightning_dqnlr.tasks.task import Task
from lightning_dqnlr.tasks.user import seeded_weights

CLASSES = 10
SIDE = 8
LABELLED = 160
PRETRAIN_STEPS = 400
NOISE_LEVELS = 50


class ResidualBlock(nn.Module):
    """Two convolutions with BatchNorm and a skip (He et al. 2016, arXiv:1603.05027, "pre-act").

    Maps images (N, channels, H, W) to images of the same shape.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for _ in range(2):
            layers += [nn.BatchNorm2d(channels), nn.ReLU()]
            layers.append(nn.Conv2d(channels, channels, 3, padding=1, bias=False))
        self.branch = nn.Sequential(*layers)

    def forward(self, images: Tensor) -> Tensor:
        return images + torch.as_tensor(self.branch(images))


def residual_network() -> nn.Module:
    """Digits (N, 64) to logits (N, 10), by two residual blocks and global average pooling."""
    return nn.Sequential(
        nn.Unflatten(1, (1, SIDE, SIDE)),
        nn.Conv2d(1, 12, 3, stride=2, padding=1),
        *(ResidualBlock(12) for _ in range(2)),
        nn.BatchNorm2d(12),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(12, CLASSES),
    )


class VisionTransformer(nn.Module):
    """Sixteen patches of 2x2 pixels as tokens (Dosovitskiy et al. 2021, arXiv:2010.11929)."""

    def __init__(self, width: int = 24) -> None:
        super().__init__()
        self.embed = nn.Conv2d(1, width, 2, stride=2)
        self.positions = nn.Parameter(0.02 * torch.randn(SIDE * SIDE // 4, width))
        self.block = nn.TransformerEncoderLayer(
            width, 2, 2 * width, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
        )
        self.head = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, CLASSES))

    def forward(self, images: Tensor) -> Tensor:
        """Digits (N, 64) to logits (N, 10)."""
        tokens = self.embed(images.unflatten(1, (1, SIDE, SIDE))).flatten(2).mT
        return torch.as_tensor(self.head(self.block(tokens + self.positions).mean(1)))


class Mixer(nn.Module):
    """An MLP over the rows and one over the columns, twice (arXiv:2105.01601), with LayerNorm."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()

        def mlp() -> nn.Module:
            return nn.Sequential(
                nn.LayerNorm(SIDE), nn.Linear(SIDE, width), nn.GELU(), nn.Linear(width, SIDE)
            )

        self.rows = nn.ModuleList([mlp(), mlp()])
        self.columns = nn.ModuleList([mlp(), mlp()])
        self.head = nn.Linear(SIDE * SIDE, CLASSES)

    def forward(self, images: Tensor) -> Tensor:
        """Digits (N, 64) to logits (N, 10)."""
        hidden = images.unflatten(1, (SIDE, SIDE))
        for row, column in zip(self.rows, self.columns, strict=True):
            hidden = hidden + row(hidden)
            hidden = hidden + column(hidden.mT).mT
        return torch.as_tensor(self.head(hidden.flatten(1)))


class VariationalAutoencoder(nn.Module):
    """A Gaussian code of 8 numbers (Kingma & Welling 2014, arXiv:1312.6114)."""

    def __init__(self) -> None:
        super().__init__()
        self.encode = nn.Sequential(nn.Linear(64, 48), nn.Tanh(), nn.Linear(48, 16))
        self.decode = nn.Sequential(nn.Linear(8, 48), nn.Tanh(), nn.Linear(48, 64))

    def forward(self, images: Tensor) -> Tensor:
        """Digits (N, 64) to logits of the pixels and the code's mean and log variance, (N, 80)."""
        mean, log_variance = self.encode(images).chunk(2, 1)
        noise = torch.randn_like(mean) if self.training else torch.zeros_like(mean)
        code = mean + noise * (0.5 * log_variance).exp()
        return torch.cat([self.decode(code), mean, log_variance], 1)


def negative_elbo(net: nn.Module, batch: tuple[Tensor]) -> Tensor:
    """Per pixel; in eval mode at the code's mean, so that it is a fixed function."""
    logits, mean, log_variance = net(batch[0]).split([64, 8, 8], 1)
    divergence = 0.5 * (mean.square() + log_variance.exp() - 1.0 - log_variance).sum(1).mean()
    return F.binary_cross_entropy_with_logits(logits, batch[0]) + divergence / 64


class Denoiser(nn.Module):
    """Predicts the noise in a noisy digit from the digit and its noise level."""

    def __init__(self, width: int = 96) -> None:
        super().__init__()
        self.level = nn.Embedding(NOISE_LEVELS, width)
        self.into = nn.Linear(64, width)
        self.inner = nn.Linear(width, width)
        self.out = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, 64))

    def forward(self, images: Tensor, levels: Tensor) -> Tensor:
        """Noisy digits (N, 64) and levels (N,) to noise (N, 64)."""
        hidden = F.silu(self.into(images) + self.level(levels))
        return torch.as_tensor(self.out(hidden + F.silu(self.inner(hidden))))


def noise_prediction(net: nn.Module, batch: tuple[Tensor, Tensor, Tensor]) -> Tensor:
    """The loss of denoising diffusion (Ho et al. 2020, arXiv:2006.11239, equation 14)."""
    noisy, levels, noise = batch
    return F.mse_loss(net(noisy, levels), noise)


def _encoder() -> nn.Sequential:
    return nn.Sequential(nn.Linear(64, 96), nn.GELU(), nn.Linear(96, 64), nn.GELU())


@cache
def _pretrained() -> dict[str, Tensor]:
    """Weights of an encoder that restores digits from noisy ones; in less than a second."""
    images = digits().train[0]
    with seeded_weights("bench/fine-tuned digits", -1), torch.enable_grad():
        encoder = _encoder()
        net = nn.Sequential(*encoder, nn.Linear(64, 64))
        optimizer = torch.optim.Adam(net.parameters(), lr=2e-3)
        for _ in range(PRETRAIN_STEPS):
            clean = images[torch.randint(len(images), (64,))]
            optimizer.zero_grad()
            F.mse_loss(net(clean + 0.3 * torch.randn_like(clean)), clean).backward()
            optimizer.step()
    return encoder.state_dict()


def pretrained_classifier() -> nn.Module:
    """Digits (N, 64) to logits (N, 10), by the pretrained encoder and a new head."""
    net = _encoder().append(nn.Linear(64, CLASSES))
    net.load_state_dict(_pretrained(), strict=False)  # all but the head
    return net


def residual_digits() -> Task:
    """A residual network with BatchNorm, momentum with weight decay."""
    sgd = partial(torch.optim.SGD, lr=USUAL_LR["momentum"], momentum=0.9, weight_decay=5e-4)
    return own_task("residual digits", residual_network, cross_entropy, sgd, digits(), horizon=600)


def residual_digits_nadam() -> Task:
    """The same network, trained by NAdam."""
    net = residual_network
    rule = partial(torch.optim.NAdam, lr=USUAL_LR["nadam"])
    return own_task("NAdam residual digits", net, cross_entropy, rule, digits(), horizon=500)


def vision_transformer(name: str = "vision transformer", known_horizon: bool = True) -> Task:
    """A vision transformer, AdamW with gradient clipping; other names start from other weights."""
    adamw = partial(torch.optim.AdamW, lr=USUAL_LR["adamw"], weight_decay=0.05)
    return own_task(
        name,
        VisionTransformer,
        cross_entropy,
        adamw,
        digits(),
        horizon=600,
        known_horizon=known_horizon,
        gradient_clip=1.0,
    )


def mixer_noisy_labels() -> Task:
    """A mixer, of whose labels 40% name the class after the right one; plain SGD."""
    data = digits()
    labels = data.targets.train
    generator = fixed_draws("mixer noisy labels").generator
    flipped = torch.rand(len(labels), generator=generator) < 0.4
    labels = torch.where(flipped, (labels + 1) % CLASSES, labels)
    sgd = partial(torch.optim.SGD, lr=USUAL_LR["sgd"])
    data = data.with_targets(labels)
    return own_task("mixer noisy labels", Mixer, cross_entropy, sgd, data, horizon=800)


def variational_autoencoder() -> Task:
    """A variational autoencoder, Adam."""
    images = digits().inputs
    data = Examples((images.train,), (images.validation,))
    adam = partial(torch.optim.Adam, lr=USUAL_LR["adam"])
    net = VariationalAutoencoder
    return own_task("variational autoencoder", net, negative_elbo, adam, data, horizon=800)


def diffusion() -> Task:
    """Denoising diffusion of digits with a cosine of noise levels, AdamW.

    Levels and noise are drawn once per example, so that the loss is a fixed function.
    """
    generator = fixed_draws("diffusion").generator

    def noised(images: Tensor, copies: int) -> tuple[Tensor, ...]:
        clean = 2.0 * images.repeat(copies, 1) - 1.0
        levels = torch.randint(NOISE_LEVELS, (len(clean),), generator=generator)
        noise = torch.randn(clean.shape, generator=generator)
        signal = torch.cos(0.5 * math.pi * (levels + 0.5) / NOISE_LEVELS).unsqueeze(1)
        return signal * clean + (1.0 - signal.square()).sqrt() * noise, levels, noise

    images = digits().inputs
    data = Examples(noised(images.train, 4), noised(images.validation, 2))
    adamw = partial(torch.optim.AdamW, lr=USUAL_LR["adamw"])
    return own_task(
        "diffusion", Denoiser, noise_prediction, adamw, data, horizon=1000, batch_size=64
    )


def fine_tuned_digits() -> Task:
    """A pretrained encoder and a new head, on 160 labelled digits; momentum."""
    whole = digits()
    few = tuple(part[:LABELLED] for part in whole.train)
    data = Examples(few, whole.validation)
    sgd = partial(torch.optim.SGD, lr=USUAL_LR["momentum"], momentum=0.9)
    net = pretrained_classifier
    return own_task("fine-tuned encoder", net, cross_entropy, sgd, data, horizon=300, batch_size=16)
