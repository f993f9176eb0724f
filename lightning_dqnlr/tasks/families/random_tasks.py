"""What every random family shares: the draws of everything that a learning rate depends on.

Curvature, noise, width, depth, activation, normalisation, the scale of weights and inputs, batch
size, optimizer, weight decay, clipping and length are all random. Wide scales bring hard states
into training: plateaus of tiny weights and inputs, and starts far past stability. A policy that
never met them is lost there (LHOPT, arXiv:2106.00958; Celo, arXiv:2501.12670).
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Annotated, Any, ClassVar, NamedTuple

from lightning import LightningModule

from lightning_dqnlr.checks import Share, check_settings
from lightning_dqnlr.errors import ConfigurationError
from lightning_dqnlr.tasks.data.examples import Examples
from lightning_dqnlr.tasks.modules import Loss, SupervisedBuilder
from lightning_dqnlr.tasks.networks.mlp_cnn import (
    ACTIVATIONS,
    CNNNorm,
    CNNSpec,
    MLPNorm,
    MLPSpec,
    NetworkSpec,
    bounded_scale,
)
from lightning_dqnlr.tasks.optimizers import COMMON, OptimizerName, OptimizerSpec
from lightning_dqnlr.tasks.sampling import Draws, Split, check_range, derive_seed
from lightning_dqnlr.tasks.task import Task

# Half of the MLPs have no normalisation.
MLP_NORMS: tuple[MLPNorm, ...] = ("none", "none", "batch", "layer")
CNN_NORMS: tuple[CNNNorm, ...] = ("none", "batch", "layer")
# Relative frequencies of the optimizers that are drawn more rarely than the others.
RARER = {"nesterov": 0.25, "signum": 0.5, "robbins_monro": 0.5}
FEWEST_WEIGHTS = 500
MOST_WEIGHTS = 30_000
# Fields of a family whose weights and inputs keep their ordinary scales.
ORDINARY: dict[str, Any] = {
    "initial_scales": (1.0, 1.0),
    "wide_probability": 0.0,
    "input_scales": (1.0, 1.0),
    "ordinary_probability": 0.0,
}


class Problem(NamedTuple):
    """The part of a task that differs between families.

    Attributes:
        builder: makes `Task.build` from `task` (its name) and `optimizer` (an `OptimizerSpec`).
        examples: the data.
    """

    builder: Callable[..., Callable[[int], LightningModule]]
    examples: Examples


def supervised(network: NetworkSpec, loss: Loss, examples: Examples) -> Problem:
    """Returns the problem of a network that maps inputs to targets."""
    return Problem(partial(SupervisedBuilder, network=network, loss=loss), examples)


BatchSizes = Sequence[Annotated[int, 2, 256]]


@dataclass(frozen=True)
class RandomTasks(ABC):
    """What the random families share; the fields narrow the distribution.

    Attributes:
        optimizers: the update rules to draw from, equally often except for those in `RARER`.
        min_horizon: shortest run in optimizer steps.
        max_horizon: longest run; lengths are log-uniform between the two.
        batch_sizes: the batch sizes to draw from; a task with fewer examples takes all of them.
        initial_scales: range of the factor on the initial weights, log-uniform.
        wide_initial_scales: the range used with probability `wide_probability` instead.
        wide_probability: see above.
        input_scales: range of the factor on the inputs, log-uniform; tokens have none.
        ordinary_probability: share of tasks whose weights and inputs keep their ordinary scales,
            as most users' do. The scales are all that changes in such a task.
        known_horizon_probability: share of tasks whose length the controller may know.

    Raises:
        ConfigurationError: a field is empty, out of range, or its bounds are reversed.
    """

    optimizers: Sequence[OptimizerName] = COMMON
    min_horizon: int = 100
    max_horizon: int = 4000
    batch_sizes: BatchSizes = (8, 16, 32, 64)
    initial_scales: Sequence[float] = (0.1, 10.0)
    wide_initial_scales: Sequence[float] = (0.01, 100.0)
    wide_probability: Share = 0.15
    input_scales: Sequence[float] = (0.1, 10.0)
    ordinary_probability: Share = 0.0
    known_horizon_probability: Share = 0.85

    name: ClassVar[str]

    def __post_init__(self) -> None:
        if not self.optimizers or not self.batch_sizes:
            raise ConfigurationError("optimizers and batch_sizes must each hold at least one.")
        check_settings(self, "")
        check_range("min_horizon and max_horizon", (self.min_horizon, self.max_horizon))
        for scales in ("initial_scales", "wide_initial_scales", "input_scales"):
            check_range(scales, getattr(self, scales))

    @abstractmethod
    def problem(self, split: Split, draws: Draws) -> Problem:
        """Draws the model and the data."""

    def sample(self, seed: int, split: Split = "train") -> Task:
        """Returns the task of this seed; the same for the same family, fields, split and seed.

        Raises:
            ConfigurationError: unknown split, or data that are needed are not installed.
        """
        # A stream of its own, so that all other draws are those of a family without this field.
        ordinary = Draws(derive_seed(f"{self.name}/ordinary", split, seed))
        if ordinary.chance(self.ordinary_probability):
            return replace(self, **ORDINARY).sample(seed, split)
        draws = Draws(derive_seed(self.name, split, seed))
        optimizer = self._draw_optimizer(draws)
        batch_size = draws.choice(self.batch_sizes)
        horizon = draws.log_integer(self.min_horizon, self.max_horizon)
        known_horizon = draws.chance(self.known_horizon_probability)
        clip = draws.chance(0.2) * draws.log_uniform(0.1, 10.0)
        name = f"{self.name}/{split}/{seed}"
        problem = self.problem(split, draws)
        examples = problem.examples
        return Task(
            name=name,
            family=self.name,
            seed=seed,
            build=problem.builder(task=name, optimizer=optimizer),
            train_data=examples.train,
            validation_data=examples.validation,
            batch_size=min(batch_size, len(examples.train[0])),
            optimizer=optimizer.name,
            horizon=horizon,
            known_horizon=known_horizon,
            gradient_clip=clip or None,
        )

    def _draw_optimizer(self, draws: Draws) -> OptimizerSpec:
        weights = [RARER.get(name, 1.0) for name in self.optimizers]
        name = draws.choice(self.optimizers, weights)
        return OptimizerSpec(
            name=name,
            weight_decay=draws.chance(0.5) * draws.log_uniform(1e-5, 1e-2),
            momentum=draws.choice((0.8, 0.9, 0.95)),
            beta2=draws.choice((0.99, 0.999)),
        )

    def draw_examples(self, draws: Draws) -> int:
        """The number of training examples, log-uniform: 256..2048, a multiple of eight."""
        return draws.log_integer(32, 256) * 8

    def draw_scale(self, draws: Draws, layers: int, norm: str = "none") -> float:
        """The scale of the initial weights of each of so many layers; see `bounded_scale`."""
        return bounded_scale(self.draw_initial_scale(draws), layers, norm)

    def draw_initial_scale(self, draws: Draws) -> float:
        wide = draws.chance(self.wide_probability)
        return draws.log_uniform(*(self.wide_initial_scales if wide else self.initial_scales))

    def draw_input_scale(self, draws: Draws) -> float:
        return draws.log_uniform(*self.input_scales)

    def draw_mlp(self, inputs: int, outputs: int, draws: Draws) -> MLPSpec:
        """Draws a multi-layer perceptron of 500 to 30,000 weights, its biases not counted."""
        depth = draws.integer(1, 4)
        width = draws.log_integer(8, 96)
        norm = draws.choice(MLP_NORMS)
        return MLPSpec(
            inputs=inputs,
            outputs=outputs,
            initial_scale=self.draw_scale(draws, depth + 1, norm),
            width=affordable_width(width, inputs, outputs, depth),
            depth=depth,
            activation=draws.choice(ACTIVATIONS),
            norm=norm,
            dropout=0.1 if draws.chance(0.25) else 0.0,
        )

    def draw_cnn(
        self, channels: int, outputs: int, norms: Sequence[CNNNorm], draws: Draws
    ) -> CNNSpec:
        """Draws a network of two or three convolutions on images (N, channels, 8, 8)."""
        later_layers = draws.integer(1, 2)
        first = draws.choice((4, 6, 8))
        later = [draws.choice((8, 12, 16)) for _ in range(2)]
        norm = draws.choice(norms)
        return CNNSpec(
            initial_scale=self.draw_scale(draws, later_layers + 2, norm),
            channels=(first, *later[:later_layers]),
            outputs=outputs,
            activation=draws.choice(ACTIVATIONS),
            norm=norm,
            downsample=draws.choice(("stride", "pool")),
            dropout=0.1 if draws.chance(0.25) else 0.0,
            inputs=channels,
        )


def affordable_width(width: int, inputs: int, outputs: int, depth: int) -> int:
    """Returns the width nearest to `width` that keeps an MLP between 500 and 30,000 weights."""

    def weights(candidate: int) -> int:
        return candidate * (inputs + outputs + (depth - 1) * candidate)

    while weights(width) < FEWEST_WEIGHTS:
        width += 1
    while weights(width) > MOST_WEIGHTS:
        width -= 1
    return width
