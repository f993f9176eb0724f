"""What the runs in a memory say of the next run of a model."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from statistics import fmean, median
from typing import Any, NamedTuple

from lightning_dqnlr.memory.fit import Fit, Point, fit, next_run
from lightning_dqnlr.memory.runs import Mode, Model, RememberedRun

_LONGER = 1.25  # runs are not compared if one has more than this many times the other's steps
_DIVERGED = 1.0  # log loss above the worst run of the same model
_MOST = 300  # runs that take part; a fit's time grows with their third power
_WORSE = 0.45  # of log loss over the policy's own runs, over the number of runs that held a rate
_ROUNDING = 1e-6  # of log2 of a rate


class Suggestion(NamedTuple):
    """The learning rate of the next run.

    Example:
        suggest(runs, model, "val_loss").why

    Attributes:
        held: that the run is to hold; None for the policy's own rates.
        why: the reason, in words.
        runs: of this very model, which took part.
        reference: learning rate that the fit is measured from; None without any run.
        fit: what is believed of the model.
    """

    held: float | None
    why: str
    runs: Sequence[RememberedRun]
    reference: float | None
    fit: Fit


def suggest(
    runs: Iterable[RememberedRun],
    model: Model,
    metric: str,
    mode: Mode = "min",
    *,
    min_lr: float | None = None,
    max_lr: float | None = None,
) -> Suggestion:
    """Chooses the learning rate of a model's next run.

    Runs of another horizon are left out: how the best rate moves with it has not been measured.
    So are runs that were interrupted, and those that were judged by another metric. Runs of the
    same structure at another width or batch size take part, the less the further off. No more than
    300 take part, the nearest and newest.

    Args:
        runs: all that are remembered.
        model: that is about to be trained.
        metric: that it will be judged by.
        mode: of that metric.
        min_lr: lower bound of the learning rate; None for none.
        max_lr: upper bound.

    Example:
        suggest(memory.runs().values(), model, "val_loss").held
    """
    judged = [run for run in runs if run.counts and (run.metric, run.mode) == (metric, mode)]
    groups: dict[_Key, list[RememberedRun]] = {_key(model): []}
    for run in judged:
        if _comparable(run.model, model):
            groups.setdefault(_key(run.model), []).append(run)
    own = groups[_key(model)]
    references = {key: _reference(each) for key, each in groups.items()}
    nearest = min(groups, key=lambda key: (not groups[key], _distance(groups[key], model)))
    reference = references[_key(model)] or references[nearest]
    if reference is None:
        return Suggestion(None, "the first run is the policy's", own, None, fit([]))
    points = [
        point
        for i, (key, each) in sorted(
            enumerate(groups.items()), key=lambda item: (item[0] > 0, _distance(item[1][1], model))
        )
        for point in reversed(_points(each, i, references[key] or reference, model))
    ]
    found = fit(points[:_MOST])
    low = -math.inf if min_lr is None else math.log2(min_lr / reference) - _ROUNDING
    high = math.inf if max_lr is None else math.log2(max_lr / reference) + _ROUNDING
    choice = next_run(found, low, high)
    if _policy_is_better(own):
        words = "the policy's own rates have been better than all that were held"
        return Suggestion(None, words, own, reference, found)
    return Suggestion(reference * 2.0**choice.x, choice.why, own, reference, found)


def _policy_is_better(runs: Sequence[RememberedRun]) -> bool:
    """Whether every run that held a rate ended plainly above the policy's own runs.

    A policy may do what no one rate does, and the fit knows of rates alone.
    """
    levels = list(zip(runs, _levels(runs), strict=True))
    own = [level for run, level in levels if run.held is None]
    held = [level for run, level in levels if run.held is not None]
    return bool(own and held) and min(held) - fmean(own) > _WORSE / len(held)


def suggestion_of(runs: Sequence[Mapping[str, Any]]) -> Suggestion | None:
    """What plain data of runs say of the next run of the last one's model; None without any.

    Example:
        >>> suggestion_of([]) is None
        True
    """
    if not runs:
        return None
    read = [RememberedRun.from_dict(run) for run in runs]
    return suggest(read, read[-1].model, read[-1].metric, read[-1].mode)


_Key = tuple[str, int | None]


def _key(model: Model) -> _Key:
    return model.shapes, model.batch_size


def _comparable(other: Model, model: Model) -> bool:
    if other.structure != model.structure:
        return False
    if other.horizon is None or model.horizon is None:
        return other.horizon is model.horizon
    return abs(math.log(other.horizon / model.horizon)) <= math.log(_LONGER)


def _reference(runs: Sequence[RememberedRun]) -> float | None:
    """The typical rate of the policy's own runs; of all where there are none."""
    own = [run.upper_quartile for run in runs if run.held is None and run.upper_quartile > 0]
    rest = [run.upper_quartile for run in runs if run.upper_quartile > 0]
    return median(own or rest) if rest else None


