"""`Record`: what one training run of the benchmark left behind, as plain data; and its losses."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lightning_dqnlr.checks import check_fields
from lightning_dqnlr.errors import RecordError
from lightning_dqnlr.files import strict_json
from lightning_dqnlr.scoring.cosine import regret

TRAIN = "train"
VALIDATION = "validation"
FEWEST = 3  # LRs that a race over a grid keeps, however far ahead the best is
_RENAMED = {"q-table": "q_table"}  # methods that records of before call otherwise
_CURVES = ("step", "train", "validation", "lr")


def slug(name: str) -> str:
    """What a task or method is called in file names; two names may share one."""
    return re.sub(r"[^A-Za-z0-9._-]+", "_", name).strip("._")[:60] or "_"


class RunKey(NamedTuple):
    """What tells runs apart: a run whose key is known need not be made again."""

    task: str
    method: str
    lr: float | None
    seed: int
    version: str
    policy: str | None


@dataclass(frozen=True)
class Record:
    """One run of one method on one task, as one JSON file holds it.

    Losses are means over the whole data set, or over a fixed large part of it, in eval mode. What
    is not a finite number is None. The curve has lists of one length: "step", the losses "train"
    and "validation", and the "lr" of the step just made. It goes from step 0 to the run's end.
    """

    task: str
    split: str  # which question the task belongs to ("new families", say); "" for none
    optimizer: str  # the task's own, in words
    method: str
    lr: float | None  # the learning rate or peak given to the method; None for the module's own
    seed: int  # of weights, data order and dropout
    horizon: int  # optimizer steps
    batch_size: int
    parameters: int  # trainable numbers of the model
    initial_train: float  # losses before the first step
    initial_validation: float
    final_train: float | None  # losses after the last step; None if the run diverged
    final_validation: float | None
    curve: dict[str, list[Any]]
    seconds: float  # of training and of choosing the learning rate, without evaluations
    extra_bytes: int  # that the method keeps beyond a plain run of the task's optimizer
    tries: int  # runs that this one cost, those inside the method that choose its rate included
    failure: str | None  # an exception's text; the run counts as diverged
    version: str  # of the method, the task and what else decides the result (`run_version`)
    policy: str | None  # hash of the policy's weights; None for methods without one

    @property
    def key(self) -> RunKey:
        return RunKey(self.task, self.method, self.lr, self.seed, self.version, policy=self.policy)

    def to_json(self) -> str:
        """One JSON object, strictly: a number that is not finite becomes null."""
        return strict_json(asdict(self), indent=1)

    @classmethod
    def from_json(cls, text: str) -> Record:
        """Reads what `to_json` wrote.

        Raises:
            RecordError: if the text is damaged, or a record of another version.
        """
        try:
            values = json.loads(text)
            check_fields("the record", values, [field.name for field in fields(cls)])
            values["method"] = _RENAMED.get(str(values["method"]), values["method"])
            _check(values)
        except ValueError as error:
            raise RecordError(
                f"the record is damaged or of another version ({error}); delete the file and let "
                "the run be made again."
            ) from error
        return cls(**values)


_KINDS = {"float": (int, float), "int": (int,), "str": (str,)}


def _check(values: dict[str, Any]) -> None:
    """Raises ValueError for a field of the wrong kind."""
    for field in fields(Record):
        kind, _, nullable = str(field.type).partition(" | ")
        value = values[field.name]
        if field.name == "curve" or (nullable and value is None):
            continue
        # A loss that was not finite before the first step was written as null.
        if field.name.startswith("initial") and value is None:
            values[field.name] = math.nan
        elif not isinstance(value, _KINDS[kind]) or isinstance(value, bool):
            raise ValueError(f"{field.name} must be {field.type}, got {value!r}")
    curve = values["curve"]
    lists = isinstance(curve, dict) and all(isinstance(c, list) for c in curve.values())
    if not lists or set(curve) != set(_CURVES) or len({len(c) for c in curve.values()}) != 1:
        raise ValueError(f"curve must hold lists of one length {_CURVES}")


def initial_loss(runs: Sequence[Record], which: str = TRAIN) -> float:
    """Mean loss before training, of the runs that came as far; NaN if none did."""
    losses = [run.initial_train if which == TRAIN else run.initial_validation for run in runs]
    known = [loss for loss in losses if math.isfinite(loss) and loss != 0]
    return sum(known) / len(known) if known else math.nan


def final_loss(run: Record, which: str = TRAIN) -> float:
    """The loss after training; NaN if the run diverged or raised."""
    loss = run.final_train if which == TRAIN else run.final_validation
    return math.nan if loss is None or run.failure is not None else loss


def log_losses(runs: Sequence[Record], initial: float, which: str = TRAIN) -> Tensor:
    """log((loss + e) / e) of each run, (S,) float64, with e = 1% of the initial loss.

    A loss below zero counts as zero. A diverged run counts as ten times the initial loss.
    """
    losses = torch.tensor([final_loss(run, which) for run in runs], dtype=torch.float64)
    return regret(losses, 0.0, initial)


def diverged(run: Record) -> bool:
    """Whether a run raised, lost its loss to infinity, or ended above where it started."""
    return not final_loss(run) <= run.initial_train


def survivors(runs: Sequence[Record], margin: float) -> frozenset[float | None]:
    """The LRs of a grid that may still become the best by the mean over seeds.

    An LR survives if log(loss + e) <= best + margin, or if it is among the best three (of equal
    ones the lower). The runs are of one task, method and seed, one per LR. The margin is in nats
    of training loss; 0.7 is a factor of two. A diverged run counts at ten times the initial loss.
    """
    initial = initial_loss(runs)
    losses = log_losses(runs, 1.0 if math.isnan(initial) else initial).tolist()
    ranked = sorted((loss, run.lr or 0.0, run.lr) for loss, run in zip(losses, runs, strict=True))
    return frozenset(
        lr
        for place, (loss, _, lr) in enumerate(ranked)
        if place < FEWEST or loss <= ranked[0][0] + margin
    )
