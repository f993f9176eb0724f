"""A first step of an optimizer ahead of the run, on stand-ins: what state it will keep."""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

_LARGEST = 4096  # elements of a stand-in; optimizers with 8 bits quantise from there on
_SETTINGS = (bool, int, float, str, type, torch.dtype, type(None))


@torch.no_grad()
def rehearsed(optimizer: Optimizer) -> list[Mapping[str, Any]]:
    """The state that a step makes of each parameter; empty where that cannot be told.

    State is there after a step only, and a run that cannot be undone should not begin. So a copy of
    the optimizer makes a step. Each trained parameter has a small stand-in there, with as many
    dimensions. Weights, gradients and random numbers of the run stay as they are.

    An optimizer that has state already is not asked, nor one that holds a module or another
    optimizer: a copy of it would be large.

    Args:
        optimizer: of the run.

    Example:
        >>> weight = nn.Parameter(torch.ones(3))
        >>> sorted(rehearsed(torch.optim.Adam([weight]))[0])
        ['exp_avg', 'exp_avg_sq', 'step']
    """
    held = vars(optimizer).values()
    if optimizer.state or any(isinstance(value, nn.Module | Optimizer) for value in held):
        return []
    trained = [p for g in optimizer.param_groups for p in g["params"] if p.requires_grad]
    devices = {p.device for p in trained if p.is_cuda}
    with torch.random.fork_rng(list(devices)):
        try:
            copy = _copy(optimizer, {id(p): _stand_in(p) for p in trained})
            copy.step()
        except Exception:  # whatever an optimizer needs that a copy of it does not have
            return []
    return [dict(state) for state in copy.state.values()]


def _copy(optimizer: Optimizer, stand_ins: dict[int, Any]) -> Optimizer:
    """Torch copies groups and defaults. Settings of the class are added, and nothing that moves."""
    copy = deepcopy(optimizer, stand_ins)
    for name, value in vars(optimizer).items():
        if isinstance(value, _SETTINGS):
            vars(copy).setdefault(name, value)
    return copy


def _stand_in(parameter: Tensor) -> nn.Parameter:
    """Ones of the same kind, with at most `_LARGEST` elements and a gradient of ones."""
    longest = round(_LARGEST ** (1 / max(1, parameter.dim())))
    shape = [min(size, longest) for size in parameter.shape]
    ones = torch.ones(shape, dtype=parameter.dtype, device=parameter.device)
    stand_in = nn.Parameter(ones)
    stand_in.grad = torch.ones_like(ones)
    return stand_in
