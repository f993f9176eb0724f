"""What the inner loop trains: a `Task` is a model, its data, its optimizer and its length.

The words are those of meta-learning. An *inner* step trains a task's weights, and an *outer* step
trains the learning-rate policy. The outer loop draws its tasks from a `TaskFamily`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from lightning import LightningModule
from torch import Tensor
from torch.utils import _pytree as pytree
from torch.utils.data import DataLoader, SequentialSampler

from lightning_dqnlr.checks import check_integer, check_number
from lightning_dqnlr.errors import ConfigurationError
from lightning_dqnlr.tasks import user
from lightning_dqnlr.tasks.data.examples import Parts
from lightning_dqnlr.tasks.optimizers import Gradients
from lightning_dqnlr.tasks.sampling import Split


@dataclass(frozen=True, eq=False)
class Task:
    """One training problem, complete but for the learning rate.

    Attributes:
        name: unique name, "family/split/seed" for sampled tasks.
        family: name of the family it was drawn from.
        seed: the seed given to `TaskFamily.sample`.
        build: maps an initialisation seed to a module with its own initial weights. Equal seeds
            give equal weights; the global random state is left alone.
        train_data: tensors whose first dimension counts the examples, in a tuple, dict or other
            pytree. A batch is the same structure with every tensor indexed by the same examples.
        validation_data: the same for held-out examples.
        batch_size: examples per inner step.
        optimizer: name of the update rule, for tables; what `configure_optimizers` of the module
            returns is what trains.
        horizon: length of a run in optimizer steps.
        known_horizon: whether the controller may be told the horizon.
        gradient_clip: largest global gradient norm, or None.
        shuffle: whether every epoch has an order of its own.

    Raises:
        ConfigurationError: a field is out of range or the data's first dimensions disagree.

    Example:
        >>> task = TeacherMLPs().sample(seed=0)
        >>> optimizer = task.build(0).configure_optimizers()
    """

    name: str
    family: str
    seed: int
    build: Callable[[int], LightningModule]
    train_data: Any
    validation_data: Any
    batch_size: int
    optimizer: str
    horizon: int
    known_horizon: bool = True
    gradient_clip: float | None = None
    shuffle: bool = True

    def __post_init__(self) -> None:
        examples = _count_examples("train_data", self.train_data)
        _count_examples("validation_data", self.validation_data)
        train = pytree.tree_structure(self.train_data)
        validation = pytree.tree_structure(self.validation_data)
        if train != validation:
            raise ConfigurationError(
                "train_data and validation_data must have the same structure, got "
                f"{train} and {validation}."
            )
        check_integer("batch_size", self.batch_size, 1, examples)
        check_integer("horizon", self.horizon, 1)
        check_number("gradient_clip", self.gradient_clip, "(0, inf]", optional=True)

    @property
    def examples(self) -> int:
        """Number of training examples."""
        return len(pytree.tree_leaves(self.train_data)[0])

    @classmethod
    def from_lightning(
        cls,
        module: LightningModule | Callable[[], LightningModule],
        dataloader: DataLoader[Any],
        *,
        horizon: int,
        validation: DataLoader[Any] | None = None,
        name: str | None = None,
        known_horizon: bool = True,
        gradient_clip: float | None = None,
        max_examples: int = 50_000,
    ) -> "Task":
        """A user's own module and data as a task; no subclass of ours is needed.

        The data set is read once and held in memory, so random augmentation is frozen. Batches
        have the loader's size, and an incomplete last one is left out. Every seed draws them anew,
        except where the loader does not shuffle: they then keep its order.

        Args:
            module: a function or class that takes no arguments and gives fresh weights (in a
                configuration, `_partial_: true`). For fine-tuning give a module instead: every run
                starts from its weights.
            dataloader: of the training data. An iterable data set must end.
            horizon: length of a run in optimizer steps.
            validation: held-out data; None to hold a tenth of the training examples out.
            name: of the task; by default the module's class.
            known_horizon: whether the controller may be told the horizon.
            gradient_clip: largest global gradient norm, or None.
            max_examples: the most that are read.

        Raises:
            ConfigurationError: the module or its data cannot be used; names the remedy.
        """
        user.check_loader("dataloader", dataloader)
        if validation is not None:
            user.check_loader("validation", validation)
        build = user.ModuleBuilder(module, name or "")
        first = build(0)
        batch_size = user.read_batch_size(dataloader)
        data = user.read_examples(dataloader, "dataloader", max_examples)
        if validation is None:
            parts = user.hold_out(data)
        else:
            parts = Parts(data, user.read_examples(validation, "validation", max_examples))
        examples = len(pytree.tree_leaves(parts.train)[0])
        return cls(
            name=name or type(first).__name__,
            family=name or type(first).__name__,
            seed=0,
            build=build,
            train_data=parts.train,
            validation_data=parts.validation,
            batch_size=min(batch_size, examples),
            optimizer=user.optimizer_label(first),
            horizon=horizon,
            known_horizon=known_horizon,
            gradient_clip=gradient_clip,
            shuffle=not isinstance(dataloader.sampler, SequentialSampler),
        )


@runtime_checkable
class ClosedFormGradient(Protocol):
    """A module that knows the gradients of R replicas without automatic differentiation."""

    def gradients_and_losses(
        self, weights: Tensor, buffers: dict[str, Tensor], batch: Any
    ) -> Gradients:
        """At weights (R, P), on a batch of tensors (R, N, ...)."""


class TaskFamily(Protocol):
    """A distribution over tasks: task = family.sample(seed, split), always the same one."""

    def sample(self, seed: int, split: Split = "train") -> Task:
        """Returns the task of this seed; the three splits share no random stream."""


def _count_examples(argument: str, data: Any) -> int:
    leaves = pytree.tree_leaves(data)
    if not leaves or any(not isinstance(leaf, Tensor) or leaf.ndim == 0 for leaf in leaves):
        raise ConfigurationError(f"{argument} must hold tensors of shape (examples, ...).")
    counts = {len(leaf) for leaf in leaves}
    if len(counts) > 1 or 0 in counts:
        raise ConfigurationError(
            f"the tensors of {argument} must have one common, non-zero first dimension, "
            f"got {sorted(counts)}."
        )
    return counts.pop()
