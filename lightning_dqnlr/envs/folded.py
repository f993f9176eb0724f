"""Convolutional networks of R replicas as one network of R times as many channels.

`vmap` already runs the convolutions of R replicas as one with R groups. Its rules for what lies
between them bring the replicas back to the front, copying each activation twice, and split
normalisation into many passes. Here these layers, too, take the replicas as channels. The batch is
laid out with channels last, because grouped convolutions are then fastest on a CPU.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

# `vmap`'s own way in and out. An `autograd.Function` with a rule for `vmap` does the same. It costs
# a tenth of a millisecond per layer and step, as much as a small layer itself.
_functorch: Any = torch._C._functorch


def foldable(module: nn.Module) -> bool:
    """Whether a module has layers that `FoldedChannels` is for, and none that forbid it.

    Recurrent layers have a batching rule only within `torch.func.grad`.
    """
    parts = list(module.modules())
    recurrent = any(isinstance(part, nn.RNNBase) for part in parts)
    return not recurrent and any(isinstance(part, nn.Conv2d) for part in parts)


def channels_last(batch: Tensor) -> Tensor:
    """The same images (R, N, C, H, W), in memory as (N, H, W, R, C); others as they are."""
    if batch.dim() != 5:
        return batch
    return batch.permute(1, 3, 4, 0, 2).contiguous().permute(3, 0, 4, 1, 2)


class FoldedChannels(TorchFunctionMode):
    """Within it, and within `vmap`, images (N, C, H, W) pass these layers as (N, R C, H, W).

    Convolutions, batch normalisation in training, group normalisation and average pooling are
    folded. Everything else takes its own way. Gradients are taken outside of `vmap`, by the engine
    of autograd.
    """

    def __torch_function__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        keywords = kwargs or {}
        layer = _LAYERS.get(func)
        if layer is None or not args or args[0].dim() != 4 or not _is_replicated(args[0]):
            return func(*args, **keywords)
        given = {**dict(zip(layer.arguments, args, strict=False)), **keywords}
        # In eval mode it is one multiplication, and its input may be the same for all replicas.
        if func is functional.batch_norm and not given.get("training", False):
            return func(*args, **keywords)
        return _folded(func, layer, given)


class _Layer(NamedTuple):
    """What of a layer's arguments depends on the number of channels.

    Attributes:
        arguments: their names, in order; the first is the input (N, C, H, W).
        rows: of those with one row per channel, (C, ...).
        groups: of the number of groups of channels, by default 1.
    """

    arguments: tuple[str, ...]
    rows: tuple[str, ...] = ()
    groups: str | None = None


_LAYERS: dict[Any, _Layer] = {
    functional.conv2d: _Layer(
        ("input", "weight", "bias", "stride", "padding", "dilation", "groups"),
        rows=("weight", "bias"),
        groups="groups",
    ),
    functional.batch_norm: _Layer(
        ("input", "running_mean", "running_var", "weight", "bias", "training", "momentum", "eps"),
        rows=("running_mean", "running_var", "weight", "bias"),
    ),
    functional.group_norm: _Layer(
        ("input", "num_groups", "weight", "bias", "eps"),
        rows=("weight", "bias"),
        groups="num_groups",
    ),
    functional.avg_pool2d: _Layer(
        (
            "input",
            "kernel_size",
            "stride",
            "padding",
            "ceil_mode",
            "count_include_pad",
            "divisor_override",
        )
    ),
}


def _is_replicated(tensor: Tensor) -> bool:
    """Whether the innermost transformation of `torch.func` is a `vmap` over this tensor."""
    innermost = _functorch.maybe_get_level(tensor) == _functorch.maybe_current_level()
    return innermost and _functorch.is_batchedtensor(tensor)


def _folded(func: Callable[..., Tensor], layer: _Layer, given: dict[str, Any]) -> Tensor:
    """Leaves `vmap` for one call; running statistics are written to where they are."""
    level = _functorch.maybe_current_level()
    # The size 1 is not read: only tensors that all replicas share need it.
    outside = _functorch._remove_batch_dim(given["input"], level, 1, 1)
    replicas = outside.shape[1]
    for name in layer.rows:
        if given.get(name) is not None:
            # A view wherever strides allow; what all replicas share is expanded.
            per_replica = _functorch._remove_batch_dim(given[name], level, replicas, 0)
            given[name] = per_replica.flatten(0, 1)
    if layer.groups is not None:
        given[layer.groups] = replicas * given.get(layer.groups, 1)
    result = func(**{**given, "input": outside.flatten(1, 2)})
    apart: Tensor = _functorch._add_batch_dim(result.unflatten(1, (replicas, -1)), 1, level)
    return apart