def _width(other: Model, model: Model) -> float:
    """log2 of a width over another; parameters grow with its square."""
    return math.log2(max(1, other.parameters) / max(1, model.parameters)) / 2


def _batch(other: Model, model: Model) -> float:
    if other.batch_size is None or model.batch_size is None:
        return 0.0
    return math.log2(other.batch_size / model.batch_size)


def _distance(runs: Sequence[RememberedRun], model: Model) -> float:
    if not runs:
        return math.inf
    return abs(_width(runs[0].model, model)) + abs(_batch(runs[0].model, model))


def _points(
    runs: Sequence[RememberedRun], group: int, reference: float, model: Model
) -> list[Point]:
    return [
        Point(
            x=0.0 if run.held is None else math.log2(run.held / reference),
            y=level,
            group=group,
            width=_width(run.model, model),
            batch=_batch(run.model, model),
            error=error,
        )
        for run, level, error in zip(runs, _levels(runs), _errors(runs), strict=True)
    ]


def _levels(runs: Sequence[RememberedRun]) -> list[float]:
    """Of each run what is to be lowered: the log of its metric, as a rule."""
    values = _values(runs)
    if not values:
        return [0.0 for _ in runs]
    scale = _scale(values, runs[0].mode)
    worst = max(scale.level(value) for value in values) + _DIVERGED
    return [
        worst if run.ended == "diverged" or run.value is None else scale.level(run.value)
        for run in runs
    ]


def _errors(runs: Sequence[RememberedRun]) -> list[float]:
    """Of each run the standard error of its level; 0 where the run does not tell of it."""
    values = _values(runs)
    if not values:
        return [0.0 for _ in runs]
    slope = _scale(values, runs[0].mode).slope
    return [
        min(1.0, run.error * slope(run.value)) if run.error and run.value is not None else 0.0
        for run in runs
    ]


def metric_of(runs: Sequence[RememberedRun]) -> Callable[[float], float]:
    """Maps a level of the fit back to the metric of these runs of one model, for pictures.

    Example:
        metric = metric_of(suggestion.runs)
        metric(float(suggestion.fit.mean[0]))
    """
    return _scale(_values(runs), runs[0].mode).metric


def _values(runs: Sequence[RememberedRun]) -> list[float]:
    return [run.value for run in runs if run.ended != "diverged" and run.value is not None]


class _Scale(NamedTuple):
    """How a metric becomes a level and back, and how far a level moves with its metric."""

    level: Callable[[float], float]
    metric: Callable[[float], float]
    slope: Callable[[float], float]


def _scale(values: Sequence[float], mode: Mode) -> _Scale:
    if mode == "min" and min(values) > 0:
        return _Scale(math.log, math.exp, lambda value: 1 / value)
    lacks = [1 - value for value in values if value < 1]
    if mode == "max" and lacks and all(0 <= value <= 1 for value in values):  # a share of 1
        least = min(lacks) / 2  # what a share of exactly 1 is taken to lack
        return _Scale(
            lambda value: math.log(max(1 - value, least)),
            lambda level: 1 - math.exp(level),
            lambda value: 1 / max(1 - value, least),
        )
    size = max(abs(value) for value in values) or 1.0
    signed = size if mode == "min" else -size
    return _Scale(lambda value: value / signed, lambda level: level * signed, lambda _: 1 / size)
