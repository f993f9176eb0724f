"""What every random family shares: the draws of everything that a learning rate depends on.

Curvature, noise, width, depth, activation, normalisation, the scale of weights and inputs, batch
size, optimizer, weight decay, clipping and length are all randomised. Wide scales put into training
the states in which a policy is lost otherwise: plateaus of tiny weights and inputs, and starts far
past stability (LHOPT, arXiv:2106.00958; Celo, arXiv:2501.12670).
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, NamedTuple, get_args

from lightning import LightningModule

from lightning_dqnlr.errors import ConfigurationError
from lightning_dqnlr.tasks.data.flat import Examples
from lightning_dqnlr.tasks.networks.mlp_cnn import Activation, MLPNorm, MLPSpec
from lightning_dqnlr.tasks.optimizers import COMMON, OptimizerName, OptimizerSpec
from lightning_dqnlr.tasks.sampling import Draws, Split, derive_seed
from lightning_dqnlr.tasks.task import Task

ACTIVATIONS: tuple[Activation, ...] = get_args(Activation)
# How often an optimizer is drawn, where it is not as often as the others.
RARER = {"nesterov": 0.25, "signum": 0.5, "robbins_monro": 0.5}
# The product of the layers' scales is kept within this factor of 1 in networks without
# normalisation: past it float32 gradients and Adam's squares overflow or vanish at any LR.
LARGEST_FUNCTION_SCALE = 1e4
MLP_WEIGHTS = (500, 30_000)
# Fields of a family whose weights and inputs keep their ordinary scales.
ORDINARY: dict[str, Any] = {
    "initial_scales": (1.0, 1.0),
    "wide_probability": 0.0,
    "input_scales": (1.0, 1.0),
    "ordinary_probability": 0.0,
}


class Problem(NamedTuple):
    """The part of a task that differs between families."""

    build: Callable[[int], LightningModule]
    examples: Examples


@dataclass(frozen=True)
class RandomTasks(ABC):
    """What the random families share; the fields narrow the distribution.

    Attributes:
        optimizers: the update rules to draw from, equally often but for those of `RARER`.
        min_horizon: shortest run in optimizer steps.
        max_horizon: longest run; lengths are log-uniform between the two.
        batch_sizes: the batch sizes to draw from; a task with fewer examples takes all of them.
        initial_scales: range of the factor on the initial weights, log-uniform.
        wide_initial_scales: the range used with probability `wide_probability` instead.
        wide_probability: see above.
        input_scales: range of the factor on the inputs, log-uniform; tokens have none.
        ordinary_probability: share of tasks whose weights and inputs keep their ordinary scales,
            as most of users' do; else such a task is what it would be without this field.
        known_horizon_probability: share of tasks whose length the controller may know.

    Raises:
        ConfigurationError: a field is empty, out of range, or its bounds are reversed.
    """

    optimizers: Sequence[OptimizerName] = COMMON
    min_horizon: int = 100
    max_horizon: int = 4000
    batch_sizes: Sequence[int] = (8, 16, 32, 64)
    initial_scales: Sequence[float] = (0.1, 10.0)
    wide_initial_scales: Sequence[float] = (0.01, 100.0)
    wide_probability: float = 0.15
    input_scales: Sequence[float] = (0.1, 10.0)
    ordinary_probability: float = 0.0
    known_horizon_probability: float = 0.85

    name: ClassVar[str]

    def __post_init__(self) -> None:
        _check_optimizers(self.optimizers)
        if not self.batch_sizes or not all(2 <= size <= 256 for size in self.batch_sizes):
            raise ConfigurationError(
                f"batch_sizes must be sizes in 2..256, got {list(self.batch_sizes)}."
            )
        _check_range("min_horizon and max_horizon", (self.min_horizon, self.max_horizon))
        _check_range("initial_scales", self.initial_scales)
        _check_range("wide_initial_scales", self.wide_initial_scales)
        _check_range("input_scales", self.input_scales)
        _check_probability("wide_probability", self.wide_probability)
        _check_probability("ordinary_probability", self.ordinary_probability)
        _check_probability("known_horizon_probability", self.known_horizon_probability)

    @abstractmethod
    def problem(self, task: str, split: Split, optimizer: OptimizerSpec, draws: Draws) -> Problem:
        """Draws the model and the data of the task of this name."""

    def sample(self, seed: int, split: Split = "train") -> Task:
        """Returns the task of this seed; the same for the same family, fields, split and seed.

        Args:
            seed: any integer.
            split: the three splits share no random stream, whatever the seeds.

        Raises:
            ConfigurationError: unknown split, or data that are needed are not installed.
        """
        # A stream of its own: the others are those of a family without ordinary tasks.
        ordinary = Draws(derive_seed(f"{self.name}/ordinary", split, seed))
        if ordinary.chance(self.ordinary_probability):
            return replace(self, **ORDINARY).sample(seed, split)
        draws = Draws(derive_seed(self.name, split, seed))
        optimizer = self._draw_optimizer(draws)
        batch_size = draws.choice(self.batch_sizes)
        horizon = draws.log_integer(self.min_horizon, self.max_horizon)
        known_horizon = draws.chance(self.known_horizon_probability)
        clipped, largest_norm = draws.chance(0.2), draws.log_uniform(0.1, 10.0)
        name = f"{self.name}/{split}/{seed}"
        build, examples = self.problem(name, split, optimizer, draws)
        return Task(
            name=name,
            family=self.name,
            seed=seed,
            build=build,
            train_data=examples.train,
            validation_data=examples.validation,
            batch_size=min(batch_size, len(examples.train[0])),
            optimizer=optimizer.name,
            horizon=horizon,
            known_horizon=known_horizon,
            gradient_clip=largest_norm if clipped else None,
        )

    def _draw_optimizer(self, draws: Draws) -> OptimizerSpec:
        weights = [RARER.get(name, 1.0) for name in self.optimizers]
        name = draws.choice(self.optimizers, weights)
        decayed, decay = draws.chance(0.5), draws.log_uniform(1e-5, 1e-2)
        return OptimizerSpec(
            name=name,
            weight_decay=decay if decayed else 0.0,
            momentum=draws.choice((0.8, 0.9, 0.95)),
            beta2=draws.choice((0.99, 0.999)),
        )

    def draw_initial_scale(self, draws: Draws) -> float:
        """Draws the factor on the initial weights."""
        wide = draws.chance(self.wide_probability)
        low, high = self.wide_initial_scales if wide else self.initial_scales
        return draws.log_uniform(low, high)

    def draw_input_scale(self, draws: Draws) -> float:
        """Draws the factor on the inputs."""
        low, high = self.input_scales
        return draws.log_uniform(low, high)

    def draw_mlp(self, inputs: int, outputs: int, draws: Draws) -> MLPSpec:
        """Draws a multi-layer perceptron of 500 to 30,000 weights, its biases not counted."""
        depth, width = draws.integer(1, 4), draws.log_integer(8, 96)
        norm: MLPNorm = draws.choice(("none", "batch", "layer"), (2.0, 1.0, 1.0))
        scale = self.draw_initial_scale(draws)
        return MLPSpec(
            inputs=inputs,
            outputs=outputs,
            width=affordable_width(width, inputs, outputs, depth),
            depth=depth,
            activation=draws.choice(ACTIVATIONS),
            norm=norm,
            dropout=0.1 if draws.chance(0.25) else 0.0,
            initial_scale=bounded_scale(scale, depth + 1) if norm == "none" else scale,
        )


def draw_examples(draws: Draws) -> int:
    """Draws 256..2048 training examples, log-uniformly.

    A multiple of eight, so that an epoch's last batch is never the single example on which
    BatchNorm fails.
    """
    return draws.log_integer(32, 256) * 8


def affordable_width(width: int, inputs: int, outputs: int, depth: int) -> int:
    """Returns the width nearest to `width` that keeps an MLP between 500 and 30,000 weights."""
    fewest, most = MLP_WEIGHTS

    def weights(candidate: int) -> int:
        return candidate * (inputs + outputs + (depth - 1) * candidate)

    while weights(width) < fewest:
        width += 1
    while weights(width) > most:
        width -= 1
    return width


def bounded_scale(scale: float, layers: int) -> float:
    """Returns the scale per layer, limited so that its product over `layers` stays trainable."""
    limit = math.exp(math.log(LARGEST_FUNCTION_SCALE) / layers)
    return min(max(scale, 1.0 / limit), limit)


def _check_optimizers(names: Sequence[str]) -> None:
    unknown = sorted(set(names) - set(get_args(OptimizerName)))
    if not names or unknown:
        raise ConfigurationError(
            f"optimizers must be chosen from {get_args(OptimizerName)}, got {list(names)}."
        )


def _check_range(argument: str, bounds: Sequence[float]) -> None:
    if len(bounds) != 2 or not 0.0 < bounds[0] <= bounds[1] < math.inf:
        raise ConfigurationError(
            f"{argument} must be two finite bounds with 0 < low <= high, got {list(bounds)}."
        )


def _check_probability(argument: str, value: float) -> None:
    if not 0.0 <= value <= 1.0:
        raise ConfigurationError(f"{argument} must lie in [0, 1], got {value}.")
