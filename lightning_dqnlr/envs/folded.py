"""Convolutional networks of R replicas as one network of R times as many channels.

`vmap` already runs the convolutions of R replicas as one with R groups. Its rules for what lies
between them bring the replicas back to the front, copying each activation twice, and split
normalisation into many passes. Here these layers, too, take the replicas as channels, and the
batch is laid out with channels last, for which grouped convolutions are fastest on a CPU.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

# `vmap`'s own way in and out. An `autograd.Function` with a rule for `vmap` does the same and costs
# a tenth of a millisecond per layer and step, as much as a small layer itself.
_functorch: Any = torch._C._functorch
_avg_pool2d: Callable[..., Tensor] = functional.avg_pool2d


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

    Convolutions, batch normalisation in training, group normalisation and average pooling;
    everything else takes its own way. Gradients are taken outside of `vmap`, by the engine of
    autograd.
    """

    def __torch_function__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        bind = _LAYERS.get(func)
        keywords = kwargs or {}
        layer = None
        if bind is not None and args and args[0].dim() == 4 and _is_replicated(args[0]):
            layer = bind(*args, **keywords)
        return func(*args, **keywords) if layer is None else _folded(*layer)


# What stands for a layer: a function of the number of replicas and of tensors with that many times
# the channels, then these: the input (N, C, H, W), and what has one row per channel, (C, ...).
_Layer = tuple[Any, ...]


def _batch_norm(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> _Layer | None:
    def call(replicas: int, *tensors: Tensor) -> Tensor:
        images, mean, variance, scale, shift = tensors
        return functional.batch_norm(images, mean, variance, scale, shift, training, momentum, eps)

    # In eval mode it is one multiplication, and its input may be the same for all replicas.
    return (call, input, running_mean, running_var, weight, bias) if training else None


def _group_norm(
    input: Tensor,
    num_groups: int,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> _Layer:
    def call(replicas: int, *tensors: Tensor) -> Tensor:
        images, scale, shift = tensors
        return functional.group_norm(images, replicas * num_groups, scale, shift, eps)

    return call, input, weight, bias


def _conv2d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> _Layer:
    def call(replicas: int, *tensors: Tensor) -> Tensor:
        images, filters, shift = tensors
        return functional.conv2d(
            images, filters, shift, stride, padding, dilation, replicas * groups
        )

    return call, input, weight, bias


def _average_pool(input: Tensor, *args: Any, **kwargs: Any) -> _Layer:
    def call(replicas: int, images: Tensor) -> Tensor:
        return _avg_pool2d(images, *args, **kwargs)

    return call, input


_LAYERS: dict[Any, Callable[..., _Layer | None]] = {
    functional.conv2d: _conv2d,
    functional.batch_norm: _batch_norm,
    functional.group_norm: _group_norm,
    _avg_pool2d: _average_pool,
}


def _is_replicated(tensor: Tensor) -> bool:
    """Whether the innermost transformation of `torch.func` is a `vmap` over this tensor."""
    innermost = _functorch.maybe_get_level(tensor) == _functorch.maybe_current_level()
    return innermost and _functorch.is_batchedtensor(tensor)


def _folded(call: Callable[..., Tensor], images: Tensor, *others: Tensor | None) -> Tensor:
    """Leaves `vmap` for one call; running statistics are written to where they are."""
    level = _functorch.maybe_current_level()
    # The size is read only for tensors that all replicas share, which the images are not.
    outside = _functorch._remove_batch_dim(images, level, 1, 1)
    replicas = outside.shape[1]

    def fold(tensor: Tensor) -> Tensor:
        # A view wherever strides allow; what all replicas share is expanded.
        per_replica: Tensor = _functorch._remove_batch_dim(tensor, level, replicas, 0)
        return per_replica.flatten(0, 1)

    folded = [None if tensor is None else fold(tensor) for tensor in others]
    result = call(replicas, outside.flatten(1, 2), *folded)
    apart: Tensor = _functorch._add_batch_dim(result.unflatten(1, (replicas, -1)), 1, level)
    return apart
