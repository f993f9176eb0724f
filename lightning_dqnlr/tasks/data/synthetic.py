"""Generated sequences, interactions and documents, for recurrent and for embedding models."""

import math

import torch
from torch import Tensor

from lightning_dqnlr.tasks.data.flat import Examples
from lightning_dqnlr.tasks.sampling import Draws


def split_off_validation(*tensors: Tensor) -> Examples:
    """Holds out the last fifth of the examples."""
    cut = len(tensors[0]) * 4 // 5
    return Examples(tuple(t[:cut] for t in tensors), tuple(t[cut:] for t in tensors))


def adding(length: int, examples: int, draws: Draws) -> Examples:
    """The adding problem: sum the two marked numbers (Hochreiter & Schmidhuber 1997, section 5.4).

    Returns:
        Inputs (N, T, 2): numbers in [-1, 1], and markers; targets (N, 1).
    """
    total = examples + examples // 4
    numbers = 2.0 * torch.rand(total, length, generator=draws.generator) - 1.0
    # One marker in each half.
    first = torch.randint(length // 2, (total, 1), generator=draws.generator)
    second = torch.randint(length // 2, length, (total, 1), generator=draws.generator)
    markers = torch.zeros(total, length).scatter(1, torch.cat([first, second], 1), 1.0)
    targets = (numbers * markers).sum(1, keepdim=True)
    return split_off_validation(torch.stack([numbers, markers], 2), targets)


def copying(length: int, symbols: int, copied: int, examples: int, draws: Draws) -> Examples:
    """The copy problem: repeat the first symbols at the end (Arjovsky 2016, arXiv:1511.06464).

    Args:
        length: T, at least twice `copied`.
        symbols: S, size of the alphabet.
        copied: number of symbols to remember.
        examples: number of training sequences.
        draws: decides the symbols.

    Returns:
        Inputs (N, T, S + 2), one-hot: a symbol, a blank, or the sign to recall; targets int64
        (N, T): the symbol to give, or `symbols` for a blank.
    """
    total, blank, recall = examples + examples // 4, symbols, symbols + 1
    message = torch.randint(symbols, (total, copied), generator=draws.generator)
    inputs = torch.full((total, length), blank)
    inputs[:, :copied], inputs[:, -copied:] = message, recall
    targets = torch.full((total, length), blank)
    targets[:, -copied:] = message
    return split_off_validation(torch.nn.functional.one_hot(inputs, symbols + 2).float(), targets)


def autoregression(length: int, noise: float, examples: int, draws: Draws) -> Examples:
    """Forecasts one step ahead of a stationary AR(2) process with a damped oscillation.

    x_t = 2 r cos(w) x_{t-1} - r^2 x_{t-2} + e_t has its poles at r exp(+-iw).

    Args:
        length: T.
        noise: standard deviation of the measurement noise, that of the process being 1.
        examples: number of training sequences.
        draws: decides r, w, and the noise.

    Returns:
        Inputs (N, T, 1), measured, and targets (N, T, 1): the process itself, one step later.
    """
    radius, frequency = draws.uniform(0.8, 0.99), draws.uniform(0.1, math.pi / 2)
    first, second = 2.0 * radius * math.cos(frequency), -(radius**2)
    burn_in, total = 64, examples + examples // 4
    shocks = draws.normal(burn_in + length + 1, total)
    values = [shocks[0], shocks[1]]
    for shock in shocks[2:]:
        values.append(first * values[-1] + second * values[-2] + shock)
    process = torch.stack(values[burn_in:], 1).unsqueeze(2)
    process = process / process.std()
    measured = process[:, :-1] + noise * draws.normal(total, length, 1)
    return split_off_validation(measured, process[:, 1:])


def ratings(
    users: int, items: int, rank: int, noise: float, examples: int, draws: Draws
) -> Examples:
    """Entries of a random matrix of low rank, with popular items seen more often than others.

    Args:
        users: rows.
        items: columns.
        rank: of the matrix.
        noise: standard deviation added to the training entries, whose own is 1.
        examples: number of training entries.
        draws: decides everything.

    Returns:
        Pairs int64 (N, 2) of row and column, and entries (N, 1).
    """
    total = examples + examples // 4
    matrix = draws.normal(users, rank) @ draws.normal(rank, items) / rank**0.5
    popularity = 1.0 / torch.arange(1, items + 1)
    item = torch.multinomial(popularity, total, True, generator=draws.generator)
    user = torch.randint(users, (total,), generator=draws.generator)
    entries = matrix[user, item].unsqueeze(1)
    (pairs, clean), held_out = split_off_validation(torch.stack([user, item], 1), entries)
    return Examples((pairs, clean + noise * draws.normal(*clean.shape)), held_out)


def documents(classes: int, vocabulary: int, length: int, examples: int, draws: Draws) -> Examples:
    """Bags of words: each class prefers its own words of a common Zipf-distributed vocabulary.

    Returns:
        Words int64 (N, T), each in 0..vocabulary - 1, and labels int64 (N,).
    """
    total = examples + examples // 4
    common = -torch.arange(1, vocabulary + 1).log()
    preference = draws.uniform(0.5, 2.0) * draws.normal(classes, vocabulary)
    labels = torch.randint(classes, (total,), generator=draws.generator)
    frequency = (common + preference).softmax(1)[labels]
    words = torch.multinomial(frequency, length, True, generator=draws.generator)
    return split_off_validation(words, labels)
