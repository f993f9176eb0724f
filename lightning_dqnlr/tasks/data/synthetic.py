"""Generated data: random teachers, sequences, ratings and documents."""

import math
from typing import Literal

import torch
from torch import Tensor

from lightning_dqnlr.tasks.data.examples import Examples, corrupt_labels, split_off_a_fifth
from lightning_dqnlr.tasks.sampling import Draws


def gaussian_inputs(examples: int, dimension: int, draws: Draws) -> Tensor:
    """Draws inputs (examples, dimension) with a random covariance of mean variance 1.

    The covariance's condition number is log-uniform on 1..100, its axes are randomly rotated.
    """
    condition = draws.log_uniform(1.0, 100.0)
    exponents = torch.rand(dimension, generator=draws.generator)
    variances = condition**-exponents
    deviations = (variances / variances.mean()).sqrt()
    return (draws.normal(examples, dimension) * deviations) @ draws.rotation(dimension)


def teacher_outputs(inputs: Tensor, outputs: int, draws: Draws) -> Tensor:
    """Labels inputs (N, D) with a random MLP; each of the outputs has mean 0 and variance 1."""
    width = draws.log_integer(8, 64)
    depth = draws.integer(1, 3)
    activation = draws.choice((torch.relu, torch.tanh, torch.sin))
    hidden = inputs
    for _ in range(depth):
        fan_in = hidden.shape[1]
        weight = draws.normal(fan_in, width) * (2.0 / fan_in) ** 0.5
        hidden = activation(hidden @ weight + 0.5 * draws.normal(width))
    targets = hidden @ draws.normal(width, outputs)
    return (targets - targets.mean(0)) / targets.std(0).clamp_min(1e-6)


def teacher_data(
    kind: Literal["regression", "classification"],
    *,
    examples: int,
    dimension: int,
    outputs: int,
    noise: float,
    draws: Draws,
) -> Examples:
    """Draws a teacher, inputs (N, dimension), and the teacher's targets.

    Args:
        kind: "regression" on the teacher's outputs, or "classification" by their argmax.
        examples: number of training examples; a quarter as many are added for validation.
        dimension: of the inputs.
        outputs: number of regression targets, (N, outputs), or of classes of the labels (N,).
        noise: standard deviation of the noise on regression targets (whose own is 1), or the
            fraction of labels redrawn at random. Validation targets stay clean.
        draws: the only source of randomness.
    """
    inputs = gaussian_inputs(examples + examples // 4, dimension, draws)
    targets = teacher_outputs(inputs, outputs, draws)
    if kind == "classification":
        targets = targets.argmax(1)
        noisy = corrupt_labels(targets, noise, outputs, draws)
    else:
        noisy = targets + noise * draws.normal(*targets.shape)
    return Examples((inputs[:examples], noisy[:examples]), (inputs[examples:], targets[examples:]))


def adding(length: int, examples: int, draws: Draws) -> Examples:
    """The adding problem: sum the two marked numbers (Hochreiter & Schmidhuber 1997, section 5.4).

    Inputs (N, T, 2) are numbers in [-1, 1] and markers; targets are (N, 1).
    """
    total = examples + examples // 4
    numbers = 2.0 * torch.rand(total, length, generator=draws.generator) - 1.0
    # One marker in each half.
    first = torch.randint(length // 2, (total, 1), generator=draws.generator)
    second = torch.randint(length // 2, length, (total, 1), generator=draws.generator)
    markers = torch.zeros(total, length).scatter(1, torch.cat([first, second], 1), 1.0)
    targets = (numbers * markers).sum(1, keepdim=True)
    return split_off_a_fifth(torch.stack([numbers, markers], 2), targets)


def copying(length: int, symbols: int, copied: int, examples: int, draws: Draws) -> Examples:
    """The copy problem: repeat the first symbols at the end (Arjovsky 2016, arXiv:1511.06464).

    The alphabet has S symbols, and the length T is at least twice `copied`. Inputs are one-hot,
    (N, T, S + 2): a symbol, a blank, or the sign to recall. Targets are int64 (N, T): the symbol
    to give, or S for a blank.
    """
    total = examples + examples // 4
    blank = symbols
    recall = symbols + 1
    message = torch.randint(symbols, (total, copied), generator=draws.generator)
    inputs = torch.full((total, length), blank)
    inputs[:, :copied] = message
    inputs[:, -copied:] = recall
    targets = torch.full((total, length), blank)
    targets[:, -copied:] = message
    return split_off_a_fifth(torch.nn.functional.one_hot(inputs, symbols + 2).float(), targets)


def autoregression(length: int, noise: float, examples: int, draws: Draws) -> Examples:
    """Forecasts one step ahead of a stationary AR(2) process with a damped oscillation.

    x_t = 2 r cos(w) x_{t-1} - r^2 x_{t-2} + e_t has its poles at r exp(+-iw).

    Inputs (N, T, 1) are the process, of standard deviation 1, plus measurement noise of deviation
    `noise`. Targets (N, T, 1) are the process itself, one step later.
    """
    radius = draws.uniform(0.8, 0.99)
    frequency = draws.uniform(0.1, math.pi / 2)
    first = 2.0 * radius * math.cos(frequency)
    second = -(radius**2)
    burn_in = 64
    total = examples + examples // 4
    shocks = draws.normal(burn_in + length + 1, total)
    values = [shocks[0], shocks[1]]
    for shock in shocks[2:]:
        values.append(first * values[-1] + second * values[-2] + shock)
    process = torch.stack(values[burn_in:], 1).unsqueeze(2)
    process = process / process.std()
    measured = process[:, :-1] + noise * draws.normal(total, length, 1)
    return split_off_a_fifth(measured, process[:, 1:])


def ratings(
    users: int, items: int, rank: int, noise: float, examples: int, draws: Draws
) -> Examples:
    """Entries (N, 1) of a random matrix of low rank, and pairs int64 (N, 2) of row and column.

    Popular items are seen more often than others. Training entries have standard deviation 1, and
    noise of deviation `noise` is added to them.
    """
    total = examples + examples // 4
    matrix = draws.normal(users, rank) @ draws.normal(rank, items) / rank**0.5
    popularity = 1.0 / torch.arange(1, items + 1)
    item = torch.multinomial(popularity, total, True, generator=draws.generator)
    user = torch.randint(users, (total,), generator=draws.generator)
    entries = matrix[user, item].unsqueeze(1)
    clean = split_off_a_fifth(torch.stack([user, item], 1), entries)
    wanted = clean.targets.train
    return clean.with_targets(wanted + noise * draws.normal(*wanted.shape))


def documents(classes: int, vocabulary: int, length: int, examples: int, draws: Draws) -> Examples:
    """Bags of words: each class prefers its own words of a common Zipf-distributed vocabulary.

    Words are int64 (N, T), each in 0..vocabulary - 1, and labels int64 (N,).
    """
    total = examples + examples // 4
    common = -torch.arange(1, vocabulary + 1).log()
    preference = draws.uniform(0.5, 2.0) * draws.normal(classes, vocabulary)
    labels = torch.randint(classes, (total,), generator=draws.generator)
    frequency = (common + preference).softmax(1)[labels]
    words = torch.multinomial(frequency, length, True, generator=draws.generator)
    return split_off_a_fifth(words, labels)
