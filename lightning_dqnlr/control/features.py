"""Telemetry and a short history -> the observation of the decision process.

No feature depends on the scale of the loss or of the gradients, nor on the length of the run. The
exceptions have names that start with `raw_` and exist for the `classic` recipe. Only `weight_scale`
tells the scale of the weights, in units of LeCun's initialisation. The features follow

- LHOPT (Almeida et al. 2021, arXiv:2106.00958): log ratios, clipped inputs, cosines against noise;
- hypergradient descent (Baydin et al. 2018): the sign of cos(g_t, dtheta_{t-1});
- DoG (Ivgi et al. 2023): distance over the root of summed squared updates;
- trust-region methods: the gain, the share of the predicted fall of the loss that came true.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from lightning_dqnlr.control.history import History
from lightning_dqnlr.control.telemetry import IntervalStats
from lightning_dqnlr.errors import ConfigurationError, PolicyFileError

LOSS_FLOOR = 0.01
CLIP = 3.0
_TINY = 1e-30


def compressed_loss(loss: Tensor, initial_loss: Tensor) -> Tensor:
    """The scale on which progress is measured: y(L) = sign(L) log(1 + |L| / e).

    e is 1% of |initial_loss|. For L >= 0 differences of y are therefore differences of log(L + e),
    as in the benchmark's regret. Zero and negative losses are allowed.

    Args:
        loss: any shape.
        initial_loss: broadcastable to it.

    Example:
        >>> compressed_loss(torch.tensor([2.0, 0.0]), initial_loss=torch.tensor(2.0))
        tensor([4.6151, 0.0000])
    """
    return loss.sign() * torch.log1p(loss.abs() / _floor(initial_loss))


def expanded_loss(level: Tensor, initial_loss: Tensor) -> Tensor:
    """The inverse of `compressed_loss`.

    Example:
        >>> expanded_loss(torch.tensor([4.6151, 0.0]), initial_loss=torch.tensor(2.0))
        tensor([2.0000, 0.0000])
    """
    return level.sign() * torch.expm1(level.abs()) * _floor(initial_loss)


def predicted_drop(stats: IntervalStats, loss: Tensor, initial_loss: Tensor) -> Tensor:
    """How far the compressed loss falls in one step, by its gradient: -g . dtheta dy/dL.

    First order, of the batch that the step was made with; `loss` is the interval's mean, and all
    are of shape `lead`. The ratio of the actual fall to it is what trust-region methods judge a
    step by (Nocedal and Wright 2006, eq. 4.4).
    """
    fall = -stats.cos_gradient_update * stats.gradient_norm * stats.update_norm
    return fall / slope(loss, initial_loss)


def slope(loss: Tensor, initial_loss: Tensor) -> Tensor:
    """dL/dy of the compressed loss y: |L| + e."""
    return loss.abs() + _floor(initial_loss)


def _floor(initial_loss: Tensor) -> Tensor:
    return (LOSS_FLOOR * initial_loss.abs()).clamp_min(_TINY)


class Clock(NamedTuple):
    """Where in the run a decision falls; the same for all replicas."""

    step: int
    interval: int  # steps of the coming interval
    horizon: int | None
    decisions: int

    @property
    def progress(self) -> float:
        """Share of the run that is over; 0 while the horizon is unknown."""
        return min(self.step / self.horizon, 1.0) if self.horizon else 0.0


def _squash(x: Tensor, unit: float) -> Tensor:
    """Linear below `unit`, logarithmic above: asinh(x / unit) / 2."""
    return torch.asinh(x / unit) / 2


def _log10(x: Tensor) -> Tensor:
    return x.clamp_min(_TINY).log10()


def _loss_features(s: IntervalStats, h: History, before: History) -> dict[str, Tensor]:
    initial = compressed_loss(h.initial_loss, h.initial_loss)
    return {
        "loss_change": _squash(before.level - h.level, 0.02),
        "loss_change_fast": _squash(before.fast - h.level, 0.02),
        "loss_change_slow": _squash(before.slow - h.level, 0.02),
        "loss_above_best": _squash(h.level - h.best, 0.05),
        "loss_since_start": (initial - h.level) / 2,
        "loss_level": h.level / 5,
        "loss_trend": _squash(trend(compressed_loss(s.losses, h.initial_loss[..., None])), 1.0),
        "loss_noise": (_log10(h.noise + 1e-4) + 2) / 1.5,
    }


def _gradient_features(s: IntervalStats, h: History, before: History) -> dict[str, Tensor]:
    return {
        "cos_gradients": s.cos_gradients,
        "cos_gradients_small": _squash(s.cos_gradients, 0.03),
        "cos_hypergradient": -s.cos_gradient_last_update,
        "cos_hypergradient_small": -_squash(s.cos_gradient_last_update, 0.03),
        "cos_descent": -s.cos_gradient_update,
        "cos_updates": s.cos_updates,
        "gradient_change": (h.log_gradient - before.log_gradient) / 1.5,
        "gradient_since_start": (h.log_gradient - h.first_log_gradient) / 3,
        "gradient_spread": s.gradient_spread / 1.5,
    }


def _descent_features(
    s: IntervalStats, h: History, before: History, clock: Clock
) -> dict[str, Tensor]:
    predicted = predicted_drop(s, h.loss, h.initial_loss)
    # The relative fall of the loss that a step of the weights' own norm, straight down, promises.
    elasticity = s.gradient_norm * s.weight_norm / slope(h.loss, h.initial_loss)
    return {
        "descent": (_log10(predicted.clamp_min(1e-12)) + 2) / 1.5,
        "descent_ahead": (_log10((predicted * clock.interval).clamp_min(1e-12)) + 1) / 1.5,
        "elasticity": _log10(elasticity) / 2,
        "gain": _gain(before.level - h.level, predicted * s.steps),
        "gain_slow": _gain(h.drop, h.forecast),
    }


def _gain(actual: Tensor, predicted: Tensor) -> Tensor:
    return _squash(actual / predicted.clamp_min(1e-9), 0.1)


def _movement_features(s: IntervalStats, h: History) -> dict[str, Tensor]:
    walk = math.sqrt(s.steps) * s.update_norm
    return {
        "straightness": _log10(s.displacement / (s.steps * s.update_norm).clamp_min(_TINY)),
        "straightness_walk": _log10(s.displacement / walk.clamp_min(_TINY)),
        "weight_scale": _log10(s.weight_scale) * 1.5,
        "update_ratio": (_log10(s.update_norm / s.weight_norm.clamp_min(_TINY)) + 3) / 1.5,
        "largest_update_ratio": (_log10(s.max_update_ratio) + 3) / 1.5,
        "distance": _log10(s.distance / s.weight_norm.clamp_min(_TINY)) + 1,
        "distance_per_path": _log10(s.distance / h.path.sqrt().clamp_min(_TINY)),
    }


def _control_features(h: History, clock: Clock) -> dict[str, Tensor]:
    shared = {
        "progress": 2 * clock.progress - 1,
        "remaining": math.log(1 - clock.progress + 1 / 64) / 3,
        "horizon_known": float(clock.horizon is not None),
        "log_step": math.log10(clock.step) / 2 - 1,
        "log_interval": math.log10(clock.interval) - 1,
        "early": math.exp(-clock.decisions / 8),
    }
    return {
        **{name: torch.full_like(h.level, value) for name, value in shared.items()},
        "last_action": h.last_action,
        "previous_action": h.previous_action,
        "scale_to_peak": (h.log_scale - h.peak_log_scale) / 2,
        "scale_to_start": (h.log_scale - h.start_log_scale) / 5 - 1,
        "since_trip": torch.exp(-h.since_trip / 4),
        "trips": torch.tanh(h.trips / 3),
        "capped": h.capped,
    }


def _raw_features(s: IntervalStats, h: History, before: History, clock: Clock) -> dict[str, Tensor]:
    loss = s.losses.mean(-1)
    return {
        "raw_loss": loss,
        "raw_loss_change": before.loss - loss,
        "raw_gradient_norm": s.gradient_norm,
        "raw_step": torch.full_like(loss, clock.step / 1000),
        "raw_learning_rate": h.log_scale.exp(),
    }


def trend(y: Tensor) -> Tensor:
    """t-statistic of the least-squares slope of y over its last dimension, negative when falling.

    (*lead, n) -> lead; 0 where n < 3. Bounded by +-20 so that a noiseless line is finite.

    Example:
        >>> trend(torch.tensor([3.0, 2.0, 1.0]))
        tensor(-20.)
    """
    n = y.shape[-1]
    if n < 3:
        return torch.zeros_like(y[..., 0])
    x = torch.arange(n, device=y.device, dtype=y.dtype) - (n - 1) / 2
    slope = (y * x).sum(-1) / x.square().sum()
    residual = y - y.mean(-1, keepdim=True) - slope[..., None] * x
    error = (residual.square().sum(-1) / (n - 2) / x.square().sum()).sqrt()
    return (slope / error.clamp_min(1e-12)).clamp(-20.0, 20.0)


def step_noise(losses: Tensor, before: Tensor, initial_loss: Tensor, steps: int) -> Tensor:
    """Standard deviation of one step's compressed loss about the interval's trend, shape `lead`.

    The mean squared second difference of white noise is 6 sigma^2 (von Neumann's ratio, one order
    up), and a linear trend leaves it untouched. The intervals of runs under 160 steps have one or
    two bins. Their first differences are taken, from the previous interval's level on: 2 sigma^2 of
    white noise. A trend then counts as noise, and the breaker is more patient.

    Args:
        losses: (*lead, bins), averages of `steps / bins` steps each.
        before: compressed loss of the previous interval.
        initial_loss: of the run.
        steps: of the interval.
    """
    y = compressed_loss(losses, initial_loss[..., None])
    per_bin = max(1.0, steps / y.shape[-1])
    if y.shape[-1] >= 3:
        return (y.diff(n=2).square().mean(-1) / 6 * per_bin).sqrt()
    first = y.diff(prepend=before[..., None])
    return (first.square().mean(-1) / 2 * per_bin).sqrt()


def all_features(
    stats: IntervalStats, history: History, before: History, clock: Clock
) -> dict[str, Tensor]:
    """Every feature by name, each of shape `lead`; `FeatureSpec.select` stacks some of them.

    Args:
        stats: the interval that just ended.
        history: the history with that interval in it.
        before: the history without it.
        clock: where the decision falls.
    """
    return {
        **_loss_features(stats, history, before),
        **_gradient_features(stats, history, before),
        **_descent_features(stats, history, before, clock),
        **_movement_features(stats, history),
        **_control_features(history, clock),
        **_raw_features(stats, history, before, clock),
    }


def _feature_names() -> tuple[str, ...]:
    h = History.zeros((), "cpu")
    zero = torch.zeros(())
    summaries = dict.fromkeys(IntervalStats._fields[1:-1], zero)
    stats = IntervalStats(losses=torch.zeros(1), steps=1, **summaries)
    return tuple(all_features(stats, h, h, Clock(1, 1, None, 0)))


FEATURES = _feature_names()
SCALE_FREE = tuple(name for name in FEATURES if not name.startswith("raw_"))
CLASSIC = tuple(name for name in FEATURES if name.startswith("raw_"))
FEATURE_VERSION = 1


@dataclass(frozen=True)
class FeatureSpec:
    """Which features make up the observation, in order, and the version of their definitions.

    Raises:
        PolicyFileError: if the version is another than this code's, or a name is unknown.
        ConfigurationError: if no name is given.

    Example:
        >>> FeatureSpec(("progress", "loss_change")).limits
        (3.0, 3.0)
    """

    names: tuple[str, ...] = SCALE_FREE
    version: int = FEATURE_VERSION

    def __post_init__(self) -> None:
        object.__setattr__(self, "names", tuple(self.names))
        if not self.names:
            raise ConfigurationError("names=() selects no feature; name at least one.")
        unknown = sorted(set(self.names) - set(FEATURES))[:5]
        if unknown or self.version != FEATURE_VERSION:
            raise PolicyFileError(
                f"feature specification version {self.version} with unknown features {unknown}; "
                f"this lightning-dqnlr computes version {FEATURE_VERSION}. Use the release that "
                "trained the policy, or train it again with `dqnlr-train`."
            )

    def __len__(self) -> int:
        return len(self.names)

    @property
    def limits(self) -> tuple[float, ...]:
        """The largest absolute value of each feature: 3 if scale-free, 10,000 if raw."""
        return tuple(1e4 if name.startswith("raw_") else CLIP for name in self.names)

    def select(self, features: dict[str, Tensor]) -> Tensor:
        """Stacks the selected features, clipped to +-`limits`: (*lead, len(self))."""
        columns = torch.stack([features[name] for name in self.names], dim=-1)
        limit = torch.tensor(self.limits, device=columns.device)
        return torch.minimum(torch.maximum(columns.nan_to_num(0.0), -limit), limit)
