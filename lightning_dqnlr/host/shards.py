"""`ProbedModel`: what one process sees of a model that several may share.

FSDP and tensor parallelism make an optimizer's parameters `DTensor`s. Nothing is ever put together
here: each process looks at its own part, and sums over the processes stand for the whole model.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from lightning_dqnlr.control.probe import Part, Probe, norm, real_shape
from lightning_dqnlr.host.ranks import several_ranks, sum_over_ranks, world_size


def is_sharded(tensor: Tensor) -> bool:
    """Whether it is a `DTensor`, of which each process holds a part or a copy.

    Example:
        >>> is_sharded(torch.zeros(2))
        False
    """
    return hasattr(tensor, "to_local")


@torch.no_grad()
def own_part(tensor: Tensor, like: Tensor | None = None) -> Tensor:
    """What this process holds of a tensor; a plain tensor is its own part.

    Args:
        tensor: plain, or a `DTensor`.
        like: the parameter that it is a gradient of. A gradient that lies otherwise is moved to
            where the parameter lies, by all processes together.

    Example:
        >>> own_part(torch.ones(2))
        tensor([1., 1.])
    """
    if not is_sharded(tensor):
        return tensor
    shared: Any = tensor
    placements = getattr(like, "placements", shared.placements)
    if placements != shared.placements:
        shared = shared.redistribute(placements=placements)
    local: Tensor = shared.to_local()
    return local


def part_of(tensor: Tensor) -> Part:
    """The shape of this process's part, and how many processes hold the same one."""
    shape = real_shape(own_part(tensor))
    if not is_sharded(tensor):
        return Part(shape, world_size())
    shared: Any = tensor
    mesh, placements = shared.device_mesh, enumerate(shared.placements)
    shards = math.prod(mesh.size(i) for i, placement in placements if not placement.is_replicate())
    return Part(shape, mesh.size() // shards)


class ProbedModel:
    """The weights and gradients of an optimizer's parameters, as the probe sees them.

    Args:
        parameters: plain, or sharded over the processes.
        probe_size: sampled coordinates, of this process's part.
        sharded: whether the sums over all processes stand for the model.

    Attributes:
        probe: of this process's part.

    Example:
        >>> weight = torch.nn.Parameter(torch.tensor([3.0, 4.0]))
        >>> ProbedModel([weight], probe_size=8, sharded=False).weight_norm()
        tensor(5.)
    """

    def __init__(self, parameters: Sequence[Tensor], probe_size: int, sharded: bool) -> None:
        self._parameters = list(parameters)
        self._parts = [part_of(p) for p in parameters] if sharded else None
        self.probe = Probe([real_shape(p) for p in parameters], probe_size, self._parts)

    def read_weights(self) -> Tensor:
        """Samples this process's weights, (n,)."""
        return self.probe.read_parameters([own_part(p) for p in self._parameters])

    def read_gradient(self) -> Tensor:
        """Samples this process's gradient, (n,)."""
        return self.probe.read(self._gradients())

    def weight_norm(self) -> Tensor:
        """Of all weights of the model, on the host; all processes call it."""
        return self._norm([own_part(p) for p in self._parameters])

    def gradient_norm(self) -> Tensor:
        """Of the whole gradient of the model, on the host; all processes call it."""
        return self._norm(self._gradients())

    def _gradients(self) -> list[Tensor | None]:
        return [None if p.grad is None else own_part(p.grad, p) for p in self._parameters]

    def _norm(self, tensors: Sequence[Tensor | None]) -> Tensor:
        if self._parts is None:
            return norm(tensors).cpu()
        own = torch.zeros((), device=self._parameters[0].device)
        for tensor, part in zip(tensors, self._parts, strict=True):
            own += norm([tensor]).square() / part.copies
        return (sum_over_ranks(own) if several_ranks() else own).sqrt().cpu()
