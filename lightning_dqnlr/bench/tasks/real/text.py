"""Language models of real size: a GPT on characters, an LSTM on words.

Both read what every Python brings: the sources of the standard library, and what their authors
wrote into them for people. The text differs between Python versions, so these tasks are the same on
machines with the same version only.
"""

from __future__ import annotations

import ast
import math
import re
import sysconfig
from functools import cache, partial
from pathlib import Path

import torch
from torch import Tensor, nn

from lightning_dqnlr.bench.tasks.sequences import by_frequency, help_topics
from lightning_dqnlr.bench.tasks.task import mixed, own_task
from lightning_dqnlr.errors import ConfigurationError
from lightning_dqnlr.tasks.data.examples import Examples, Parts
from lightning_dqnlr.tasks.data.text import VOCABULARY, encode
from lightning_dqnlr.tasks.task import Task

# The families of meta-training read only the modules at the library's top level.
PACKAGES = (
    "asyncio", "collections", "concurrent", "ctypes", "email", "html", "http", "importlib", "json",
    "logging", "multiprocessing", "unittest", "urllib", "wsgiref", "xml", "xmlrpc",
)  # fmt: skip
# A text is cut into so many rows. Evaluations read one window of each.
ROWS = 1024
HELD_OUT_ROWS = 512
CHARACTER_CONTEXT = 64
WORD_CONTEXT = 35
WORDS = 4096
_WORD = re.compile(r"[a-z]+|[.,;:()]")


class GPT(nn.Module):
    """A decoder of pre-norm blocks with GPT-2's initial weights (Radford et al. 2019).

    All matrices are drawn from N(0, 0.02^2), but those that write into the residual stream of L
    blocks from N(0, 0.02^2 / 2L). The head is tied to the embedding. The default is the
    character-level model of nanoGPT (Karpathy 2022), of 10.7 million parameters. It reads at most
    `context` tokens.
    """

    mask: Tensor

    def __init__(
        self,
        context: int = CHARACTER_CONTEXT,
        width: int = 384,
        layers: int = 6,
        heads: int = 6,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.tokens = nn.Embedding(VOCABULARY, width)
        self.places = nn.Embedding(context, width)
        self.dropout = nn.Dropout(dropout)
        # Not nn.TransformerEncoder, whose blocks are copies and so start from equal weights.
        self.blocks = nn.ModuleList(
            nn.TransformerEncoderLayer(
                width, heads, 4 * width, dropout, "gelu", batch_first=True, norm_first=True
            )
            for _ in range(layers)
        )
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, VOCABULARY, bias=False)
        self.head.weight = self.tokens.weight
        mask = nn.Transformer.generate_square_subsequent_mask(context)
        self.register_buffer("mask", mask)
        gpt2_weights(self, layers)

    def forward(self, tokens: Tensor) -> Tensor:
        """Characters (N, T) to logits of the next ones, (N, T, VOCABULARY)."""
        return torch.as_tensor(self.head(self.states(tokens)))

    def states(self, tokens: Tensor) -> Tensor:
        """Characters (N, T) to the last block's normalised states, (N, T, D)."""
        length = tokens.shape[1]
        hidden = self.dropout(self.tokens(tokens) + self.places.weight[:length])
        for block in self.blocks:
            hidden = block(hidden, self.mask[:length, :length], is_causal=True)
        return torch.as_tensor(self.norm(hidden))


def gpt2_weights(net: nn.Module, layers: int) -> None:
    """Draws all matrices as GPT-2 does, and sets the biases of linear layers to zero."""
    for name, weight in net.named_parameters():
        if weight.ndim > 1:
            writes = name.endswith(("out_proj.weight", "linear2.weight"))
            nn.init.normal_(weight, std=0.02 / math.sqrt(2 * layers) if writes else 0.02)
        elif name.endswith("bias"):
            nn.init.zeros_(weight)


class WordLSTM(nn.Module):
    """The LSTM of PyTorch's own example `word_language_model` (after arXiv:1409.2329).

    Embedding and decoder start uniform in -0.1..0.1, the LSTM from torch's own initial weights.
    """

    def __init__(self, width: int = 200, layers: int = 2, dropout: float = 0.2) -> None:
        super().__init__()
        self.words = nn.Embedding(WORDS, width)
        self.decoder = nn.Linear(width, WORDS)
        self.states = nn.LSTM(width, width, layers, batch_first=True, dropout=dropout)
        self.dropout = nn.Dropout(dropout)
        for weight in (self.words.weight, self.decoder.weight):
            nn.init.uniform_(weight, -0.1, 0.1)
        nn.init.zeros_(self.decoder.bias)

    def forward(self, words: Tensor) -> Tensor:
        """Words (N, T) to logits of the next ones, (N, T, WORDS)."""
        states, _ = self.states(self.dropout(self.words(words)))
        return torch.as_tensor(self.decoder(self.dropout(states)))


