"""Sequence tasks: generated sequences, and the standard library's sources as text."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, NamedTuple, get_args

from lightning_dqnlr.tasks.data.flat import Examples
from lightning_dqnlr.tasks.data.synthetic import adding, autoregression, copying
from lightning_dqnlr.tasks.data.text import VOCABULARY, next_characters
from lightning_dqnlr.tasks.families.random_tasks import Problem, RandomTasks, bounded_scale
from lightning_dqnlr.tasks.modules import Loss, SupervisedBuilder
from lightning_dqnlr.tasks.networks.sequences import Cell, RecurrentSpec, TransformerSpec
from lightning_dqnlr.tasks.optimizers import OptimizerSpec
from lightning_dqnlr.tasks.sampling import Draws, Split

Kind = Literal["adding", "copying", "autoregression"]
# As many as their gradients grow by when large weights push them back through all steps.
RECURRENT_LAYERS = 3
CELLS: tuple[Cell, ...] = get_args(Cell)


class _Sequences(NamedTuple):
    data: Examples
    loss: Loss
    inputs: int
    outputs: int
    every_step: bool


@dataclass(frozen=True)
class SyntheticRNNs(RandomTasks):
    """GRUs and LSTMs on the adding problem, the copy problem, and noisy oscillations."""

    batch_sizes: Sequence[int] = (4, 8, 16)

    name: ClassVar[str] = "synthetic_rnns"

    def problem(self, task: str, split: Split, optimizer: OptimizerSpec, draws: Draws) -> Problem:
        data, loss, inputs, outputs, every_step = _draw_sequences(draws)
        layers = draws.choice((1, 2), (3.0, 1.0))
        network = RecurrentSpec(
            inputs=inputs,
            outputs=outputs,
            hidden=draws.log_integer(12, 32),
            layers=layers,
            cell=draws.choice(CELLS),
            every_step=every_step,
            initial_scale=bounded_scale(self.draw_initial_scale(draws), RECURRENT_LAYERS),
        )
        scale = self.draw_input_scale(draws)
        train, validation = ((x * scale, y) for x, y in data)
        build = SupervisedBuilder(task, network, loss, optimizer)
        return Problem(build, Examples(train, validation))


@dataclass(frozen=True)
class TextRNNs(RandomTasks):
    """GRUs and LSTMs as character language models of the standard library's sources."""

    batch_sizes: Sequence[int] = (4, 8)

    name: ClassVar[str] = "text_rnns"

    def problem(self, task: str, split: Split, optimizer: OptimizerSpec, draws: Draws) -> Problem:
        length, examples = draws.choice((16, 24, 32)), draws.log_integer(24, 64) * 8
        network = RecurrentSpec(
            inputs=VOCABULARY,
            outputs=VOCABULARY,
            hidden=draws.log_integer(16, 40),
            cell=draws.choice(CELLS),
            tokens=True,
            every_step=True,
            dropout=0.1 if draws.chance(0.25) else 0.0,
            initial_scale=bounded_scale(self.draw_initial_scale(draws), RECURRENT_LAYERS),
        )
        data = next_characters(split, length, examples, draws)
        return Problem(SupervisedBuilder(task, network, "cross_entropy", optimizer), data)


@dataclass(frozen=True)
class TextTransformers(RandomTasks):
    """Small transformers as character language models of the standard library's sources."""

    batch_sizes: Sequence[int] = (4, 8)

    name: ClassVar[str] = "text_transformers"

    def problem(self, task: str, split: Split, optimizer: OptimizerSpec, draws: Draws) -> Problem:
        length, examples = draws.choice((16, 24, 32)), draws.log_integer(16, 48) * 8
        heads, width = draws.choice((1, 2, 4)), draws.choice((16, 32, 48), (3.0, 3.0, 1.0))
        network = TransformerSpec(
            vocabulary=VOCABULARY,
            length=length,
            width=width,
            depth=draws.integer(1, 2),
            heads=heads,
            dropout=0.1 if draws.chance(0.25) else 0.0,
            norm_first=draws.chance(0.7),
            initial_scale=self.draw_initial_scale(draws),
        )
        data = next_characters(split, length, examples, draws)
        return Problem(SupervisedBuilder(task, network, "cross_entropy", optimizer), data)


def _draw_sequences(draws: Draws) -> _Sequences:
    kind: Kind = draws.choice(get_args(Kind))
    length, examples = draws.choice((16, 24, 32)), draws.log_integer(24, 96) * 8
    symbols, copied, noise = draws.integer(2, 6), draws.integer(1, 4), draws.log_uniform(0.01, 0.5)
    match kind:
        case "adding":
            return _Sequences(adding(length, examples, draws), "mse", 2, 1, False)
        case "copying":
            data = copying(length, symbols, copied, examples, draws)
            return _Sequences(data, "cross_entropy", symbols + 2, symbols + 1, True)
        case "autoregression":
            return _Sequences(autoregression(length, noise, examples, draws), "mse", 1, 1, True)
