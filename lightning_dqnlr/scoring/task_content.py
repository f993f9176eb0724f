"""What a task is, as bytes: a cached result belongs to exactly these."""

from __future__ import annotations

import ast
import inspect
import math
import textwrap
from collections.abc import Sequence
from functools import cache
from importlib import import_module
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from lightning_dqnlr.envs.replicated_optimizer import configured_optimizer
from lightning_dqnlr.tasks.task import Task

_PROJECTIONS = 4
_SETTINGS = (bool, int, float, str, tuple)


def task_content(task: Task, *, portable: bool = False) -> bytes:
    """Initial weights, data, optimizer, and the settings and code of the module and its layers.

    Args:
        task: whose.
        portable: a sketch for weights and data instead of all of their bits.
    """
    module = task.build(0)
    weights = list(module.state_dict().values())
    data = [*pytree.tree_leaves(task.train_data), *pytree.tree_leaves(task.validation_data)]
    parts = [_sketch(weights), _sketch(data)] if portable else [*map(_bits, weights + data)]
    kinds = {kind for part in module.modules() for kind in type(part).__mro__}
    try:
        optimizer = configured_optimizer(module)
        parts.append(repr(optimizer).encode())
        kinds |= set(type(optimizer).__mro__)
    except Exception as error:  # it may need its Trainer
        parts.append(type(error).__name__.encode())
    parts.append(repr(module).encode())
    parts += [repr(_attributes(part)).encode() for part in module.modules()]
    for kind in sorted(kinds, key=lambda k: (k.__module__, k.__qualname__)):
        parts.append(_kind_source(kind).encode())
    return b"".join(parts)


def _attributes(part: nn.Module) -> list[tuple[str, Any]]:
    """Plain settings, which the printed form of a layer may leave out, and hyperparameters."""
    own = {k: v for k, v in vars(part).items() if not k.startswith("_")}
    own |= dict(getattr(part, "hparams", {}))
    return sorted((k, v) for k, v in own.items() if v is None or isinstance(v, _SETTINGS))


def _bits(tensor: Tensor) -> bytes:
    return bytes(tensor.detach().cpu().contiguous().numpy().tobytes())


def _sketch(tensors: Sequence[Tensor]) -> bytes:
    """Shapes, norms, and four sums with random signs over all values, each tensor at norm 1.

    Other values give other sums, which have a standard deviation of about 1 per tensor. Last bits
    move sums and norms by some 1e-7 of themselves, which changes none of the digits that are kept
    but in one case of ten thousand.
    """
    sums, norms = [0.0] * _PROJECTIONS, []
    generator = torch.Generator().manual_seed(0)  # integers, which are the same on every CPU
    for tensor in tensors:
        values = tensor.detach().cpu().reshape(-1).double().nan_to_num()
        norms.append(f"{values.norm():.3g}")
        unit = values / values.norm().clamp_min(1e-300)
        for place in range(_PROJECTIONS):
            signs = torch.randint(2, unit.shape, generator=generator, dtype=torch.int8)
            sums[place] += float(unit @ signs.double().mul_(2).sub_(1))
    shapes = [(tuple(tensor.shape), str(tensor.dtype)) for tensor in tensors]
    return repr((shapes, norms, [math.floor(100 * value + 0.5) for value in sums])).encode()


@cache
def _kind_source(kind: type) -> str:
    """Code of a class of the task's own, a user's with the whole file and so with its helpers.

    Those of torch and Lightning are known by the version, and Python's do not matter.
    """
    package = kind.__module__.split(".")[0]
    if package in ("builtins", "abc", "typing", "torch", "lightning"):
        return ""
    try:
        if package == "lightning_dqnlr":
            return _meaning(textwrap.dedent(inspect.getsource(kind)))
        return _module_source(kind.__module__)
    except (OSError, TypeError):  # defined in an interactive session
        return kind.__qualname__


@cache
def _module_source(name: str) -> str:
    return _meaning(inspect.getsource(import_module(name)))


def _meaning(source: str) -> str:
    """The code without comments and docstrings."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            first = node.body[0] if node.body else None
            if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant):
                node.body = node.body[1:] or [ast.Pass()]
    return ast.unparse(tree)