class NextToken(nn.Module):
    """Cross-entropy of the next tokens in windows of a text that is cut into long rows.

    Windows of `context` tokens lie at random places of their rows in training, and at their
    beginning in evaluation.
    """

    def __init__(self, context: int) -> None:
        super().__init__()
        self.context = context

    def forward(self, net: nn.Module, batch: tuple[Tensor]) -> Tensor:
        """The loss of a batch (tokens,), int64 (N, row), shape ()."""
        (rows,) = batch
        starts = torch.zeros(len(rows), 1, dtype=torch.int64, device=rows.device)
        if net.training:
            starts += torch.randint(rows.shape[1] - self.context, starts.shape).to(rows.device)
        places = starts + torch.arange(self.context + 1, device=rows.device)
        windows = rows.gather(1, places)
        logits = net(windows[:, :-1])
        return nn.functional.cross_entropy(logits.flatten(0, 1), windows[:, 1:].flatten())


def in_rows(text: Parts) -> Examples:
    """The parts of a text, (tokens,) each, as pieces of equal length, (rows, tokens // rows)."""
    parts = []
    for tokens, rows in zip(text, (ROWS, HELD_OUT_ROWS), strict=True):
        length = len(tokens) // rows
        parts.append((tokens[: rows * length].reshape(rows, length),))
    return Examples(*parts)


def library_files(folders: tuple[str, ...] | None, task: str) -> list[Path]:
    """Source files of some packages of the standard library or of all, sorted, without tests.

    Raises:
        ConfigurationError: this Python was installed without them.
    """
    library = Path(sysconfig.get_paths()["stdlib"])
    places = [library] if folders is None else [library / name for name in folders]
    found = (path for place in places for path in sorted(place.rglob("*.py")))
    others = {"test", "tests", "idle_test", "site-packages", "dist-packages", "lib2to3"}
    files = [path for path in found if not others & {*path.relative_to(library).parts}]
    if len(files) < 100:
        raise ConfigurationError(
            f"the task {task!r} reads the standard library's sources, but {library} has next to "
            "none; install Python with its sources, or leave the task out: suite.tasks=[...]."
        )
    return files


@cache
def source_text() -> Parts:
    """The packages' sources as codes (characters,); every tenth file is held out."""
    texts = [encode(path) for path in library_files(PACKAGES, "GPT")]
    train = [text for place, text in enumerate(texts) if place % 10]
    return Parts(torch.cat(train), torch.cat(texts[::10]))


def docstrings(path: Path) -> str:
    """What a source file says of its modules, classes and functions, in lower case."""
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    try:
        tree = ast.parse(path.read_text(encoding="utf-8", errors="replace"))
    except SyntaxError:  # a template, say
        return ""
    texts = (ast.get_docstring(node) for node in ast.walk(tree) if isinstance(node, documented))
    return "\n".join(text for text in texts if text).lower()


@cache
def word_text() -> Parts:
    """Docstrings and `help()`'s topics as words (words,); 0 for those that are rare.

    Every tenth file, and every tenth topic, is held out; the vocabulary is of the rest.
    """
    texts = [docstrings(path) for path in library_files(None, "word LSTM")]
    texts += [topic.lower() for topic in help_topics()]
    words = [_WORD.findall(text) for text in texts]
    train = [word for place, text in enumerate(words) if place % 10 for word in text]
    held_out = [word for text in words[::10] for word in text]
    return Parts(*(by_frequency(words, train, WORDS) for words in (train, held_out)))


def gpt(
    name: str = "GPT", sequences: int = 8, context: int = CHARACTER_CONTEXT, horizon: int = 1500
) -> Task:
    """The next character of Python's sources; AdamW, clipped gradients.

    A step has so many sequences (windows) of `context` characters. Another name gives other initial
    weights.
    """
    adamw = partial(torch.optim.AdamW, lr=1e-3, betas=(0.9, 0.95), weight_decay=0.1, fused=True)
    return own_task(
        name,
        partial(mixed, partial(GPT, context)),
        NextToken(context),
        adamw,
        in_rows(source_text()),
        horizon=horizon,
        batch_size=sequences,
        gradient_clip=1.0,
    )


def word_lstm() -> Task:
    """The next word; the example's plain SGD with its rate of 20 and gradients clipped to 0.25."""
    return own_task(
        "word LSTM",
        partial(mixed, WordLSTM),
        NextToken(WORD_CONTEXT),
        partial(torch.optim.SGD, lr=20.0),
        in_rows(word_text()),
        horizon=2000,
        batch_size=32,
        gradient_clip=0.25,
    )
