"""A `Probe` looks at about a thousand coordinates of a model, whatever its size.

Squared norms and inner products of what it reads estimate those of the whole vectors.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

MAX_TENSORS = 64
_WEIGHT_FLOOR = 0.1
_SLICES = 4


class Part(NamedTuple):
    """What one process has of a tensor that several processes share."""

    shape: tuple[int, ...]
    copies: int  # processes that hold these same elements


class Probe:
    """A fixed sample of a model's coordinates: evenly spaced slices of its tensors.

    Each coordinate is weighted by the root of how many it stands for. Squared norms of probe
    vectors therefore estimate those of the whole vectors.

    Args:
        shapes: of the parameter tensors, in the optimizer's order.
        max_coordinates: about how many coordinates to sample.
        parts: what this process has of each tensor, if the model is sharded. It samples those.
            The sum over all processes of their squared norms then estimates the whole model's.

    Attributes:
        columns: (n,) positions of the sampled coordinates in the concatenation of what is here.
        weight: (n,) the weights described above.
        total: number of coordinates of the model.
        lecun_norm: what the weights' norm would be by LeCun's initialisation, whose variance is
            1 / fan_in (LeCun et al. 1998, Efficient BackProp, eq. 16): a squared norm of one per
            row of a matrix or kernel; a vector counts as one row.
        weight_floor: a tenth of `lecun_norm`. Smaller weights count as not yet initialised.

    Example:
        >>> probe = Probe([(3, 2), (3,)])
        >>> probe.read([torch.ones(3, 2), None])
        tensor([1., 1., 1., 1., 1., 1., 0., 0., 0.])
    """

    def __init__(
        self,
        shapes: Sequence[Sequence[int]],
        max_coordinates: int = 1024,
        parts: Sequence[Part] | None = None,
    ) -> None:
        self.total = sum(math.prod(shape) for shape in shapes)
        sizes = [math.prod(shape) for shape in ([p.shape for p in parts] if parts else shapes)]
        copies = [part.copies for part in parts] if parts else [1] * len(sizes)
        rows = (shape[0] if len(shape) > 1 else 1 for shape in shapes)
        self.lecun_norm = math.sqrt(sum(rows))
        self.weight_floor = _WEIGHT_FLOOR * self.lecun_norm
        kept = sorted(range(len(sizes)), key=lambda i: -sizes[i])[:MAX_TENSORS]
        covered = sum(sizes[i] for i in kept)
        whole: list[tuple[int, int]] = []  # tensor, its size
        sliced: list[tuple[int, int, int]] = []  # tensor, width of a slice, distance
        for index in sorted(kept):
            share = max(8, round(max_coordinates * sizes[index] / max(covered, 1)))
            if sizes[index] <= 2 * share:
                whole.append((index, sizes[index]))
            else:
                width = max(1, share // _SLICES)
                sliced.append((index, width, sizes[index] // _SLICES))
        self._sliced = len(sliced)
        self._layouts: list[tuple[int, tuple[int, ...], tuple[int, ...]]] = [
            *((index, (_SLICES, width), (gap, 1)) for index, width, gap in sliced),
            *((index, (size,), (1,)) for index, size in whole),
        ]
        self._views: list[Tensor] = []
        self._addresses: list[int] = []
        offsets = [0, *torch.tensor(list(sizes)).cumsum(0).tolist()]
        # In the order of `read`: the first slice of every tensor, the second of every tensor, ...
        spans = [
            (index, row * gap, row * gap + width)
            for row in range(_SLICES)
            for index, width, gap in sliced
        ] + [(index, 0, size) for index, size in whole]
        sampled = dict.fromkeys(kept, 0)
        for index, start, stop in spans:
            sampled[index] += stop - start
        lost = sum(sizes) / max(covered, 1)  # the weight of the tensors that are not looked at
        self.columns = torch.cat([torch.arange(a, b) + offsets[i] for i, a, b in spans])
        stands_for = [sizes[i] / max(sampled[i], 1) * lost / copies[i] for i, _, _ in spans]
        spans_weights = zip(spans, stands_for, strict=True)
        self.weight = torch.cat(
            [torch.full((b - a,), math.sqrt(w)) for (_, a, b), w in spans_weights]
        )
        # Every weight is 1.
        self._whole_model = len(self.columns) == sum(sizes) and max(copies, default=1) == 1

    def __len__(self) -> int:
        return len(self.columns)

    def read(self, tensors: Sequence[Tensor | None]) -> Tensor:
        """Samples a vector of the model, (n,) float32; None (no gradient) reads as zero."""
        return self._join(self._cut(tensors))

    def read_parameters(self, parameters: Sequence[Tensor]) -> Tensor:
        """The same for tensors that stay where they are; cheaper, their slices are kept."""
        addresses = [p.data_ptr() for p in parameters]
        if addresses != self._addresses:
            self._views = self._cut(parameters)
            # The slices of a tensor that is not contiguous are copies, and stale at the next call.
            lasting = all(p.layout == torch.strided and p.is_contiguous() for p in parameters)
            self._addresses = addresses if lasting else []
        return self._join(self._views)

    def _cut(self, tensors: Sequence[Tensor | None]) -> list[Tensor]:
        device = next((t.device for t in tensors if t is not None), self.weight.device)
        views: list[Tensor] = []
        for index, shape, strides in self._layouts:
            if (tensor := tensors[index]) is None:
                views.append(torch.zeros(shape, device=device))
            else:
                views.append(_in_order(tensor).as_strided(shape, strides))
        return views

    def _join(self, views: list[Tensor]) -> Tensor:
        if self._sliced:
            slices = torch.cat(views[: self._sliced], dim=1)
            views = [slices.view(-1), *views[self._sliced :]]
        joined = torch.cat(views).float()
        if self._whole_model:
            return joined
        if self.weight.device != joined.device:
            self.weight = self.weight.to(joined.device)
        return joined.mul_(self.weight)

    def read_flat(self, flat: Tensor) -> Tensor:
        """The same sample from concatenated tensors: (*lead, total) -> (*lead, n).

        For a model small enough to be sampled whole the sample is `flat` itself, not a copy.
        """
        if self._whole_model:
            return flat
        if self.weight.device != flat.device:
            self.weight = self.weight.to(flat.device)
            self.columns = self.columns.to(flat.device)
        return flat.index_select(-1, self.columns).mul_(self.weight)


def norm(tensors: Sequence[Tensor | None]) -> Tensor:
    """Euclidean norm of all elements together, a scalar; None (no gradient) counts as zero.

    Example:
        >>> norm([torch.tensor([3.0]), None, torch.tensor([4.0])])
        tensor(5.)
    """
    norms = [torch.linalg.vector_norm(_elements(t)).float() for t in tensors if t is not None]
    return torch.stack(norms).norm() if norms else torch.zeros(())


def _elements(tensor: Tensor) -> Tensor:
    """Real numbers, of 32 bits at least, whose squares add up to the squared norm."""
    tensor = tensor.detach()
    if tensor.is_sparse:
        tensor = tensor.coalesce().values()
    tensor = torch.view_as_real(tensor) if tensor.is_complex() else tensor
    return tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor


def real_shape(tensor: Tensor) -> tuple[int, ...]:
    """The shape that a tensor is probed with: each complex number counts as two real ones.

    Example:
        >>> real_shape(torch.zeros(3, 2, dtype=torch.complex64))
        (3, 4)
    """
    *head, last = tensor.shape or (1,)
    return (*head, 2 * last) if tensor.is_complex() else tuple(tensor.shape)


def _in_order(tensor: Tensor) -> Tensor:
    """The tensor, or a copy of it if its elements do not lie in order in memory."""
    tensor = tensor.detach()
    tensor = torch.view_as_real(tensor.resolve_conj()) if tensor.is_complex() else tensor
    return tensor.contiguous() if tensor.layout == torch.strided else tensor.to_dense()
