"""What one training run shows, at a fixed cost for models of any size.

A `Probe` picks about a thousand coordinates of the model once. At observed steps the gradient
and the weights are read at those coordinates only, and every inner product that the features need
(gradient with gradient, gradient with update, update with update, ...) comes out of one small Gram
matrix. `Telemetry` keeps those matrices and the losses of one decision interval on the device;
`Telemetry.read` turns them into one flat tensor, so that a host needs exactly one transfer per
decision. Long intervals observe 8 of their steps (four adjacent pairs, because the cosines
compare consecutive steps); the loss is averaged over all of them.

Everything has leading dimensions `lead`: `()` for one run, `(R,)` for R replicas side by side.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor

MAX_TENSORS = 64
MAX_BINS = 16
MAX_OBSERVATIONS = 8
_SLICES = 4
_TINY = 1e-38

# Rows of the stacked probe vectors, as the even observations use them. The odd ones use them from
# the other end, so that the rows of the observation before stay where they are.
_G, _D, _W, _D_PREV, _G_PREV = range(5)


class Probe:
    """A fixed sample of a model's coordinates: evenly spaced slices of its tensors.

    Each coordinate is weighted by the root of how many it stands for, so that squared norms of
    probe vectors estimate the squared norms of the whole vectors.

    Args:
        sizes: number of elements of each parameter tensor, in the optimizer's order.
        max_coordinates: about how many coordinates to sample.

    Attributes:
        columns: (n,) positions of the sampled coordinates in the concatenation of all tensors.
        weight: (n,) the weights described above.
        total: number of coordinates of the model.
    """

    def __init__(self, sizes: Sequence[int], max_coordinates: int = 1024) -> None:
        self.total = sum(sizes)
        kept = sorted(range(len(sizes)), key=lambda i: -sizes[i])[:MAX_TENSORS]
        covered = sum(sizes[i] for i in kept)
        self._whole: list[tuple[int, int]] = []  # tensor, its size
        self._sliced: list[tuple[int, int, int]] = []  # tensor, width of a slice, distance
        for index in sorted(kept):
            share = max(8, round(max_coordinates * sizes[index] / max(covered, 1)))
            if sizes[index] <= 2 * share:
                self._whole.append((index, sizes[index]))
            else:
                width = max(1, share // _SLICES)
                self._sliced.append((index, width, sizes[index] // _SLICES))
        self._views: list[Tensor] = []
        self._addresses: list[int] = []
        offsets = [0, *torch.tensor(list(sizes)).cumsum(0).tolist()]
        # In the order of `read`: the first slice of every tensor, the second of every tensor, ...
        spans = [
            (index, row * gap, row * gap + width)
            for row in range(_SLICES)
            for index, width, gap in self._sliced
        ] + [(index, 0, size) for index, size in self._whole]
        sampled = dict.fromkeys(kept, 0)
        for index, start, stop in spans:
            sampled[index] += stop - start
        lost = self.total / max(covered, 1)  # what the tensors not looked at weigh
        self.columns = torch.cat([torch.arange(a, b) + offsets[i] for i, a, b in spans])
        self.weight = torch.cat(
            [torch.full((b - a,), math.sqrt(sizes[i] / sampled[i] * lost)) for i, a, b in spans]
        )

        self._whole_model = len(self.columns) == self.total  # every weight is 1

    def __len__(self) -> int:
        return len(self.columns)

    def read(self, tensors: Sequence[Tensor | None]) -> Tensor:
        """Samples one vector of the model, (n,) float32 on the tensors' device.

        Args:
            tensors: the parameters or their gradients; None (no gradient) reads as zero.
        """
        return self._join(self._cut(tensors))

    def read_parameters(self, parameters: Sequence[Tensor]) -> Tensor:
        """The same for tensors that stay where they are; cheaper, their slices are kept."""
        addresses = [p.data_ptr() for p in parameters]
        if addresses != self._addresses:
            self._views = self._cut(parameters)
            # The slices of a tensor that is not contiguous are copies, good for once only.
            lasting = all(p.layout == torch.strided and p.is_contiguous() for p in parameters)
            self._addresses = addresses if lasting else []
        return self._join(self._views)

    def _cut(self, tensors: Sequence[Tensor | None]) -> list[Tensor]:
        device = next((t.device for t in tensors if t is not None), self.weight.device)
        views: list[Tensor] = []
        for index, width, gap in self._sliced:
            tensor = tensors[index]
            if tensor is None:
                views.append(torch.zeros(_SLICES, width, device=device))
            else:
                views.append(_in_order(tensor).as_strided((_SLICES, width), (gap, 1)))
        for index, size in self._whole:
            tensor = tensors[index]
            if tensor is None:
                views.append(torch.zeros(size, device=device))
            else:
                views.append(_in_order(tensor).view(-1))
        return views

    def _join(self, views: list[Tensor]) -> Tensor:
        sliced = len(self._sliced)
        if sliced:
            views = [torch.cat(views[:sliced], dim=1).view(-1), *views[sliced:]]
        joined = torch.cat(views).float()
        if self._whole_model:
            return joined
        if self.weight.device != joined.device:
            self.weight = self.weight.to(joined.device)
        return joined.mul_(self.weight)

    def read_flat(self, flat: Tensor) -> Tensor:
        """The same sample from concatenated tensors: (*lead, total) -> (*lead, n).

        Of a model small enough to be sampled whole it is `flat` itself, not a copy.
        """
        if self._whole_model:
            return flat
        if self.weight.device != flat.device:
            self.weight = self.weight.to(flat.device)
            self.columns = self.columns.to(flat.device)
        return flat.index_select(-1, self.columns).mul_(self.weight)


def _in_order(tensor: Tensor) -> Tensor:
    """The tensor, or if its elements do not lie in order in memory, a copy whose do."""
    tensor = tensor.detach()
    return tensor.contiguous() if tensor.layout == torch.strided else tensor.to_dense()


class IntervalStats(NamedTuple):
    """The statistics of one decision interval; every tensor has the shape `lead`.

    Norms are estimates for the whole model, in the units of the parameters. Cosines are means over
    consecutive observed steps and 0 where none was observed.
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
    displacement: Tensor  # ||theta_end - theta_begin|| over the interval
    distance: Tensor  # ||theta_end - theta_0||
    finite: Tensor  # bool: no loss, gradient or weight was NaN or infinite
    steps: int


