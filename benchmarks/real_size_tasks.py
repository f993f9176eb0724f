"""The two tasks of `real_size.py`, on data that are on every machine, and how a run is watched.

A decoder transformer of ten million parameters reads the sources of Python's standard library; a
residual network of three and a half million looks at patches of scikit-learn's two photographs.
"""

from __future__ import annotations

import sysconfig
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path

import torch
from lightning import LightningModule
from torch import Tensor, nn

from lightning_dqnlr.bench.tasks.images import ResidualBlock
from lightning_dqnlr.bench.tasks.task import CrossEntropy, fixed_draws, own_task
from lightning_dqnlr.errors import ConfigurationError
from lightning_dqnlr.tasks.data.examples import Examples
from lightning_dqnlr.tasks.data.photographs import TREATMENTS, treated_patches
from lightning_dqnlr.tasks.data.text import VOCABULARY, encode, windows
from lightning_dqnlr.tasks.sampling import Draws
from lightning_dqnlr.tasks.task import Task

HEADS, ROTATIONS = 6, 4
# The families of meta-training read only the modules at the library's top level.
PACKAGES = (
    "asyncio", "collections", "concurrent", "ctypes", "email", "html", "http", "importlib", "json",
    "logging", "multiprocessing", "unittest", "urllib", "wsgiref", "xml", "xmlrpc",
)  # fmt: skip


@dataclass(frozen=True)
class Size:
    """How large the two tasks are; the default is the real size.

    Attributes:
        width: D of the transformer's tokens, a multiple of `HEADS`.
        layers: blocks of the transformer.
        context: characters that it reads.
        sequences: windows of text per step.
        windows: of text to train on; a sixteenth as many for validation.
        channels: of the residual network's first stage.
        images: per step.
        patches: of photographs to train on; a quarter as many for validation.
        side: height and width of a patch, in pixels.
    """

    width: int = 384
    layers: int = 6
    context: int = 256
    sequences: int = 32
    windows: int = 32_768
    channels: int = 32
    images: int = 128
    patches: int = 32_768
    side: int = 32


TINY = Size(24, 2, 32, 8, 256, 4, 16, 256, 16)


class Transformer(nn.Module):
    """A decoder of pre-norm blocks with GPT-2's initial weights, N(0, 0.02^2).

    The real size is that of nanoGPT's character-level model (Karpathy 2022).

    Args:
        size: of blocks, tokens and context.
    """

    mask: Tensor

    def __init__(self, size: Size) -> None:
        super().__init__()
        width = size.width
        self.tokens, self.places = (nn.Embedding(n, width) for n in (VOCABULARY, size.context))
        # Not nn.TransformerEncoder, whose blocks are copies and so start from equal weights.
        self.blocks = nn.ModuleList(_block(width) for _ in range(size.layers))
        self.head = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, VOCABULARY))
        mask = nn.Transformer.generate_square_subsequent_mask(size.context)
        self.register_buffer("mask", mask)
        for weight in self.parameters():
            if weight.ndim > 1:
                nn.init.normal_(weight, std=0.02)

    def forward(self, tokens: Tensor) -> Tensor:
        """Characters (N, context) to logits of the next ones, (N, context, VOCABULARY)."""
        hidden = self.tokens(tokens) + self.places.weight
        for block in self.blocks:
            hidden = block(hidden, self.mask, is_causal=True)
        return torch.as_tensor(self.head(hidden))


def _block(width: int) -> nn.Module:
    return nn.TransformerEncoderLayer(
        width, HEADS, 4 * width, 0.1, "gelu", batch_first=True, norm_first=True
    )


