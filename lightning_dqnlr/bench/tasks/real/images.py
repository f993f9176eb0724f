"""Networks for images, on patches of sixteen photographs: a ResNet-20 and a U-Net.

The photographs are those that scikit-image brings. Of each the right fifth is held out, so that
training and validation share no pixel.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache, partial
from itertools import pairwise

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_dqnlr.bench.tasks.real.package_data import package_folder
from lightning_dqnlr.bench.tasks.task import fixed_draws, mixed, own_task
from lightning_dqnlr.tasks.data.examples import Examples, Labelled
from lightning_dqnlr.tasks.sampling import Draws
from lightning_dqnlr.tasks.task import Task

PHOTOGRAPHS = (
    "astronaut.png", "brick.png", "camera.png", "cell.png", "chelsea.png", "coffee.png",
    "coins.png", "grass.png", "gravel.png", "hubble_deep_field.jpg", "ihc.png", "moon.png",
    "motorcycle_left.png", "page.png", "retina.jpg", "rocket.jpg",
)  # fmt: skip
HELD_OUT = 0.2  # of the width
SIDE = 32  # pixels of a patch
PADDING = 4  # by which a patch is shifted at most
FLAT = 0.01  # least standard deviation of a patch
PATCHES = 24_000
HELD_OUT_PATCHES = 1024
NOISE = 0.2  # standard deviation; grey values lie in 0..1


class BasicBlock(nn.Module):
    """Two convolutions with BatchNorm beside a shortcut that only subsamples and pads.

    Option A of He et al. 2016 (arXiv:1512.03385, section 4.2), which needs no weights. The last
    BatchNorm starts from zero, so that the block does nothing at first (arXiv:1706.02677). More
    channels than `before` halve height and width.
    """

    def __init__(self, before: int, channels: int) -> None:
        super().__init__()
        self.stride = 2 if channels > before else 1
        self.more = channels - before
        last = nn.BatchNorm2d(channels)
        nn.init.zeros_(last.weight)
        self.branch = nn.Sequential(
            nn.Conv2d(before, channels, 3, self.stride, 1, bias=False),
            nn.BatchNorm2d(channels),
            nn.ReLU(),
            nn.Conv2d(channels, channels, 3, 1, 1, bias=False),
            last,
        )

    def forward(self, images: Tensor) -> Tensor:
        """Images (N, before, H, W) to (N, channels, H / stride, W / stride)."""
        shortcut = images[:, :, :: self.stride, :: self.stride]
        shortcut = F.pad(shortcut, (0, 0, 0, 0, self.more // 2, self.more - self.more // 2))
        return torch.relu(shortcut + torch.as_tensor(self.branch(images)))


def residual_network(classes: int = len(PHOTOGRAPHS)) -> nn.Module:
    """The residual network for small images of He et al. 2016 (arXiv:1512.03385, section 4.2).

    Three stages of three blocks with 16, 32 and 64 channels, and He's initial weights. Maps images
    (N, 1, H, W) to logits (N, C).
    """
    widths = (16, *(width for width in (16, 32, 64) for _ in range(3)))
    net = nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1, bias=False),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        *(BasicBlock(before, width) for before, width in pairwise(widths)),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(64, classes),
    )
    for part in net.modules():
        if isinstance(part, nn.Conv2d):
            nn.init.kaiming_normal_(part.weight)
    return net


def augmented_cross_entropy(net: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    """Cross-entropy; in training of images that are mirrored and shifted at random.

    This is the usual augmentation of small images (arXiv:1512.03385, section 4.2). Four pixels of
    zeros are added on each side. A random crop of the old size is mirrored half of the time.

    The loss of a batch (images, labels), shape ().
    """
    images, labels = batch
    return F.cross_entropy(net(augmented(images) if net.training else images), labels)


def augmented(images: Tensor) -> Tensor:
    """Images (N, C, H, W), each mirrored or not and shifted by up to `PADDING` pixels."""
    count, _, height, width = images.shape
    padded = F.pad(images, (PADDING,) * 4)
    tops, lefts = torch.randint(2 * PADDING + 1, (2, count, 1))
    rows = tops + torch.arange(height)
    columns = lefts + torch.arange(width)
    columns = torch.where(torch.rand(count, 1) < 0.5, columns.flip(1), columns)
    down = rows.unsqueeze(2).to(images.device)
    right = columns.unsqueeze(1).to(images.device)
    which = torch.arange(count, device=images.device)[:, None, None]
    return padded.permute(0, 2, 3, 1)[which, down, right].permute(0, 3, 1, 2)


class UNet(nn.Module):
    """Encoder and decoder with skips at every resolution (Ronneberger et al. 2015).

    arXiv:1505.04597, with padded convolutions, BatchNorm, and torch's own initial weights, as most
    implementations have them; it predicts what to take away (DnCNN, arXiv:1608.03981). The widths
    are channels at each resolution, the finest first.
    """

    def __init__(self, widths: Sequence[int] = (24, 48, 96)) -> None:
        super().__init__()
        pairs = list(pairwise((1, *widths)))
        self.down = nn.ModuleList(double_convolution(*pair) for pair in pairs)
        coarser = [(wide, fine) for fine, wide in pairs[1:]][::-1]
        self.up = nn.ModuleList(nn.ConvTranspose2d(*pair, 2, stride=2) for pair in coarser)
        self.join = nn.ModuleList(double_convolution(2 * fine, fine) for _, fine in coarser)
        self.out = nn.Conv2d(widths[0], 1, 1)

    def forward(self, images: Tensor) -> Tensor:
        """Noisy images (N, 1, H, W) to clean ones of the same shape."""
        skips = [self.down[0](images)]
        for layer in self.down[1:]:
            skips.append(layer(F.max_pool2d(skips[-1], 2)))
        hidden = skips.pop()
        for up, join in zip(self.up, self.join, strict=True):
            hidden = join(torch.cat([skips.pop(), up(hidden)], 1))
        return images - torch.as_tensor(self.out(hidden))


def double_convolution(before: int, channels: int) -> nn.Module:
    """Twice a convolution, BatchNorm and ReLU: (N, before, H, W) to (N, channels, H, W)."""
    layers: list[nn.Module] = []
    for width in (before, channels):
        layers.append(nn.Conv2d(width, channels, 3, padding=1, bias=False))
        layers += [nn.BatchNorm2d(channels), nn.ReLU()]
    return nn.Sequential(*layers)


def denoising(net: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    """Mean squared error of cleaned images, in units of the noise's variance.

    The noise is drawn anew in training; in evaluation it is that of the batch.

    The loss of a batch (clean images, standard normal noise), shape ().
    """
    clean, noise = batch
    noise = torch.randn(noise.shape).to(noise.device) if net.training else noise
    return F.mse_loss(net(clean + NOISE * noise), clean) / NOISE**2


@cache
def photographs(task: str) -> tuple[Tensor, ...]:
    """Grey values in 0..1 of all photographs, each float32 (H, W); errors of `package_folder`."""
    folder = package_folder("skimage", "scikit-image", task) / "data"
    package_folder("PIL", "pillow", task)
    from PIL import Image

    images = (np.asarray(Image.open(folder / name).convert("L")) for name in PHOTOGRAPHS)
    return tuple(torch.tensor(image, dtype=torch.float32) / 255.0 for image in images)


def cut_out(images: Sequence[Tensor], count: int, draws: Draws) -> Labelled:
    """Patches at random places; those on which there is nothing to be seen are drawn again.

    Returns:
        Patches (N, 1, SIDE, SIDE), and the numbers of their photographs (H, W), int64 (N,).
    """
    cut: list[Tensor] = []
    owners: list[int] = []
    while len(cut) < count:
        owner = draws.integer(0, len(images) - 1)
        height, width = images[owner].shape
        top = draws.integer(0, height - SIDE)
        left = draws.integer(0, width - SIDE)
        patch = images[owner][top : top + SIDE, left : left + SIDE]
        if patch.std() > FLAT:
            cut.append(patch)
            owners.append(owner)
    return Labelled(torch.stack(cut).unsqueeze(1), torch.tensor(owners))


def patches(task: str) -> Examples:
    """Patches with the photographs that they are of; errors as there."""
    draws = fixed_draws(task)
    whole = photographs(task)
    cuts = [round((1 - HELD_OUT) * image.shape[1]) for image in whole]
    train = [image[:, :cut] for image, cut in zip(whole, cuts, strict=True)]
    held_out = [image[:, cut:] for image, cut in zip(whole, cuts, strict=True)]
    own = cut_out(train, PATCHES, draws)
    return Examples(tuple(own), tuple(cut_out(held_out, HELD_OUT_PATCHES, draws)))


def resnet20() -> Task:
    """Which photograph a patch is of; momentum with weight decay, random crops, mirrored.

    Patches are standardised one by one, or their mean grey would tell.
    """
    parts = []
    for part in patches("ResNet-20"):
        cut = Labelled(*part)
        centred = cut.inputs - cut.inputs.mean((2, 3), True)
        parts.append((centred / cut.inputs.std((2, 3), keepdim=True), cut.targets))
    return own_task(
        "ResNet-20",
        partial(mixed, residual_network),
        augmented_cross_entropy,
        partial(torch.optim.SGD, lr=0.1, momentum=0.9, weight_decay=1e-4),
        Examples(*parts),
        horizon=1500,
        batch_size=64,
    )


def unet() -> Task:
    """Patches are freed of noise; Adam, batches of 32."""
    draws = fixed_draws("U-Net, noise")
    parts = ((images, draws.normal(*images.shape)) for images in patches("U-Net").inputs)
    return own_task(
        "U-Net",
        partial(mixed, UNet),
        denoising,
        partial(torch.optim.Adam, lr=1e-3),
        Examples(*parts),
        horizon=1500,
        batch_size=32,
    )