_PACKED = len(IntervalStats._fields) - 2  # all but `losses` and `steps`


class Telemetry:
    """Accumulates one decision interval on the device.

    Per optimizer step, in this order: `before` and `after` if `observing`, then `add_loss`.

    Args:
        num_coordinates: n, the length of probe vectors.
        lead: leading dimensions.
        device: where the sums live.
    """

    def __init__(
        self, num_coordinates: int, lead: tuple[int, ...] = (), device: torch.device | str = "cpu"
    ) -> None:
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
        self.total_steps = 0
        self.steps = 1
        self.step = 0

    def begin(self, steps: int) -> None:
        """Starts an interval of `steps` optimizer steps."""
        self.steps, self.step = steps, 0
        self._paired.clear()
        self._losses.zero_()

    @property
    def observing(self) -> bool:
        """Whether the coming step is one whose gradient and update are looked at."""
        stride = math.ceil(self.steps / MAX_OBSERVATIONS)
        return self.step % (2 * stride) < 2

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

    def after(self, weights: Tensor) -> None:
        """Takes the probe's weights, (*lead, n), just after the step."""
        torch.sub(weights, self._row(_W), out=self._row(_D))
        torch.matmul(self._vectors, self._columns, out=self._grams[len(self._paired)])
        self._paired.append(0 < self.total_steps == self._last_observed + 1)
        self._last_observed = self.total_steps
        self._observations += 1

    def _row(self, name: int) -> Tensor:
        return self._rows[name if self._observations % 2 == 0 else 4 - name]

    def add_loss(self, loss: Tensor) -> None:
        """Adds the step's training loss, shape `lead`, and ends the step."""
        bins = min(self.steps, MAX_BINS)
        self._bins[self.step * bins // self.steps].add_(loss)
        self.step += 1
        self.total_steps += 1

    def read(
        self,
        weights: Tensor,
        device: torch.device | str | None = None,
        reduce: Callable[[Tensor], Tensor] | None = None,
    ) -> IntervalStats:
        """The finished interval's statistics.

        Args:
            weights: the probe's weights now, (*lead, n).
            device: where to put the result; another device than the telemetry's costs the
                interval's one transfer.
            reduce: the mean over the processes of a data-parallel run; called once per interval.
        """
        packed = torch.cat([self._mean_losses(), self._summaries(weights)], dim=-1)
        if reduce is not None:
            packed = reduce(packed)
        if device is not None:
            packed = packed.to(device)
        losses, rest = packed[..., :-_PACKED], packed[..., -_PACKED:].unbind(-1)
        # The mean over processes is 1 only where all of them were finite.
        finite = rest[-1] > 0.999
        return IntervalStats(losses, *rest[:-1], finite, self.steps)  # type: ignore[arg-type, call-arg]

    def _mean_losses(self) -> Tensor:
        bins = min(self.steps, MAX_BINS)
        edges = [math.ceil(i * self.steps / bins) for i in range(bins + 1)]
        counts = [stop - start for start, stop in pairwise(edges)]
        return self._losses[..., :bins] / torch.tensor(counts, device=self._losses.device)

    def _summaries(self, weights: Tensor) -> Tensor:
        grams = self._observed_grams()
        pairs = grams[..., [i for i, paired in enumerate(self._paired) if paired], :, :]
        squared_gradient = grams[..., _G, _G]
        squared_update, squared_weight = grams[..., _D, _D], grams[..., _W, _W]
        moved = (weights.unsqueeze(-2) - self._anchors).square().sum(-1).sqrt()
        ratio = squared_update / squared_weight.clamp_min(_TINY)
        columns = [
            squared_gradient.mean(-1).sqrt(),
            (squared_gradient + _TINY).log().std(-1, correction=0),
            _cosine(pairs, _G, _G_PREV),
            _cosine(pairs, _G, _D_PREV),
            _cosine(grams, _G, _D),
            _cosine(pairs, _D, _D_PREV),
            squared_update.mean(-1).sqrt(),
            ratio.amax(-1).sqrt(),
            squared_weight.mean(-1).sqrt(),
            moved[..., 1],
            moved[..., 0],
        ]
        sums = torch.stack(columns, dim=-1)
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
            "counters": [
                self._last_observed,
                self._observations,
                self.total_steps,
                self.steps,
                self.step,
            ],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores what `state_dict` returned."""
        self._vectors.copy_(state["vectors"])
        self._anchors.copy_(state["anchors"])
        self._grams.copy_(state["grams"])
        self._losses.copy_(state["losses"])
        self._paired = list(state["paired"])
        self._last_observed, self._observations, *steps = state["counters"]
        self.total_steps, self.steps, self.step = steps


def _cosine(grams: Tensor, a: int, b: int) -> Tensor:
    """Mean cosine between rows a and b over the observations, (*lead, M, 5, 5) -> lead."""
    if grams.shape[-3] == 0:
        return grams.new_zeros(grams.shape[:-3])
    norms = (grams[..., a, a].sqrt() * grams[..., b, b].sqrt()).clamp_min(_TINY)
    # A NaN of the step before belongs to its own interval: it must not condemn this one too.
    return (grams[..., a, b] / norms).mean(-1).nan_to_num(0.0)
