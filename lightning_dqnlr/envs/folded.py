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

    Batch normalisation in training, group normalisation and average pooling; everything else takes
    its own way. Gradients are taken outside of `vmap`, by the autograd engine.
    """

    def __torch_function__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Calls a function of torch, or what stands for it."""
        bind = _LAYERS.get(func)
        layer = None if bind is None or args[0].dim() != 4 else bind(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {})) if layer is None else _Folded.apply(*layer)


# What `_Folded` is applied to: a function of the number of replicas and of tensors with that many
# times the channels, then these: the input (N, C, H, W), and what has one number per channel, (C,).
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


def _average_pool(input: Tensor, *args: Any, **kwargs: Any) -> _Layer:
    def call(replicas: int, images: Tensor) -> Tensor:
        return _avg_pool2d(images, *args, **kwargs)

    return call, input


_LAYERS: dict[Any, Callable[..., _Layer | None]] = {
    functional.batch_norm: _batch_norm,
    functional.group_norm: _group_norm,
    _avg_pool2d: _average_pool,
}


class _Folded(torch.autograd.Function):
    """A function only for its `vmap` rule, whose operations autograd records one by one."""

    @staticmethod
    def forward(call: Callable[..., Tensor], *tensors: Tensor | None) -> Tensor:
        return call(1, *tensors)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        """Nothing is kept."""

    @staticmethod
    def vmap(
        info: Any, in_dims: tuple[int | None, ...], call: Callable[..., Tensor], *tensors: Tensor
    ) -> tuple[Tensor, int]:
        dims = zip(tensors, in_dims[1:], strict=True)
        folded = [_fold(tensor, dim, info.batch_size) for tensor, dim in dims]
        return call(info.batch_size, *folded).unflatten(1, (info.batch_size, -1)), 1


def _fold(tensor: Tensor | None, dim: int | None, replicas: int) -> Tensor | None:
    """(N, C, H, W) or (C,) with replicas at `dim`, as (N, R C, H, W) or (R C,).

    Running statistics are written to, so it is a view wherever strides allow.
    """
    if tensor is None:
        return None
    if dim is None:
        tensor, dim = tensor.expand(replicas, *tensor.shape), 0
    channel = 0 if tensor.dim() == 2 else 1
    return tensor.movedim(dim, channel).flatten(channel, channel + 1)
