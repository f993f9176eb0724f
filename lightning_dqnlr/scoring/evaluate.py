"""Regret of a policy on tasks it is not trained on, against the tuned cosine."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lightning_dqnlr.checks import check_choice, check_fields, check_kind, check_settings
from lightning_dqnlr.envs.environment import USER_LR_EXPONENTS, Engine, Terms
from lightning_dqnlr.envs.vector import ON_CPU
from lightning_dqnlr.errors import ConfigurationError
from lightning_dqnlr.files import parse_json, read_regular, write_atomically
from lightning_dqnlr.policy.choice import Policy
from lightning_dqnlr.scoring.cosine import TunedCosine, regret, tune_cosine
from lightning_dqnlr.scoring.statistics import interquartile_mean
from lightning_dqnlr.scoring.task_content import task_digest
from lightning_dqnlr.tasks.task import Task


class Rivals:
    """Tuned cosines of tasks, kept on disk because each is a whole grid search.

    Args:
        folder: where results are kept, or None to keep them in memory only.
        engine: trains them.

    Raises:
        ConfigurationError: on access, if a file that is kept was damaged.

    Example:
        >>> Rivals("rivals")[task].peak  # doctest: +SKIP
        0.03162277660168379
    """

    def __init__(self, folder: str | Path | None, engine: Engine = ON_CPU) -> None:
        self._folder = None if folder is None else Path(folder)
        self._engine = engine
        self._known: dict[str, TunedCosine] = {}

    def __getitem__(self, task: Task) -> TunedCosine:
        key = fingerprint(task)
        if key not in self._known:
            self._known[key] = self._read(key) or self._tune(task, key)
        return self._known[key]

    def _read(self, key: str) -> TunedCosine | None:
        path = None if self._folder is None else self._folder / f"{key}.json"
        if path is None or not path.exists():
            return None
        try:
            return _tuned(parse_json(read_regular(path, _MOST)))
        except (OSError, ValueError) as error:
            raise ConfigurationError(
                f"{path} is damaged ({error}); delete it, and the cosine is tuned again."
            ) from error

    def _tune(self, task: Task, key: str) -> TunedCosine:
        tuned = tune_cosine(task, engine=self._engine)
        values = tuned._asdict()
        # One that is not finite is of a task that nobody uses.
        if self._folder is not None and math.isfinite(tuned.initial_loss + tuned.validation_loss):
            content = json.dumps({**values, "sha256": _digest(values)}).encode()
            write_atomically(self._folder / f"{key}.json", content)
        return tuned


_MOST = 2**20  # bytes


def _tuned(values: Any) -> TunedCosine:
    """The inverse of `_asdict`, of data that may be damaged; earlier versions kept no checksum."""
    check_fields("the cosine", values, TunedCosine._fields, ("sha256",))
    digest = values.pop("sha256", None)
    check_choice("sha256", digest, (_digest(values),), optional=True)
    check_kind("train_losses", values["train_losses"], list)
    tuned = TunedCosine(**{**values, "train_losses": tuple(values["train_losses"])})
    check_settings(tuned, "")
    return tuned


def _digest(values: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def fingerprint(task: Task) -> str:
    """A name for exactly this problem: changes with its data, model, optimizer or length."""
    return f"{task.name.replace('/', '-')}-{task_digest(task)[:12]}"


@dataclass(frozen=True)
class Regrets:
    """Regrets of one evaluation, one row per task and one column per seed.

    Attributes:
        names: of the tasks.
        train: (tasks, seeds) regret on the final training loss.
        validation: the same on the validation loss.
        trips: of the circuit breaker, mean per run.
    """

    names: tuple[str, ...]
    train: Tensor
    validation: Tensor
    trips: float

    @property
    def score(self) -> float:
        """What selects a policy: the mean over tasks of regret clipped to [-0.5, 2].

        It is finite whatever happened: a regret that is not a number counts as 2.
        """
        return self.clipped.mean().item()

    @property
    def clipped(self) -> Tensor:
        """What the score is the mean of, (tasks, seeds)."""
        return self.train.nan_to_num(2.0).clamp(-0.5, 2.0)

    def by_task(self) -> dict[str, dict[str, float]]:
        """Mean regrets over the seeds of each task, on training and validation loss."""
        rows = zip(self.names, self.train.mean(-1), self.validation.mean(-1), strict=True)
        return {name: {"train": t.item(), "validation": v.item()} for name, t, v in rows}

    def summary(self) -> dict[str, float]:
        """Plain numbers for logs and model cards."""
        flat = self.train.flatten()
        return {
            "regret_mean": flat.mean().item(),
            "regret_median": flat.median().item(),
            "regret_iqm": interquartile_mean(flat),
            "regret_p90": flat.quantile(0.9).item(),
            "regret_max": flat.max().item(),
            "regret_within_2_percent": (flat < 0.02).float().mean().item(),
            "validation_regret_median": self.validation.flatten().median().item(),
            "validation_regret_iqm": interquartile_mean(self.validation.flatten()),
            "trips": self.trips,
            "score": self.score,
        }


class PolicyRun(NamedTuple):
    """One controlled run of a task, R seeds side by side."""

    train_loss: Tensor
    validation_loss: Tensor
    log_scale: Tensor  # (decisions, R) natural log of the learning rate's scale
    trips: float


def run_policy(
    task: Task, policy: Policy, seeds: Sequence[int], engine: Engine = ON_CPU
) -> PolicyRun:
    """Trains R replicas of a task under a policy's greedy control, one replica per seed.

    They begin at the controller's own start. If the policy begins at the optimizer's rate, their
    rates are spread evenly over the logarithm of 1e-6..10, as users might have set them.
    """
    own = policy.start == "optimizer"
    lr = torch.logspace(*USER_LR_EXPONENTS, len(seeds)) if own else None
    env = engine.open(task, policy.spec, seeds, Terms(lr, circuit_breaker=policy.circuit_breaker))
    observation = env.reset()
    scales = []
    while not env.finished:
        observation = env.step(policy.choose(observation).action).observation
        scales.append(env.controller.history.log_scale)
    losses = env.losses()
    return PolicyRun(
        train_loss=losses.train,
        validation_loss=losses.validation,
        log_scale=torch.stack(scales),
        trips=env.controller.history.trips.mean().item(),
    )


def evaluate(
    policy: Policy,
    tasks: Sequence[Task],
    rivals: Rivals,
    seeds: Sequence[int],
    engine: Engine = ON_CPU,
) -> Regrets:
    """Regrets of a policy on each task and seed.

    The result is the same whenever it is called, so a run that was resumed has the same numbers.
    The global random state stays as it is. The arguments are those of `run_policy`.

    Example:
        >>> evaluate(LRPolicy.load(), tasks, Rivals(None), range(4)).score  # doctest: +SKIP
    """
    train = []
    validation = []
    trips = 0.0
    for task in tasks:
        result = run_policy(task, policy, seeds, engine)
        rival = rivals[task]
        initial = rival.initial_loss
        train.append(regret(result.train_loss, rival.train_loss, initial))
        validation.append(regret(result.validation_loss, rival.validation_loss, initial))
        trips += result.trips / len(tasks)
    names = tuple(task.name for task in tasks)
    return Regrets(names, torch.stack(train).cpu(), torch.stack(validation).cpu(), trips)
