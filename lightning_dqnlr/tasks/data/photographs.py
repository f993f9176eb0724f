"""Data from scikit-learn's two sample photographs: patches, treated patches, coordinates.

No pixel is shared. Each split of the tasks has columns of its own, and within a task training and
validation have rows of their own.
"""

from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_dqnlr.errors import needs_package
from lightning_dqnlr.tasks.data.examples import (
    Examples,
    Labelled,
    Parts,
    multiple_of_eight,
    split_off,
)
from lightning_dqnlr.tasks.sampling import Draws, Split

PHOTOGRAPHS = 2
# Both are 427 x 640 pixels.
SPLIT_COLUMNS: dict[Split, range] = {
    "train": range(384),
    "validation": range(384, 512),
    "test": range(512, 640),
}
TRAIN_ROWS = range(320)
VALIDATION_ROWS = range(320, 427)
TREATMENTS = 4
NOISE = 0.3


@lru_cache(maxsize=1)
def _photographs() -> tuple[Tensor, ...]:
    """The photographs, each (3, 427, 640), every colour standardised over its photograph."""
    with needs_package("each photograph task", "scikit-learn with Pillow", "train"):
        from sklearn.datasets import load_sample_images

        # scikit-learn reads them by Pillow. Without Pillow it raises an ImportError, too.
        images = load_sample_images().images
    pixels = [torch.tensor(image, dtype=torch.float32).permute(2, 0, 1) for image in images]
    return tuple((p - p.mean((1, 2), True)) / p.std((1, 2), keepdim=True) for p in pixels)


def patches(split: Split, size: int, examples: int, draws: Draws) -> Parts:
    """Training patches (N, 3, size, size) of random places, and N // 4 validation patches.

    Over a whole photograph each colour has mean 0 and variance 1.

    Raises:
        MissingPackageError: scikit-learn or Pillow is not installed.
    """
    return _parts(split, size, examples, draws).inputs


def treated_patches(split: Split, size: int, examples: int, draws: Draws) -> Examples:
    """Patches of which a quarter each are plain, blurred along x, blurred along y, and noisy.

    Labels, int64 (N,), are the treatment in the order above, plus 4 for the second photograph. See
    `patches` for the shapes and for what is raised.
    """
    parts = _parts(split, size, examples, draws)
    return Examples(*(tuple(_treated(Labelled(*part), draws)) for part in parts))


def noisy_patches(split: Split, size: int, examples: int, noise: float, draws: Draws) -> Examples:
    """Patches with white noise of the given standard deviation; the targets are the clean ones."""
    clean = patches(split, size, examples, draws)
    return Examples(*((part + noise * draws.normal(*part.shape), part) for part in clean))


def coordinates(split: Split, side: int, draws: Draws) -> Examples:
    """A square of a photograph as a function from position to colour.

    Positions (N, 2) have coordinates in [-1, 1], colours are (N, 3). A fifth of the pixels is held
    out at random.
    """
    photograph = _photographs()[draws.integer(0, PHOTOGRAPHS - 1)]
    columns = SPLIT_COLUMNS[split]
    top = draws.integer(0, 427 - side)
    first = draws.integer(columns.start, columns.stop - side)
    square = photograph[:, top : top + side, first : first + side]
    line = torch.linspace(-1.0, 1.0, side)
    positions = torch.cartesian_prod(line, line)
    order = torch.randperm(side * side, generator=draws.generator)
    colours = square.flatten(1).T
    return split_off(multiple_of_eight(side * side * 4 // 5), positions[order], colours[order])


def _parts(split: Split, size: int, examples: int, draws: Draws) -> Examples:
    """Patches and the number of each patch's photograph."""
    columns = SPLIT_COLUMNS[split]
    train = _cut(examples, size, TRAIN_ROWS, columns, draws)
    held_out = _cut(examples // 4, size, VALIDATION_ROWS, columns, draws)
    return Examples(tuple(train), tuple(held_out))


def _cut(count: int, size: int, rows: range, columns: range, draws: Draws) -> Labelled:
    """Patches (count, 3, size, size) within rows and columns, and their photographs (count,)."""
    photographs = _photographs()
    which = torch.randint(PHOTOGRAPHS, (count,), generator=draws.generator)
    tops, lefts = (
        torch.randint(pixels.start, pixels.stop - size + 1, (count,), generator=draws.generator)
        for pixels in (rows, columns)
    )
    corners = zip(which.tolist(), tops.tolist(), lefts.tolist(), strict=True)
    cut = [photographs[k][:, top : top + size, left : left + size] for k, top, left in corners]
    return Labelled(torch.stack(cut), which)


def _treated(part: Labelled, draws: Draws) -> Labelled:
    images = part.inputs
    treatment = torch.randint(TREATMENTS, (len(images),), generator=draws.generator)
    along_x = F.avg_pool2d(images, (1, 3), 1, (0, 1), count_include_pad=False)
    along_y = F.avg_pool2d(images, (3, 1), 1, (1, 0), count_include_pad=False)
    noisy = images + NOISE * draws.normal(*images.shape)
    every = torch.stack([images, along_x, along_y, noisy])
    treated = every[treatment, torch.arange(len(images))]
    return Labelled(treated, TREATMENTS * part.targets + treatment)
