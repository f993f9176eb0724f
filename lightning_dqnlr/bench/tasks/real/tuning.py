"""Fine-tuning of a small GPT: all of its weights, or low-rank changes of its matrices (LoRA).

`benchmarks/pretrain_gpt.py` pretrained it on the sources of the standard library's packages. The
weights come with this package, so that every run on every machine starts from the same. It learns
to say of which package a piece of source is.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache, partial
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.utils import parametrize

from lightning_dqnlr.bench.tasks.real.text import CHARACTER_CONTEXT, GPT, PACKAGES, library_files
from lightning_dqnlr.bench.tasks.task import cross_entropy, fixed_draws, own_task
from lightning_dqnlr.tasks.data.examples import Examples, Labelled
from lightning_dqnlr.tasks.data.text import encode, windows
from lightning_dqnlr.tasks.sampling import Draws
from lightning_dqnlr.tasks.task import Task

# The size of the network that is pretrained.
WIDTH = 96
LAYERS = 4
HEADS = 4
PRETRAINED = Path(__file__).parent / "pretrained" / "source_gpt.safetensors"
PIECES = 49_152
HELD_OUT_PIECES = 1024
RANK = 8  # of the changes by LoRA
ALPHA = 16
ADAPTED = ("in_proj_weight", "out_proj.weight", "linear1.weight", "linear2.weight")


def small_gpt() -> GPT:
    """The network that is pretrained, with fresh weights."""
    return GPT(CHARACTER_CONTEXT, WIDTH, LAYERS, HEADS)


@cache
def _pretrained() -> dict[str, Tensor]:
    """Its weights, which lie there in half precision."""
    return {name: weight.float() for name, weight in load_file(PRETRAINED).items()}


class Classifier(nn.Module):
    """The pretrained GPT with a new head on the mean of its last states.

    The head starts from GPT-2's N(0, 0.02^2), and its bias from zero.
    """

    def __init__(self) -> None:
        super().__init__()
        self.gpt = small_gpt()
        self.gpt.load_state_dict(_pretrained(), strict=False)
        self.head = nn.Linear(WIDTH, len(PACKAGES))
        nn.init.normal_(self.head.weight, std=0.02)
        nn.init.zeros_(self.head.bias)

    def forward(self, pieces: Tensor) -> Tensor:
        """Pieces of source, int64 (N, T), to logits of the packages (N, len(PACKAGES))."""
        return torch.as_tensor(self.head(self.gpt.states(pieces).mean(1)))


class LowRank(nn.Module):
    """Adds a matrix of low rank to one that stays as it is (LoRA, arXiv:2106.09685).

    W + (alpha / rank) B A. A starts as torch initialises linear maps, and B from zero. The weight W
    has shape (outputs, inputs).
    """

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        outputs, inputs = weight.shape
        self.down = nn.Parameter(torch.empty(RANK, inputs))
        self.up = nn.Parameter(torch.zeros(outputs, RANK))
        nn.init.kaiming_uniform_(self.down, a=5**0.5)

    def forward(self, weight: Tensor) -> Tensor:
        """The changed matrix, of the same shape."""
        return weight + ALPHA / RANK * (self.up @ self.down)


def adapted() -> nn.Module:
    """The classifier; only its head and low-rank changes of the blocks' matrices are trained."""
    net = Classifier()
    net.gpt.requires_grad_(False)
    for block in net.gpt.blocks:
        for path, _ in list(block.named_parameters()):
            if path.endswith(ADAPTED):
                owner, _, name = path.rpartition(".")
                part = block.get_submodule(owner)
                change = LowRank(part.get_parameter(name))
                parametrize.register_parametrization(part, name, change)
    return net


def pieces_of(files: Iterable[Path], count: int, draws: Draws) -> Labelled:
    """Pieces of source at random places, int64 (count, T), and the numbers of their packages."""
    codes = []
    labels = []
    for path in files:
        text = encode(path)
        package = next(PACKAGES.index(name) for name in path.parts[::-1] if name in PACKAGES)
        codes.append(text)
        labels.append(torch.full_like(text, package))
    both = torch.stack([torch.cat(codes), torch.cat(labels)], 1)
    cut = windows(both, CHARACTER_CONTEXT, count, draws)
    return Labelled(cut[:, :, 0], cut[:, 0, 1])


def packages(task: str) -> Examples:
    """Pieces of the packages; those for validation are of every tenth file, which GPT never saw.

    Licences and the like stand in several files; such pieces are not held out.
    """
    draws = fixed_draws(task)
    files = library_files(PACKAGES, task)
    train = pieces_of((path for place, path in enumerate(files) if place % 10), PIECES, draws)
    others = pieces_of(files[::10], 2 * HELD_OUT_PIECES, draws)
    known = set(map(tuple, train.inputs.tolist()))
    pieces = enumerate(others.inputs.tolist())
    fresh = [place for place, piece in pieces if tuple(piece) not in known]
    held_out = torch.tensor(fresh[:HELD_OUT_PIECES])
    return Examples(tuple(train), tuple(part[held_out] for part in others))


# Batches of 32 and clipped gradients, of both.
_tuned = partial(own_task, horizon=1500, batch_size=32, gradient_clip=1.0)


def fine_tuned_gpt() -> Task:
    """All weights; AdamW at the rate that Hugging Face's Trainer has by default."""
    name = "fine-tuned GPT"
    adamw = partial(torch.optim.AdamW, lr=5e-5, weight_decay=0.01)
    return _tuned(name, Classifier, cross_entropy, adamw, packages(name))


def trained_only(parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
    """AdamW, of what is not frozen, at the rate of LoRA's paper for GPT-2."""
    return torch.optim.AdamW([p for p in parameters if p.requires_grad], lr=2e-4, weight_decay=0.01)


def lora_gpt() -> Task:
    """Low-rank changes and the head; AdamW."""
    name = "LoRA GPT"
    return _tuned(name, adapted, cross_entropy, trained_only, packages(name))
