"""Networks for sequences and tokens, each described by a spec whose `build` draws weights.

All of them use operations that `vmap` can batch, in training and in evaluation alike. The fused
kernels of `torch.nn.GRU` and `LSTM` have no batching rule under `torch.no_grad`, so the recurrence
is a loop here. Fused attention would run once per replica, so attention is a product and a softmax.
"""

from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from lightning_dqnlr.tasks.networks.mlp_cnn import MLPSpec, NetworkSpec

Cell = Literal["gru", "lstm"]


class _Carried(NamedTuple):
    """What a step hands to the next, (N, H) each."""

    state: Tensor
    memory: Tensor


class GatedLayer(nn.Module):
    """One layer of gated recurrent units or of long short-term memory, from (N, T, I) to (N, T, H).

    Gates, their order and their initial weights are those of `torch.nn.GRU` (Cho et al. 2014,
    arXiv:1406.1078) and `torch.nn.LSTM` (Hochreiter & Schmidhuber 1997).
    """

    def __init__(self, inputs: int, hidden: int, cell: Cell) -> None:
        super().__init__()
        self.hidden = hidden
        self.cell = cell
        gates = 3 if cell == "gru" else 4
        self.from_input = nn.Linear(inputs, gates * hidden)
        self.from_hidden = nn.Linear(hidden, gates * hidden)
        for parameter in self.parameters():
            nn.init.uniform_(parameter, -(hidden**-0.5), hidden**-0.5)

    def forward(self, inputs: Tensor) -> Tensor:
        step = self._gru if self.cell == "gru" else self._lstm
        zeros = inputs.new_zeros(len(inputs), self.hidden)
        carried = _Carried(zeros, zeros)
        states = []
        for projected in self.from_input(inputs).unbind(1):
            carried = step(projected, carried)
            states.append(carried.state)
        return torch.stack(states, 1)

    def _gru(self, projected: Tensor, carried: _Carried) -> _Carried:
        state = carried.state
        reset_x, update_x, new_x = projected.chunk(3, 1)
        reset_h, update_h, new_h = self.from_hidden(state).chunk(3, 1)
        update = torch.sigmoid(update_x + update_h)
        new = torch.tanh(new_x + torch.sigmoid(reset_x + reset_h) * new_h)
        return _Carried(new + update * (state - new), carried.memory)

    def _lstm(self, projected: Tensor, carried: _Carried) -> _Carried:
        gates = projected + self.from_hidden(carried.state)
        write, forget, new, read = gates.chunk(4, 1)
        kept = torch.sigmoid(forget) * carried.memory
        memory = kept + torch.sigmoid(write) * torch.tanh(new)
        return _Carried(torch.sigmoid(read) * torch.tanh(memory), memory)


class LastStep(nn.Module):
    """Keeps the last of the steps: (N, T, H) to (N, H)."""

    def forward(self, states: Tensor) -> Tensor:
        return states[:, -1]


@dataclass(frozen=True)
class RecurrentSpec(NetworkSpec):
    """A recurrent network on sequences (N, T, inputs), or on tokens (N, T).

    Attributes:
        hidden: units per layer.
        tokens: whether the inputs are tokens, in 0..inputs - 1, to be embedded.
        every_step: whether to read out every step: (N, T, outputs), or (N, outputs).
    """

    inputs: int
    outputs: int
    hidden: int
    layers: int = 1
    cell: Cell = "gru"
    tokens: bool = False
    every_step: bool = False
    dropout: float = 0.0

    def unscaled(self) -> nn.Sequential:
        net: list[nn.Module] = []
        if self.tokens:
            net.append(nn.Embedding(self.inputs, self.hidden))
        for index in range(self.layers):
            plain = index == 0 and not self.tokens
            net.append(GatedLayer(self.inputs if plain else self.hidden, self.hidden, self.cell))
            if self.dropout > 0.0:
                net.append(nn.Dropout(self.dropout))
        if not self.every_step:
            net.append(LastStep())
        net.append(nn.Linear(self.hidden, self.outputs))
        return nn.Sequential(*net)


