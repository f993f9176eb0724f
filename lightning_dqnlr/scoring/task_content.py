"""What a task is, as bytes and as a digest of them: a cached result belongs to exactly these."""

from __future__ import annotations

import ast
import hashlib
import inspect
import textwrap
from collections.abc import Callable, Sequence
from functools import cache
from importlib import import_module
from typing import Any

from torch import Tensor, nn
from torch.utils import _pytree as pytree

from lightning_dqnlr.envs.replicated_optimizer import configured_optimizer
from lightning_dqnlr.tasks.task import Task

_SETTINGS = (bool, int, float, str, tuple)


def task_digest(task: Task) -> str:
    """Sixteen hex digits that change with the task's settings, data, model or optimizer.

    Where its code lies does not matter. A user's own task is known by this in caches and records.

    Example:
        >>> from lightning_dqnlr.tasks import TeacherMLPs
        >>> task = TeacherMLPs().sample(0)
        >>> task_digest(task) == task_digest(task)
        True
    """
    settings = (task.name, task.batch_size, task.horizon, task.known_horizon)
    digest = hashlib.sha256(repr((*settings, task.gradient_clip, task.shuffle)).encode())
    digest.update(task_content(task))
    return digest.hexdigest()[:16]


def task_content(task: Task, summary: Callable[[Sequence[Tensor]], bytes] | None = None) -> bytes:
    """Initial weights, data, optimizer, and the settings and code of the module and its layers.

    Functions that they hold belong to their code. A summary, if given, takes the place of the bits
    of the weights and of the data.
    """
    module = task.build(0)
    summary = summary or _bits
    data = pytree.tree_leaves((task.train_data, task.validation_data))
    parts = [summary(list(module.state_dict().values())), summary(data)]
    kinds: set[Any] = {kind for part in module.modules() for kind in type(part).__mro__}
    held = [value for part in module.modules() for value in vars(part).values()]
    kinds |= {value for value in held if inspect.isfunction(value)}
    try:
        optimizer = configured_optimizer(module)
        parts.append(repr(optimizer).encode())
        kinds |= set(type(optimizer).__mro__)
    except Exception as error:  # it may need its Trainer
        parts.append(type(error).__name__.encode())
    parts.append(repr(module).encode())
    parts += [repr(_attributes(part)).encode() for part in module.modules()]
    parts += sorted(_kind_source(kind).encode() for kind in kinds)
    return b"".join(parts)


def _attributes(part: nn.Module) -> list[tuple[str, Any]]:
    """Plain settings, which the printed form of a layer may leave out, and hyperparameters."""
    own = {k: v for k, v in vars(part).items() if not k.startswith("_")}
    own |= dict(getattr(part, "hparams", {}))
    return sorted((k, v) for k, v in own.items() if v is None or isinstance(v, _SETTINGS))


def _bits(tensors: Sequence[Tensor]) -> bytes:
    return b"".join(t.detach().cpu().contiguous().numpy().tobytes() for t in tensors)


@cache
def _kind_source(kind: Any) -> str:
    """Code of a task's class or function, a user's with the whole file and so with its helpers.

    Those of torch and Lightning are known by the version, and Python's do not matter.
    """
    package = kind.__module__.split(".")[0]
    if package in ("builtins", "abc", "typing", "torch", "lightning"):
        return ""
    try:
        if package == "lightning_dqnlr":
            return meaning(textwrap.dedent(inspect.getsource(kind)))
        return _module_source(kind.__module__)
    except (OSError, TypeError):  # defined in an interactive session
        return kind.__qualname__


@cache
def _module_source(name: str) -> str:
    return meaning(inspect.getsource(import_module(name)))


def meaning(source: str) -> str:
    """The code without comments and docstrings."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            first = node.body[0] if node.body else None
            if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant):
                node.body = node.body[1:] or [ast.Pass()]
    return ast.unparse(tree)
