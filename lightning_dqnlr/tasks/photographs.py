"""Data from scikit-learn's two sample photographs: patches, rotated patches, coordinates.

Each split of the tasks has columns of its own, and within a task training and validation have rows
of their own, so that no pixel of one is seen by the other.
"""

from functools import lru_cache

import torch
from torch import Tensor

from lightning_dqnlr.errors import ConfigurationError
from lightning_dqnlr.tasks.data import Examples, multiple_of_eight
from lightning_dqnlr.tasks.sampling import Draws, Split

PHOTOGRAPHS = 2
# Both are 427 x 640 pixels.
COLUMNS: dict[Split, tuple[int, int]] = {
    "train": (0, 384),
    "validation": (384, 512),
    "test": (512, 640),
}
TRAIN_ROWS, VALIDATION_ROWS = (0, 320), (320, 427)
QUARTER_TURNS = 4


@lru_cache(maxsize=1)
def _photographs() -> tuple[Tensor, ...]:
    """The photographs, each (3, 427, 640), every colour standardised over its photograph."""
    try:
        from sklearn.datasets import load_sample_images

        # scikit-learn reads them by Pillow, and says so by an ImportError, too.
        images = load_sample_images().images
    except ImportError as error:
        raise ConfigurationError(
            "the photograph tasks need scikit-learn and Pillow, which are not both installed; "
            'run: pip install "lightning-dqnlr[train]"'
        ) from error
    pixels = [torch.tensor(image, dtype=torch.float32).permute(2, 0, 1) for image in images]
    return tuple((p - p.mean((1, 2), True)) / p.std((1, 2), keepdim=True) for p in pixels)


def patches(split: Split, size: int, examples: int, draws: Draws) -> tuple[Tensor, Tensor]:
    """Cuts patches at random places of both photographs.

    Args:
        split: whose columns to cut from.
        size: height and width in pixels.
        examples: number of training patches; a quarter as many are added for validation.
        draws: decides where.

    Returns:
        Training patches (N, 3, size, size) and validation patches (N // 4, 3, size, size); over a
        whole photograph each colour has mean 0 and variance 1.

    Raises:
        ConfigurationError: scikit-learn or Pillow is not installed.
    """
    rows = TRAIN_ROWS, VALIDATION_ROWS
    train, validation = (
        _cut(count, size, where, COLUMNS[split], draws)
        for count, where in zip((examples, examples // 4), rows, strict=True)
    )
    return train, validation


def rotated_patches(split: Split, size: int, examples: int, draws: Draws) -> Examples:
    """Patches turned by 0 to 3 quarter turns; the label counts them (Gidaris 2018, 1803.07728)."""
    train, validation = (_turned(p, draws) for p in patches(split, size, examples, draws))
    return Examples(train, validation)


def noisy_patches(split: Split, size: int, examples: int, noise: float, draws: Draws) -> Examples:
    """Patches with white noise of the given standard deviation; the targets are the clean ones."""
    train, validation = (
        (p + noise * draws.normal(*p.shape), p) for p in patches(split, size, examples, draws)
    )
    return Examples(train, validation)


def coordinates(split: Split, side: int, draws: Draws) -> Examples:
    """A square of a photograph as a function from position to colour.

    Args:
        split: whose columns the square lies in.
        side: of the square, in pixels.
        draws: decides the photograph, the square, and which fifth of the pixels is held out.

    Returns:
        Positions (N, 2), each coordinate in [-1, 1], and colours (N, 3).
    """
    photograph = _photographs()[draws.integer(0, PHOTOGRAPHS - 1)]
    left, right = COLUMNS[split]
    top, first = draws.integer(0, 427 - side), draws.integer(left, right - side)
    square = photograph[:, top : top + side, first : first + side]
    line = torch.linspace(-1.0, 1.0, side)
    positions = torch.cartesian_prod(line, line)
    order = torch.randperm(side * side, generator=draws.generator)
    positions, colours = positions[order], square.flatten(1).T[order]
    cut = multiple_of_eight(side * side * 4 // 5)
    return Examples((positions[:cut], colours[:cut]), (positions[cut:], colours[cut:]))


def _cut(
    count: int, size: int, rows: tuple[int, int], columns: tuple[int, int], draws: Draws
) -> Tensor:
    """Returns patches (count, 3, size, size) that lie within the rows and columns."""
    photographs = _photographs()
    which = torch.randint(PHOTOGRAPHS, (count,), generator=draws.generator).tolist()
    tops = torch.randint(rows[0], rows[1] - size + 1, (count,), generator=draws.generator)
    lefts = torch.randint(columns[0], columns[1] - size + 1, (count,), generator=draws.generator)
    corners = zip(which, tops.tolist(), lefts.tolist(), strict=True)
    return torch.stack(
        [photographs[k][:, top : top + size, left : left + size] for k, top, left in corners]
    )


def _turned(images: Tensor, draws: Draws) -> tuple[Tensor, Tensor]:
    turns = torch.randint(QUARTER_TURNS, (len(images),), generator=draws.generator)
    every = torch.stack([torch.rot90(images, k, (2, 3)) for k in range(QUARTER_TURNS)])
    return every[turns, torch.arange(len(images))], turns
