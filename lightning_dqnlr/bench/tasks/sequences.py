"""Sequence tasks of data and architectures that no family draws.

The data are Python's own documentation as English text, the syntax of its sources, and a chaotic
series. The texts are what the running Python was installed with, so these tasks are the same on
machines with the same Python version only.
"""

from __future__ import annotations

import io
import re
import tokenize
from collections import Counter
from collections.abc import Iterable, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_dqnlr.bench.tasks.task import (
    USUAL_LR,
    cross_entropy,
    fixed_draws,
    own_task,
    squared_error,
)
from lightning_dqnlr.errors import ConfigurationError
from lightning_dqnlr.tasks.data.examples import Examples, four_fifths
from lightning_dqnlr.tasks.data.text import (
    CHARACTERS,
    VOCABULARY,
    encode,
    next_in,
    source_files,
    windows,
)
from lightning_dqnlr.tasks.optimizers import OwnRule
from lightning_dqnlr.tasks.task import Task

CONTEXT = 32  # characters
WORD_CONTEXT = 16
WORDS = 400  # of the vocabulary
NEGATIVES = 5
# What a character belongs to, from 1; 0 for what lies between tokens.
_TOKENS = (tokenize.NAME, tokenize.NUMBER, tokenize.STRING, tokenize.OP, tokenize.COMMENT)
KINDS = {token: kind for kind, token in enumerate(_TOKENS, 1)}


class DecoderTransformer(nn.Module):
    """Two pre-norm blocks of torch's own `TransformerEncoderLayer` under a causal mask."""

    mask: Tensor

    def __init__(self, width: int = 32, layers: int = 2) -> None:
        super().__init__()
        self.tokens = nn.Embedding(VOCABULARY, width)
        self.places = nn.Embedding(CONTEXT, width)
        block = nn.TransformerEncoderLayer(
            width, 4, 2 * width, dropout=0.1, activation="gelu", batch_first=True, norm_first=True
        )
        self.blocks = nn.TransformerEncoder(block, layers, enable_nested_tensor=False)
        self.head = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, VOCABULARY))
        self.register_buffer("mask", nn.Transformer.generate_square_subsequent_mask(CONTEXT))

    def forward(self, tokens: Tensor) -> Tensor:
        """Characters (N, CONTEXT) to logits of the next ones, (N, CONTEXT, VOCABULARY)."""
        hidden = self.tokens(tokens) + self.places.weight
        return torch.as_tensor(self.head(self.blocks(hidden, self.mask, is_causal=True)))


class Recurrent(nn.Module):
    """An embedding, torch's own LSTM, and a linear layer at every step: (N, T) to (N, T, outputs).

    With `bidirectional` a GRU that also reads backwards takes the LSTM's place.
    """

    def __init__(self, vocabulary: int, outputs: int, hidden: int, bidirectional: bool) -> None:
        super().__init__()
        self.tokens = nn.Embedding(vocabulary, hidden)
        kind = nn.GRU if bidirectional else nn.LSTM
        self.states = kind(hidden, hidden, batch_first=True, bidirectional=bidirectional)
        self.head = nn.Linear(hidden * (1 + bidirectional), outputs)

    def forward(self, tokens: Tensor) -> Tensor:
        states, _ = self.states(self.tokens(tokens))
        return torch.as_tensor(self.head(states))


