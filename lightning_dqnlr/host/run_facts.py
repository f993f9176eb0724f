"""`RunFacts`: what is known of a run beside its decisions, for its report."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from time import perf_counter
from typing import Any

import torch

from lightning_dqnlr.host.options import identity
from lightning_dqnlr.policy.choice import Policy


@dataclass
class RunFacts:
    """Plain values, so that they come back from other processes as JSON.

    Attributes:
        policy: its name, version and hash.
        model: name of the class that is trained; empty if unknown.
        optimizers: each with its number of parameter groups.
        horizon: optimizer steps of the whole run, as it was known last.
        first_step: of this part of a run; above 0 for one that was resumed.
        seconds: of the host's time, by what they went to. "steps", "decisions", "checks" and
            "shown" are this package's. "batches" is the rest of training batches, "run" is all.
        news: what happened between decisions, each with its "step" and "words".
        remembered: the runs of the model that a memory holds, as `RememberedRun.to_dict` has them.

    Example:
        >>> facts = RunFacts(seconds={"batches": 8.0, "steps": 0.5, "decisions": 0.25})
        >>> facts.ours
        0.75
    """

    policy: dict[str, str] = field(default_factory=dict)
    model: str = ""
    optimizers: list[str] = field(default_factory=list)
    horizon: int | None = None
    first_step: int = 0
    seconds: dict[str, float] = field(default_factory=dict)
    news: list[dict[str, Any]] = field(default_factory=list)
    remembered: list[dict[str, Any]] = field(default_factory=list)

    @classmethod
    def of(
        cls, policy: Policy, optimizers: Sequence[torch.optim.Optimizer], model: object = None
    ) -> RunFacts:
        """Those of a run that begins."""
        return cls(
            policy=identity(policy),
            model="" if model is None else type(model).__name__,
            optimizers=[_described(optimizer) for optimizer in optimizers],
        )

    @property
    def ours(self) -> float:
        """Seconds that went to this package."""
        return sum(
            self.seconds.get(name, 0.0) for name in ("steps", "decisions", "checks", "shown")
        )

    def to_dict(self) -> dict[str, Any]:
        """Builtins, which `RunFacts(**...)` takes."""
        return asdict(self)


class Stopwatch:
    """Adds up the host's time, without waiting for any device.

    Args:
        seconds: by name; what is measured is added there.

    Example:
        >>> seconds = {}
        >>> watch = Stopwatch(seconds)
        >>> begun = watch.begin()
        >>> watch.end("steps", begun)
        >>> list(seconds)
        ['steps']
    """

    def __init__(self, seconds: dict[str, float]) -> None:
        self.seconds = seconds

    def begin(self) -> float:
        """The present moment."""
        return perf_counter()

    def end(self, name: str, begun: float) -> None:
        """Adds the time since `begun`."""
        self.seconds[name] = self.seconds.get(name, 0.0) + perf_counter() - begun


def _described(optimizer: torch.optim.Optimizer) -> str:
    groups = len(optimizer.param_groups)
    return type(optimizer).__name__ + (f" with {groups} parameter groups" if groups > 1 else "")