class CausalAttention(nn.Module):
    """Multi-head self-attention that sees the past only (Vaswani et al. 2017, section 3.2).

    Maps (N, T, D) to (N, T, D), where the width D is a multiple of `heads`.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.queries_keys_values = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)

    def forward(self, inputs: Tensor) -> Tensor:
        _, length, width = inputs.shape
        size = width // self.heads
        pieces = self.queries_keys_values(inputs).unflatten(2, (3, self.heads, size))
        query, key, value = pieces.transpose(1, 3).unbind(2)  # (N, heads, T, size) each
        future = torch.ones(length, length, dtype=torch.bool, device=inputs.device).triu(1)
        scores = (query @ key.transpose(2, 3) * size**-0.5).masked_fill(future, -torch.inf)
        return torch.as_tensor(self.out((scores.softmax(3) @ value).transpose(1, 2).flatten(2)))


class TransformerBlock(nn.Module):
    """Attention and a two-layer MLP on (N, T, D), each with a residual connection and LayerNorm.

    With `norm_first` the branches' inputs are normalised ("pre-norm"), otherwise the sums
    ("post-norm", harder to start; Xiong et al. 2020, arXiv:2002.04745).
    """

    def __init__(self, width: int, heads: int, dropout: float, norm_first: bool) -> None:
        super().__init__()
        self.norm_first = norm_first
        self.attention = CausalAttention(width, heads)
        self.mlp = nn.Sequential(
            nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width)
        )
        self.norms = nn.ModuleList([nn.LayerNorm(width), nn.LayerNorm(width)])
        self.dropout = nn.Dropout(dropout)

    def forward(self, inputs: Tensor) -> Tensor:
        for norm, branch in zip(self.norms, (self.attention, self.mlp), strict=True):
            if self.norm_first:
                inputs = inputs + self.dropout(branch(norm(inputs)))
            else:
                inputs = norm(inputs + self.dropout(branch(inputs)))
        return inputs


class TokensInPlace(nn.Module):
    """Sum of the embeddings of a token and of its position: (N, T) to (N, T, D)."""

    def __init__(self, vocabulary: int, length: int, width: int) -> None:
        super().__init__()
        self.tokens = nn.Embedding(vocabulary, width)
        self.positions = nn.Embedding(length, width)
        for embedding in (self.tokens, self.positions):
            nn.init.normal_(embedding.weight, std=0.1)

    def forward(self, tokens: Tensor) -> Tensor:
        places = torch.arange(tokens.shape[1], device=tokens.device)
        return torch.as_tensor(self.tokens(tokens) + self.positions(places))


@dataclass(frozen=True)
class TransformerSpec(NetworkSpec):
    """A decoder-only transformer on tokens (N, T): logits (N, T, vocabulary) of the next ones.

    Attributes:
        length: the longest sequence.
        width: D, a multiple of `heads`.
        depth: number of blocks.
    """

    vocabulary: int
    length: int
    width: int
    depth: int = 1
    heads: int = 1
    dropout: float = 0.0
    norm_first: bool = True

    def unscaled(self) -> nn.Sequential:
        blocks = (
            TransformerBlock(self.width, self.heads, self.dropout, self.norm_first)
            for _ in range(self.depth)
        )
        final = [nn.LayerNorm(self.width)] if self.norm_first else []
        return nn.Sequential(
            TokensInPlace(self.vocabulary, self.length, self.width),
            *blocks,
            *final,
            nn.Linear(self.width, self.vocabulary),
        )


class MeanEmbedding(nn.Module):
    """Mean of the embeddings of a bag of tokens: (N, T) to (N, D)."""

    def __init__(self, vocabulary: int, width: int) -> None:
        super().__init__()
        self.tokens = nn.Embedding(vocabulary, width)

    def forward(self, tokens: Tensor) -> Tensor:
        return torch.as_tensor(self.tokens(tokens)).mean(1)


@dataclass(frozen=True)
class BagSpec(NetworkSpec):
    """Classifies a bag of tokens (N, T) by an MLP on the mean of their embeddings."""

    vocabulary: int
    mlp: MLPSpec

    def unscaled(self) -> nn.Sequential:
        return nn.Sequential(MeanEmbedding(self.vocabulary, self.mlp.inputs), self.mlp.unscaled())


class Factorization(nn.Module):
    """Entries of a low-rank matrix: u_i . v_j + a_i + b_j (Koren et al. 2009, equation 4).

    Maps pairs (N, 2) of a row and a column to entries (N, 1).
    """

    def __init__(self, rows: int, columns: int, rank: int) -> None:
        super().__init__()
        self.rows = nn.Embedding(rows, rank)
        self.columns = nn.Embedding(columns, rank)
        self.row_bias = nn.Embedding(rows, 1)
        self.column_bias = nn.Embedding(columns, 1)
        for embedding in (self.rows, self.columns, self.row_bias, self.column_bias):
            nn.init.normal_(embedding.weight, std=rank**-0.5)

    def forward(self, pairs: Tensor) -> Tensor:
        row, column = pairs.unbind(1)
        product = (self.rows(row) * self.columns(column)).sum(1, keepdim=True)
        return torch.as_tensor(product + self.row_bias(row) + self.column_bias(column))


@dataclass(frozen=True)
class FactorizationSpec(NetworkSpec):
    """A `Factorization`."""

    rows: int
    columns: int
    rank: int

    def unscaled(self) -> Factorization:
        return Factorization(self.rows, self.columns, self.rank)