def residual_network(channels: int) -> nn.Module:
    """Patches (N, 3, H, W) to logits (N, 8): four stages of two blocks each.

    The stages are those of ResNet-18, the blocks "pre-act" (He et al. 2016, arXiv:1603.05027).
    """
    widths = [channels * 2**stage for stage in range(4)]
    layers: list[nn.Module] = [nn.Conv2d(3, channels, 3, padding=1)]
    layers += [ResidualBlock(channels) for _ in range(2)]
    for before, width in pairwise(widths):
        layers.append(nn.Conv2d(before, width, 3, stride=2, padding=1))
        layers += [ResidualBlock(width) for _ in range(2)]
    layers += [nn.BatchNorm2d(widths[-1]), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    return nn.Sequential(*layers, nn.Linear(widths[-1], 2 * ROTATIONS))


def source_text() -> tuple[Tensor, Tensor]:
    """The standard library's packages as codes (characters,); every tenth file is held out.

    Raises:
        ConfigurationError: their sources are not installed.
    """
    library = Path(sysconfig.get_paths()["stdlib"])
    found = (path for name in PACKAGES for path in sorted((library / name).rglob("*.py")))
    texts = [encode(p) for p in found if not {"test", "tests"} & {*p.relative_to(library).parts}]
    if len(texts) < 10:
        raise ConfigurationError(
            f"the transformer reads the standard library's sources, but {library} has next to "
            "none; install Python with its sources, or leave the task out: --tasks residual."
        )
    train = [text for place, text in enumerate(texts) if place % 10]
    return torch.cat(train), torch.cat(texts[::10])


def transformer_task(size: Size, steps: int) -> Task:
    """Next characters of Python's sources; AdamW, clipped gradients."""
    draws, parts = fixed_draws("real size: transformer"), []
    counts = (size.windows, size.windows // 16)
    for text, count in zip(source_text(), counts, strict=True):
        rows = windows(text, size.context + 1, count, draws)
        parts.append((rows[:, :-1], rows[:, 1:]))
    adamw = partial(torch.optim.AdamW, lr=1e-3, betas=(0.9, 0.95), weight_decay=0.1)
    return own_task(
        "transformer",
        partial(Transformer, size),
        CrossEntropy(),
        adamw,
        Examples(*parts),
        horizon=steps,
        batch_size=size.sequences,
        gradient_clip=1.0,
    )


def residual_task(size: Size, steps: int) -> Task:
    """Which photograph a patch is of, and how it was rotated; momentum with weight decay.

    Telling rotations is a task of self-supervised learning (Gidaris et al. 2018,
    arXiv:1803.07728). A frozen augmentation mirrors patches, blurs or roughens them, and changes
    their contrast. Training and validation share no pixel.

    Raises:
        ConfigurationError: scikit-learn or Pillow is not installed.
    """
    draws, count = fixed_draws("real size: residual"), min(1024, size.patches)
    repeats = range(size.patches // count)  # all at once, the treatments would take gigabytes
    blocks = [treated_patches("test", size.side, count, draws) for _ in repeats]
    parts = [[turned(*examples, draws) for examples in part] for part in zip(*blocks, strict=True)]
    sgd = partial(torch.optim.SGD, lr=0.1, momentum=0.9, weight_decay=5e-4)
    return own_task(
        "residual",
        partial(residual_network, size.channels),
        CrossEntropy(),
        sgd,
        Examples(*(tuple(map(torch.cat, zip(*part, strict=True))) for part in parts)),
        horizon=steps,
        batch_size=size.images,
    )


def turned(images: Tensor, labels: Tensor, draws: Draws) -> tuple[Tensor, Tensor]:
    """Patches mirrored, of other contrast and rotated; labels 4 * photograph + quarter turns."""
    count, generator = len(images), draws.generator
    mirrored = torch.rand(count, 1, 1, 1, generator=generator) < 0.5
    contrast = 0.5 + torch.rand(count, 1, 1, 1, generator=generator)
    images = torch.where(mirrored, images.flip(3), images) * contrast
    turns = torch.randint(ROTATIONS, (count,), generator=generator)
    every = torch.stack([torch.rot90(images, turn, (2, 3)) for turn in range(ROTATIONS)])
    return every[turns, torch.arange(count)], ROTATIONS * (labels // TREATMENTS) + turns


@dataclass(frozen=True)
class Watched:
    """Serves as `Task.build`: a module that tells of each training step; its code hash is kept.

    Attributes:
        build: the task's own.
        tick: called before each step.
        mixed_on: kind of device on which its network computes in mixed precision; "" for none.
    """

    build: Callable[[int], LightningModule]
    tick: Callable[[], None]
    mixed_on: str = ""

    def __call__(self, seed: int) -> LightningModule:
        """The module of this seed."""
        module = self.build(seed)
        network = module.get_submodule("net")
        network.register_forward_pre_hook(lambda net, _: self.tick() if net.training else None)
        if self.mixed_on:
            network.forward = partial(in_mixed_precision, self.mixed_on, network.forward)
        return module


def in_mixed_precision(kind: str, forward: Callable[..., Tensor], *inputs: Tensor) -> Tensor:
    """A network's outputs, computed in bfloat16 where autocast does so, in float32 for the loss."""
    with torch.autocast(kind, torch.bfloat16):
        return forward(*inputs).float()