class SkipGram(nn.Module):
    """Scores how well contexts fit a word, by the product of their vectors (arXiv:1310.4546)."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.word = nn.Embedding(WORDS, width)
        self.context = nn.Embedding(WORDS, width)
        for embedding in (self.word, self.context):
            nn.init.normal_(embedding.weight, std=0.1)

    def forward(self, word: Tensor, contexts: Tensor) -> Tensor:
        """Words (N,) and contexts (N, C) to scores (N, C)."""
        return (self.word(word).unsqueeze(1) * self.context(contexts)).sum(2)


def negative_sampling(net: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    """The first context is the right one, the others were drawn (arXiv:1310.4546, equation 4)."""
    word, contexts = batch
    signs = -torch.ones(contexts.shape[1], device=word.device)
    signs[0] = 1.0
    return -F.logsigmoid(signs * net(word, contexts)).sum(1).mean()


class TemporalConvolutions(nn.Module):
    """Dilated causal convolutions with skips (Bai et al. 2018, arXiv:1803.01271)."""

    def __init__(self, channels: int = 16) -> None:
        super().__init__()
        self.into = nn.Conv1d(1, channels, 1)
        self.layers = nn.ModuleList(
            nn.Conv1d(channels, channels, 2, dilation=2**depth) for depth in range(4)
        )
        self.out = nn.Conv1d(channels, 1, 1)

    def forward(self, series: Tensor) -> Tensor:
        """Values (N, T) to forecasts (N, T)."""
        hidden = self.into(series.unsqueeze(1))
        for depth, layer in enumerate(self.layers):
            hidden = hidden + torch.relu(layer(F.pad(hidden, (2**depth, 0))))
        return torch.as_tensor(self.out(hidden)).squeeze(1)


def help_topics() -> list[str]:
    """The texts of Python's `help()`, sorted by name, about 460,000 characters of English.

    Raises:
        ConfigurationError: this Python was installed without them.
    """
    try:
        from pydoc_data.topics import topics
    except ImportError as error:
        raise ConfigurationError(
            "tasks on Python's documentation read pydoc_data, which this Python was installed "
            "without; install Python with its standard library, or leave them out: "
            "suite.tasks=[...]."
        ) from error
    return [topics[name] for name in sorted(topics)]


def by_frequency(words: Sequence[str], text: Sequence[str], vocabulary: int) -> Tensor:
    """Words as codes from 1, by how frequent they are in a text; 0 for those that are rare."""
    frequent = Counter(text).most_common(vocabulary - 1)
    code = {word: index for index, (word, _) in enumerate(frequent, 1)}
    return torch.tensor([code.get(word, 0) for word in words])


@cache
def _characters() -> Tensor:
    text = "\n".join(help_topics())
    return torch.tensor([CHARACTERS.find(character) + 1 for character in text])


@cache
def _words() -> Tensor:
    words = re.findall(r"[a-z]+", "\n".join(help_topics()).lower())
    return by_frequency(words, words, WORDS)


def language_model(name: str, horizon: int) -> Task:
    """A transformer that reads Python's documentation by characters; AdamW, clipped gradients."""
    adamw = partial(torch.optim.AdamW, lr=USUAL_LR["adamw"], betas=(0.9, 0.95), weight_decay=0.1)
    data = next_in(four_fifths(_characters()), CONTEXT, 4096, fixed_draws(name))
    return own_task(
        name,
        DecoderTransformer,
        cross_entropy,
        adamw,
        data,
        horizon=horizon,
        batch_size=8,
        gradient_clip=1.0,
    )


def word_model() -> Task:
    """An LSTM that reads the documentation by words, trained by Lion."""
    net = partial(Recurrent, WORDS, WORDS, 32, False)
    data = next_in(four_fifths(_words()), WORD_CONTEXT, 2048, fixed_draws("Lion word LSTM"))
    lion = partial(Lion, lr=USUAL_LR["lion"], weight_decay=0.1)
    return own_task("Lion word LSTM", net, cross_entropy, lion, data, horizon=800, batch_size=8)


def word_vectors() -> Task:
    """Skip-gram with negative sampling on the documentation's words, trained by Adagrad."""
    draws = fixed_draws("Adagrad word vectors")
    parts = []
    for part, count in zip(four_fifths(_words()), (8192, 2048), strict=True):
        pairs = windows(part[part > 0], 3, count, draws)  # neighbours, rare words left out
        wrong = part[torch.randint(len(part), (count, NEGATIVES), generator=draws.generator)]
        parts.append((pairs[:, 0], torch.cat([pairs[:, 2:], wrong], 1)))
    data = Examples(*parts)
    rule = partial(torch.optim.Adagrad, lr=USUAL_LR["adagrad"])
    return own_task("Adagrad word vectors", SkipGram, negative_sampling, rule, data, horizon=1000)


