"""`RememberedRun`: what one run leaves for the next ones of its model, as plain JSON."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Annotated, Any, Literal

from torch import nn
from torch.nn.parameter import is_lazy

from lightning_dqnlr.checks import check_fields, check_kind, check_settings
from lightning_dqnlr.errors import ConfigurationError, RecordError

FORMAT = 1
Ended = Literal["completed", "early", "diverged"]
Mode = Literal["min", "max"]


@dataclass(frozen=True)
class Model:
    """What a run trained, as far as it can be told without asking.

    Attributes:
        name: the user's, or the module's class.
        shapes: hash of the class, the optimizer, and the shapes of all trained tensors.
        structure: the same without the lengths in the shapes: equal for another width.
        parameters: numbers that are trained.
        optimizer: its class.
        batch_size: examples per optimizer step, over all processes; None if unknown.
        horizon: optimizer steps that the run was to have; None if unknown.

    Raises:
        ConfigurationError: for a field out of range.

    Example:
        >>> Model("net", "a1", "b2", 100, "Adam", 32, 1000).parameters
        100
    """

    name: str
    shapes: str
    structure: str
    parameters: Annotated[int, 0]
    optimizer: str
    batch_size: Annotated[int, 1] | None
    horizon: Annotated[int, 1] | None

    def __post_init__(self) -> None:
        for name in ("name", "shapes", "structure", "optimizer"):
            check_kind(f"model.{name}", getattr(self, name), str)
        check_settings(self, "model.")


def model_of(
    parameters: Sequence[nn.Parameter],
    *,
    kind: str,
    name: str | None,
    optimizer: str,
    batch_size: int | None,
    horizon: int | None,
) -> Model:
    """The model that has these trained parameters.

    Args:
        parameters: in the order of the optimizer.
        kind: class of the module.
        name: the user's; None for `kind`. Runs with different names never share anything.
        optimizer: its class.
        batch_size: examples per optimizer step; None if unknown.
        horizon: optimizer steps; None if unknown.

    Raises:
        ConfigurationError: if a parameter has no shape yet.

    Example:
        >>> arguments = {"kind": "Net", "name": None, "optimizer": "SGD"}
        >>> own = [nn.Parameter(torch.zeros(2, 3))]
        >>> model_of(own, **arguments, batch_size=8, horizon=100).parameters
        6
    """
    if any(is_lazy(p) for p in parameters):
        raise ConfigurationError(
            "memory: a model is known by its shapes, and a lazy layer has none yet. Run a batch "
            "through the model before training, or leave memory out."
        )
    shapes = [list(p.shape) for p in parameters]
    told = [name or "", kind, optimizer]
    return Model(
        name=name or kind,
        shapes=_hash([*told, shapes]),
        structure=_hash([*told, [len(shape) for shape in shapes]]),
        parameters=sum(p.numel() for p in parameters),
        optimizer=optimizer,
        batch_size=batch_size,
        horizon=horizon,
    )


@dataclass(frozen=True)
class RememberedRun:
    """One run: which model, at which rates, and what came of it.

    Attributes:
        model: that was trained.
        policy: name, version and hash of the policy.
        date: of the end, ISO 8601.
        steps: optimizer steps that were made.
        ended: "completed", "early" (interrupted: its metric says nothing), or "diverged".
        held: learning rate that the run was told to hold; None for the policy's own rates.
        why: the reason for it, in words.
        peak: largest learning rate that was used.
        upper_quartile: of the learning rates that were used, over the steps.
        metric: name of what the run is judged by.
        mode: "max" if it is to rise.
        value: of the metric at its best; None if it was never finite, or never seen.
        error: standard error of the value, if the run itself tells of it; else None.

    Raises:
        ConfigurationError: for a field out of range.

    Example:
        >>> run = RememberedRun.from_dict(saved)
        >>> run.held
        0.01
    """

    model: Model
    policy: Mapping[str, str]
    date: str
    steps: Annotated[int, 0]
    ended: Ended
    held: Annotated[float, "(0, 1e30]"] | None
    why: str
    peak: Annotated[float, "[0, 1e30]"]
    upper_quartile: Annotated[float, "[0, 1e30]"]
    metric: str
    mode: Mode
    value: Annotated[float, "[-1e300, 1e300]"] | None
    error: Annotated[float, "[0, 1e300]"] | None = None

    def __post_init__(self) -> None:
        for name in ("date", "why", "metric"):
            check_kind(name, getattr(self, name), str)
        check_kind("policy", self.policy, dict)
        check_settings(self, "")

    def to_dict(self) -> dict[str, Any]:
        """Plain data, with the number of the format."""
        return {"format": FORMAT, **asdict(self)}

    @classmethod
    def from_dict(cls, data: Any) -> RememberedRun:
        """The inverse of `to_dict`, of data that anybody may have written.

        Raises:
            ConfigurationError: naming the field that is missing, unknown or out of range.
            RecordError: if it is of a later format.
        """
        check_kind("run", data, dict)
        if data.get("format") != FORMAT:
            raise RecordError(f"format={data.get('format')!r}: this version reads format {FORMAT}.")
        own = {name: value for name, value in data.items() if name != "format"}
        names = [each.name for each in fields(cls)]
        check_fields("run", own, names[:-1], names[-1:])
        check_fields("model", own["model"], [each.name for each in fields(Model)])
        return cls(**{**own, "model": Model(**own["model"])})

    @property
    def counts(self) -> bool:
        """Whether the metric says something of the rates."""
        return self.ended == "diverged" or (self.ended == "completed" and self.value is not None)


def _hash(value: object) -> str:
    return hashlib.sha256(repr(value).encode()).hexdigest()[:16]
