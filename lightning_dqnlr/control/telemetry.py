"""What one training run shows, at a fixed cost for models of any size.

At observed steps the gradient and the weights are read at the coordinates of a `Probe` only. Every
inner product that the features need, such as gradient with update, comes out of one small Gram
matrix. `Telemetry` keeps those matrices and the
losses of one decision interval on the device; `Telemetry.read` turns them into one flat tensor, so
that a host needs exactly one transfer per decision. Long intervals observe 8 of their steps: four
adjacent pairs, because the cosines compare consecutive steps. The loss is averaged over all steps.

Everything has leading dimensions `lead`: `()` for one run, `(R,)` for R replicas side by side.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor

MAX_BINS = 16
MAX_OBSERVATIONS = 8
_TINY = 1e-38

# Rows of the stacked probe vectors, as the even observations use them. The odd ones use them from
# the other end, so that the rows of the observation before stay where they are.
_G, _D, _W, _D_PREV, _G_PREV = range(5)


class IntervalStats(NamedTuple):
    """The statistics of one decision interval; every tensor has the shape `lead`.

    Norms are estimates for the whole model, in the units of the parameters. Cosines are means over
    consecutive observed steps and 0 where none was observed: cos(a, b) = a.b / (||a|| ||b||).
    """

    losses: Tensor  # (*lead, bins): mean training loss over each of up to 16 stretches
    gradient_norm: Tensor
    gradient_spread: Tensor  # standard deviation of log(squared gradient norm)
    cos_gradients: Tensor  # cos(g_t, g_{t-1})
    cos_gradient_last_update: Tensor  # cos(g_t, dtheta_{t-1}), the hypergradient's sign
    cos_gradient_update: Tensor  # cos(g_t, dtheta_t)
    cos_updates: Tensor  # cos(dtheta_t, dtheta_{t-1})
    update_norm: Tensor  # root mean square of ||dtheta||
    max_update_ratio: Tensor  # largest ||dtheta|| / ||theta||
    weight_norm: Tensor
    weight_scale: Tensor  # that over what LeCun's initialisation would have given
    displacement: Tensor  # ||theta_end - theta_begin|| over the interval
    distance: Tensor  # ||theta_end - theta_0||
    finite: Tensor  # bool: no loss and no weight is NaN or infinite
    steps: int


_COUNTERS = ("_last_observed", "_observations", "total_steps", "steps", "step")
_SUMMARIES = IntervalStats._fields[1:-1]  # all but `losses` and `steps`


class Telemetry:
    """Accumulates one decision interval on the device.

    Per optimizer step, in this order: `before` and `after` if `observing`, then `add_loss`, which
    counts the step. A step without `add_loss` leaves no trace: the next one overwrites it.

    Args:
        num_coordinates: n, the length of probe vectors.
        lead: leading dimensions.
        device: where the sums live.
        lecun_norm: see `Probe`.
        weight_floor: smallest norm of the weights that is reported and divided by. Weights that
            begin at zero would otherwise never be allowed to move.

    Example:
        >>> telemetry, weights = Telemetry(num_coordinates=2), torch.tensor([3.0, 4.0])
        >>> telemetry.before(gradient=weights, weights=weights)
        >>> telemetry.after(0.9 * weights)
        >>> telemetry.add_loss(torch.tensor(12.5))
        >>> round(telemetry.read(0.9 * weights).max_update_ratio.item(), 4)
        0.1
    """

    def __init__(
        self,
        num_coordinates: int,
        lead: tuple[int, ...] = (),
        device: torch.device | str = "cpu",
        lecun_norm: float = 1.0,
        weight_floor: float = 0.0,
    ) -> None:
        self._lecun_norm = lecun_norm
        self._least_squared_weight = max(weight_floor**2, _TINY)
        self._vectors = torch.zeros((*lead, 5, num_coordinates), device=device)
        self._anchors = torch.zeros((*lead, 2, num_coordinates), device=device)
        self._grams = torch.zeros((MAX_OBSERVATIONS, *lead, 5, 5), device=device)
        self._losses = torch.zeros((*lead, MAX_BINS), device=device)
        # Views of the rows: indexing anew at every step would cost more than the arithmetic.
        self._rows = self._vectors.unbind(-2)
        self._bins = self._losses.unbind(-1)
        self._columns = self._vectors.transpose(-1, -2)
        self._paired: list[bool] = []  # per observation: was the step before it observed too?
        self._observations = 0  # since the first step
        self._last_observed = -1
        self._seen_before = False  # the step under way, ahead of its update
        self._seen_after = False
        self.total_steps = 0
        self.steps = 1
        self.step = 0

    def begin(self, steps: int) -> None:
        """Starts an interval of `steps` optimizer steps."""
        self.steps = steps
        self.step = 0
        self._paired.clear()
        self._losses.zero_()

    @property
    def observing(self) -> bool:
        """Whether the step under way is one whose gradient and update are looked at."""
        stride = math.ceil(self.steps / MAX_OBSERVATIONS)
        return self.step % (2 * stride) < 2

    @property
    def half_seen(self) -> bool:
        """Whether the step under way has been looked at before its update and not after it."""
        return self._seen_before and not self._seen_after

    @property
    def missed(self) -> bool:
        """Whether the step under way has not been looked at although it is observed."""
        return self.observing and not self._seen_after

    @property
    def complete(self) -> bool:
        """Whether all steps of the interval have been seen."""
        return self.step >= self.steps

    def before(self, gradient: Tensor, weights: Tensor) -> None:
        """Takes the probe's gradient and weights, (*lead, n), just before an optimizer step."""
        if self.total_steps == 0:
            self._anchors[..., 0, :] = weights
        if self.step == 0:
            self._anchors[..., 1, :] = weights
        self._row(_G).copy_(gradient)
        self._row(_W).copy_(weights)
        self._seen_before = True
        self._seen_after = False

    def after(self, weights: Tensor) -> None:
        """Takes the probe's weights, (*lead, n), just after the step."""
        torch.sub(weights, self._row(_W), out=self._row(_D))
        torch.matmul(self._vectors, self._columns, out=self._grams[len(self._paired)])
        self._seen_after = True

    def forget_step(self) -> None:
        """Drops what was seen of the step under way."""
        self._seen_before = self._seen_after = False

    def _row(self, name: int) -> Tensor:
        return self._rows[name if self._observations % 2 == 0 else 4 - name]

    def add_loss(self, loss: Tensor) -> None:
        """Adds the step's training loss, shape `lead`, and counts the step."""
        if self._seen_after:
            self._paired.append(0 < self.total_steps == self._last_observed + 1)
            self._last_observed = self.total_steps
            self._observations += 1
        self.forget_step()
        bins = min(self.steps, MAX_BINS)
        self._bins[self.step * bins // self.steps].add_(loss)
        self.step += 1
        self.total_steps += 1

    def read(
        self,
        weights: Tensor,
        device: torch.device | str | None = None,
        reduce: Callable[[Tensor], Tensor] | None = None,
        gather: Callable[[Tensor], Tensor] | None = None,
    ) -> IntervalStats:
        """The statistics of the interval, or of its steps so far.

        Args:
            weights: the probe's weights now, (*lead, n).
            device: of the result; another than the telemetry's costs the interval's one transfer.
            reduce: the mean over the processes of a data-parallel run; called once per interval.
            gather: the sum over processes that each hold a part of the model; called before it.
        """
        packed = torch.cat([self._mean_losses(), self._summaries(weights, gather)], dim=-1)
        if reduce is not None:
            packed = reduce(packed)
        if device is not None:
            packed = packed.to(device)
        count = len(_SUMMARIES)
        summaries = dict(zip(_SUMMARIES, packed[..., -count:].unbind(-1), strict=True))
        # The mean over processes is 1 only where all of them were finite.
        summaries["finite"] = summaries["finite"] > 0.999
        return IntervalStats(losses=packed[..., :-count], steps=self.step, **summaries)

    def _mean_losses(self) -> Tensor:
        bins = min(self.steps, MAX_BINS)
        edges = [min(math.ceil(i * self.steps / bins), self.step) for i in range(bins + 1)]
        counts = [stop - start for start, stop in pairwise(edges) if stop > start]
        filled = self._losses[..., : len(counts)]
        return filled / torch.tensor(counts, device=self._losses.device)

    def _summaries(
        self, weights: Tensor, gather: Callable[[Tensor], Tensor] | None = None
    ) -> Tensor:
        grams = self._observed_grams()
        moved = (weights.unsqueeze(-2) - self._anchors).square().sum(-1)
        if gather is not None:
            flat = gather(torch.cat([grams.flatten(), moved.flatten()]))
            grams = flat[: grams.numel()].view_as(grams)
            moved = flat[grams.numel() :].view_as(moved)
        grams, moved = _without_bad(grams), moved.sqrt()
        pairs = grams[..., [i for i, paired in enumerate(self._paired) if paired], :, :]
        squared_gradient = grams[..., _G, _G]
        squared_update = grams[..., _D, _D]
        squared_weight = grams[..., _W, _W].clamp_min(self._least_squared_weight)
        ratio = squared_update / squared_weight
        weight_norm = squared_weight.mean(-1).sqrt()
        columns = {
            "gradient_norm": squared_gradient.mean(-1).sqrt(),
            "gradient_spread": (squared_gradient + _TINY).log().std(-1, correction=0),
            "cos_gradients": _cosine(pairs, _G, _G_PREV),
            "cos_gradient_last_update": _cosine(pairs, _G, _D_PREV),
            "cos_gradient_update": _cosine(grams, _G, _D),
            "cos_updates": _cosine(pairs, _D, _D_PREV),
            "update_norm": squared_update.mean(-1).sqrt(),
            "max_update_ratio": ratio.amax(-1).sqrt(),
            "weight_norm": weight_norm,
            "weight_scale": weight_norm / self._lecun_norm,
            "displacement": moved[..., 1],
            "distance": moved[..., 0],
        }
        sums = torch.stack([columns[name] for name in _SUMMARIES[:-1]], dim=-1)
        finite = (sums.sum(-1) + self._losses.sum(-1)).isfinite()
        return torch.cat([sums, finite.unsqueeze(-1)], dim=-1)

    def _observed_grams(self) -> Tensor:
        """Of the interval's observations, (*lead, M, 5, 5), all in the order of the rows' names."""
        count = len(self._paired)
        odd = [(self._observations - count + i) % 2 == 1 for i in range(count)]
        grams = self._grams[:count].movedim(0, -3)
        swapped = torch.tensor(odd, device=grams.device)[:, None, None]
        return torch.where(swapped, grams.flip(-1, -2), grams)

    def state_dict(self) -> dict[str, object]:
        """Everything needed to go on in the middle of an interval: tensors and builtins."""
        return {
            "vectors": self._vectors.clone(),
            "anchors": self._anchors.clone(),
            "grams": self._grams.clone(),
            "losses": self._losses.clone(),
            "paired": list(self._paired),
            "seen": self._seen_after,
            "counters": [getattr(self, name) for name in _COUNTERS],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._vectors.copy_(state["vectors"])
        self._anchors.copy_(state["anchors"])
        self._grams.copy_(state["grams"])
        self._losses.copy_(state["losses"])
        self._paired = list(state["paired"])
        self._seen_before = self._seen_after = state.get("seen", False)
        for name, count in zip(_COUNTERS, state["counters"], strict=True):
            setattr(self, name, count)


def _without_bad(grams: Tensor) -> Tensor:
    """Replaces observations that are not finite by the first that is, (*lead, M, 5, 5).

    The gradient of a bad batch, which the user leaves out, says nothing. Zeros stand where no
    observation is finite. Weights that are not finite show in the end of the interval.
    """
    if grams.shape[-3] == 0:
        return grams
    # A step before that was bad spoils the cosines with it, which are zero then, and no more.
    bad = ~grams[..., :_D_PREV, :_D_PREV].isfinite().all(-1).all(-1)
    first = bad.to(torch.uint8).argmin(-1)[..., None, None, None].expand(*grams.shape[:-3], 1, 5, 5)
    good = grams.gather(-3, first).nan_to_num(0.0, 0.0, 0.0)
    good = torch.where(bad.all(-1)[..., None, None, None], 0.0, good)
    return torch.where(bad[..., None, None], good, grams)


def _cosine(grams: Tensor, a: int, b: int) -> Tensor:
    """Mean cosine between rows a and b over the observations, (*lead, M, 5, 5) -> lead."""
    if grams.shape[-3] == 0:
        return grams.new_zeros(grams.shape[:-3])
    norms = (grams[..., a, a].sqrt() * grams[..., b, b].sqrt()).clamp_min(_TINY)
    # A NaN of the step before belongs to its own interval: it must not condemn this one too.
    return (grams[..., a, b] / norms).mean(-1).nan_to_num(0.0)
