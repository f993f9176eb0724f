"""A ConvNeXt that reads printed characters, which are rendered from fonts and bent at random."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache, partial
from itertools import pairwise
from pathlib import Path
from string import ascii_letters, digits

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_dqnlr.bench.tasks.real.package_data import package_folder
from lightning_dqnlr.bench.tasks.task import cross_entropy, fixed_draws, own_task
from lightning_dqnlr.tasks.data.examples import Examples
from lightning_dqnlr.tasks.sampling import Draws
from lightning_dqnlr.tasks.task import Task

CHARACTERS = digits + ascii_letters
STYLES = ("", "-Bold", "-Oblique", "-BoldOblique")
# Matplotlib's own: DejaVu in sans, mono and serif, STIX, and Computer Modern.
FONTS = (
    *(f"DejaVuSans{style}" for style in STYLES),
    *(f"DejaVuSansMono{style}" for style in STYLES),
    "DejaVuSerif", "DejaVuSerif-Bold", "DejaVuSerif-Italic", "DejaVuSerif-BoldItalic",
    "STIXGeneral", "STIXGeneralBol", "STIXGeneralItalic", "STIXGeneralBolIta",
    "cmb10", "cmr10", "cmss10", "cmti10", "cmtt10",
)  # fmt: skip
RENDERED = 64  # pixels of a glyph
SIDE = 32  # pixels of an example
EXAMPLES = 30_000
HELD_OUT_EXAMPLES = 1024
EPSILON = 1e-6  # first values of the layer scales


class Block(nn.Module):
    """Depthwise convolution, LayerNorm, and an MLP, scaled by very little at first.

    Liu et al. 2022 (arXiv:2201.03545, figure 4 and appendix A.1).
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(channels, channels, 7, padding=3, groups=channels)
        self.norm = nn.LayerNorm(channels)
        self.mlp = nn.Sequential(
            nn.Linear(channels, 4 * channels), nn.GELU(), nn.Linear(4 * channels, channels)
        )
        self.scale = nn.Parameter(torch.full((channels,), EPSILON))

    def forward(self, images: Tensor) -> Tensor:
        """Images (N, channels, H, W) to the same shape."""
        hidden = self.norm(self.depthwise(images).permute(0, 2, 3, 1))
        return images + (self.scale * self.mlp(hidden)).permute(0, 3, 1, 2)


class OverChannels(nn.LayerNorm):
    """LayerNorm over the channels of images (N, C, H, W)."""

    def forward(self, images: Tensor) -> Tensor:
        """Same shape."""
        return super().forward(images.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class ConvNeXt(nn.Module):
    """A small ConvNeXt (arXiv:2201.03545): stages of so many channels and blocks.

    Weights start from a truncated N(0, 0.02^2).
    """

    def __init__(
        self,
        widths: Sequence[int] = (48, 96, 192),
        depths: Sequence[int] = (2, 2, 4),
        classes: int = len(CHARACTERS),
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.Conv2d(1, widths[0], 4, stride=4), OverChannels(widths[0])]
        layers += [Block(widths[0]) for _ in range(depths[0])]
        for (before, width), depth in zip(pairwise(widths), depths[1:], strict=True):
            layers += [OverChannels(before), nn.Conv2d(before, width, 2, stride=2)]
            layers += [Block(width) for _ in range(depth)]
        self.layers = nn.Sequential(*layers)
        self.head = nn.Sequential(nn.LayerNorm(widths[-1]), nn.Linear(widths[-1], classes))
        for part in self.modules():
            if isinstance(part, nn.Conv2d | nn.Linear):
                nn.init.trunc_normal_(part.weight, std=0.02)
                nn.init.zeros_(torch.as_tensor(part.bias))

    def forward(self, images: Tensor) -> Tensor:
        """Images (N, 1, SIDE, SIDE) to logits (N, C)."""
        return torch.as_tensor(self.head(self.layers(images).mean((2, 3))))


@cache
def glyphs() -> Tensor:
    """All characters in all fonts, black 0 and ink 1, (fonts, characters, RENDERED, RENDERED)."""
    task = "printed characters"
    folder = package_folder("matplotlib", "matplotlib", task) / "mpl-data" / "fonts" / "ttf"
    package_folder("PIL", "pillow", task)
    return torch.stack([rendered(folder / f"{name}.ttf") for name in FONTS])


def rendered(font: Path) -> Tensor:
    """The characters of a font file, each in the middle, (characters, RENDERED, RENDERED)."""
    from PIL import Image, ImageDraw, ImageFont

    # The basic layout does not depend on libraries that some builds of Pillow lack.
    loaded = ImageFont.truetype(font, RENDERED * 5 // 8, layout_engine=ImageFont.Layout.BASIC)
    images = []
    for character in CHARACTERS:
        image = Image.new("L", (RENDERED, RENDERED))
        middle = (RENDERED // 2, RENDERED // 2)
        ImageDraw.Draw(image).text(middle, character, fill=255, font=loaded, anchor="mm")
        pixels = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8)
        images.append(pixels.reshape(RENDERED, RENDERED) / 255.0)
    return torch.stack(images)


def bent(images: Tensor, draws: Draws) -> Tensor:
    """Images (N, 1, RENDERED, RENDERED) turned, sheared, scaled, moved, noisy: (N, 1, SIDE, SIDE).

    What is turned and sheared has a standard deviation of 0.15, some nine degrees.
    """
    count = len(images)
    generator = draws.generator
    scale = 0.6 + 0.4 * torch.rand(count, 1, 1, generator=generator)
    bend = torch.eye(2) + 0.15 * draws.normal(count, 2, 2)
    move = 0.08 * draws.normal(count, 2, 1)
    grid = F.affine_grid(torch.cat([scale * bend, move], 2), [count, 1, SIDE, SIDE], False)
    contrast = 0.4 + 0.6 * torch.rand(count, 1, 1, 1, generator=generator)
    paper = F.grid_sample(images, grid, align_corners=False)
    return 2.0 * contrast * paper + 0.3 * draws.normal(count, 1, SIDE, SIDE) - 0.5


def printed(chosen: Tensor, count: int, draws: Draws) -> tuple[Tensor, Tensor]:
    """Examples (count, 1, SIDE, SIDE) of some glyphs, int64 (glyphs,), and their characters."""
    which = chosen[torch.randint(len(chosen), (count,), generator=draws.generator)]
    drawn = glyphs().flatten(0, 1)[which].unsqueeze(1)
    return bent(drawn, draws), which % len(CHARACTERS)


def printed_characters() -> Task:
    """62 characters in 21 fonts, a tenth of the glyphs held out; AdamW, batches of 64."""
    draws = fixed_draws("printed characters")
    count = len(FONTS) * len(CHARACTERS)
    order = torch.randperm(count, generator=draws.generator)
    held_out = order[: count // 10]
    train = order[count // 10 :]
    return own_task(
        "printed characters",
        ConvNeXt,
        cross_entropy,
        partial(torch.optim.AdamW, lr=1e-3, weight_decay=0.05),
        Examples(printed(train, EXAMPLES, draws), printed(held_out, HELD_OUT_EXAMPLES, draws)),
        horizon=1500,
        batch_size=64,
    )
