"""Sequence tasks: generated sequences, and the standard library's sources as text."""

from dataclasses import dataclass
from typing import Literal, get_args

from lightning_dqnlr.tasks.data.examples import Examples
from lightning_dqnlr.tasks.data.synthetic import adding, autoregression, copying
from lightning_dqnlr.tasks.data.text import VOCABULARY, next_characters
from lightning_dqnlr.tasks.families.random_tasks import BatchSizes, Problem, RandomTasks, supervised
from lightning_dqnlr.tasks.modules import Loss
from lightning_dqnlr.tasks.networks.sequences import Cell, RecurrentSpec, TransformerSpec
from lightning_dqnlr.tasks.sampling import Draws, Split

SequenceName = Literal["adding", "copying", "autoregression"]
# As many as their gradients grow by when large weights push them back through all steps.
RECURRENT_LAYERS = 3
CELLS: tuple[Cell, ...] = get_args(Cell)


@dataclass(frozen=True)
class SyntheticRNNs(RandomTasks):
    """GRUs and LSTMs on the adding problem, the copy problem, and noisy oscillations.

    >>> SyntheticRNNs().sample(seed=0).train_data[0].ndim  # (examples, time, features)
    3
    """

    batch_sizes: BatchSizes = (4, 8, 16)
    name = "synthetic_rnns"

    def problem(self, split: Split, draws: Draws) -> Problem:
        name: SequenceName = draws.choice(get_args(SequenceName))
        data = _draw_sequences(name, draws)
        inputs = data.train[0].shape[2]
        # The sign to recall is an input of the copy problem and no output.
        outputs = inputs - 1 if name == "copying" else 1
        network = RecurrentSpec(
            inputs=inputs,
            outputs=outputs,
            layers=draws.choice((1, 2), (3.0, 1.0)),
            hidden=draws.log_integer(12, 32),
            cell=draws.choice(CELLS),
            every_step=name != "adding",
            initial_scale=self.draw_scale(draws, RECURRENT_LAYERS),
        )
        loss: Loss = "cross_entropy" if name == "copying" else "mse"
        return supervised(network, loss, data.scaled(self.draw_input_scale(draws)))


@dataclass(frozen=True)
class TextRNNs(RandomTasks):
    """GRUs and LSTMs as character language models of the standard library's sources.

    loss = mean over t of -log p(character t + 1 | characters 1..t)
    """

    batch_sizes: BatchSizes = (4, 8)
    name = "text_rnns"

    def problem(self, split: Split, draws: Draws) -> Problem:
        length = draws.choice((16, 24, 32))
        examples = draws.log_integer(24, 64) * 8
        network = RecurrentSpec(
            inputs=VOCABULARY,
            outputs=VOCABULARY,
            hidden=draws.log_integer(16, 40),
            cell=draws.choice(CELLS),
            tokens=True,
            every_step=True,
            dropout=0.1 if draws.chance(0.25) else 0.0,
            initial_scale=self.draw_scale(draws, RECURRENT_LAYERS),
        )
        data = next_characters(split, length, examples, draws)
        return supervised(network, "cross_entropy", data)


@dataclass(frozen=True)
class TextTransformers(RandomTasks):
    """Small transformers as character language models of the standard library's sources.

    loss = mean over t of -log p(character t + 1 | characters 1..t)
    """

    batch_sizes: BatchSizes = (4, 8)
    name = "text_transformers"

    def problem(self, split: Split, draws: Draws) -> Problem:
        length = draws.choice((16, 24, 32))
        examples = draws.log_integer(16, 48) * 8
        network = TransformerSpec(
            vocabulary=VOCABULARY,
            length=length,
            heads=draws.choice((1, 2, 4)),
            width=draws.choice((16, 32, 48), (3.0, 3.0, 1.0)),
            depth=draws.integer(1, 2),
            dropout=0.1 if draws.chance(0.25) else 0.0,
            norm_first=draws.chance(0.7),
            initial_scale=self.draw_initial_scale(draws),
        )
        data = next_characters(split, length, examples, draws)
        return supervised(network, "cross_entropy", data)


def _draw_sequences(name: SequenceName, draws: Draws) -> Examples:
    length = draws.choice((16, 24, 32))
    examples = draws.log_integer(24, 96) * 8
    symbols = draws.integer(2, 6)
    copied = draws.integer(1, 4)
    noise = draws.log_uniform(0.01, 0.5)
    if name == "adding":
        return adding(length, examples, draws)
    if name == "copying":
        return copying(length, symbols, copied, examples, draws)
    return autoregression(length, noise, examples, draws)