def token_kinds(path: Path) -> Tensor:
    """What each character of a source file belongs to, int64 (characters,); see `KINDS`."""
    lines = list(io.StringIO(path.read_text(encoding="utf-8", errors="replace")))
    starts = [0]
    for line in lines:
        starts.append(starts[-1] + len(line))
    kinds = torch.zeros(starts[-1], dtype=torch.int64)
    for token in tokenize.generate_tokens(iter([*lines, ""]).__next__):
        kind = KINDS.get(token.type)
        if kind is not None:
            (row, column), (last_row, last_column) = token.start, token.end
            kinds[starts[row - 1] + column : starts[last_row - 1] + last_column] = kind
    return kinds


def syntax_tagger() -> Task:
    """A bidirectional GRU that says what each character of a source file belongs to; Adam."""
    draws = fixed_draws("syntax tagger")
    parts: list[list[Tensor]] = [[], []]
    for path in source_files("test")[:3]:
        codes = encode(path)
        both = torch.stack([codes, token_kinds(path)[: len(codes)]], 1)
        for part, rows, count in zip(parts, four_fifths(both), (512, 128), strict=True):
            part.append(windows(rows, 24, count, draws))
    net = partial(Recurrent, VOCABULARY, 1 + len(KINDS), 16, True)
    adam = partial(torch.optim.Adam, lr=USUAL_LR["adam"])
    data = Examples(*(torch.cat(part).unbind(2) for part in parts))
    return own_task("syntax tagger", net, cross_entropy, adam, data, horizon=500, batch_size=8)


def mackey_glass(length: int, delay: int = 17) -> Tensor:
    """The chaotic series x' = 0.2 x_d / (1 + x_d^10) - 0.1 x of Mackey & Glass 1977, (length,).

    Euler steps of 1, standardised, after a burn-in.
    """
    burn_in = 300
    values = [1.2] * (delay + 1)
    for _ in range(burn_in + length):
        late = values[-1 - delay]
        values.append(values[-1] + 0.2 * late / (1.0 + late**10) - 0.1 * values[-1])
    series = torch.tensor(values[-length:])
    return (series - series.mean()) / series.std()


def chaotic_series() -> Task:
    """Temporal convolutions that forecast six steps of the Mackey-Glass series ahead; momentum."""
    draws = fixed_draws("chaotic series")
    ahead = 6
    length = 40
    parts = []
    for part, count in zip(four_fifths(mackey_glass(4000)), (1024, 256), strict=True):
        rows = windows(part, length + ahead, count, draws)
        measured = rows[:, :-ahead] + 0.05 * draws.normal(count, length)
        parts.append((measured, rows[:, ahead:]))
    net = TemporalConvolutions
    sgd = partial(torch.optim.SGD, lr=USUAL_LR["momentum"], momentum=0.9)
    data = Examples(*parts)
    return own_task("chaotic series", net, squared_error, sgd, data, horizon=800, batch_size=16)


class Lion(OwnRule):
    """The sign of an interpolated momentum (Chen et al. 2023, arXiv:2302.06675, algorithm 2).

    c = beta1 m + (1 - beta1) g; theta -= lr (sign(c) + weight_decay theta);
    m = beta2 m + (1 - beta2) g.

    The learning rate is about a tenth of what Adam would have.
    """

    def __init__(
        self,
        params: Iterable[nn.Parameter],
        lr: float = 1e-4,
        betas: tuple[float, float] = (0.9, 0.99),
        weight_decay: float = 0.0,
    ) -> None:
        defaults = {"lr": lr, "betas": betas, "weight_decay": weight_decay}
        super().__init__(params, {**defaults, "decoupled_weight_decay": True})

    def direction(self, gradient: Tensor, state: dict[str, Any], group: dict[str, Any]) -> Tensor:
        beta1, beta2 = group["betas"]
        momentum: Tensor = state.setdefault("momentum", torch.zeros_like(gradient))
        direction = momentum.lerp(gradient, 1.0 - beta1).sign()
        momentum.lerp_(gradient, 1.0 - beta2)
        return direction
