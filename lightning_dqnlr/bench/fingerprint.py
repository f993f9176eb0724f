"""What a record depends on: hashes of task, method, code and policy.

A task's data and weights count bit by bit, so that nothing stale is used again. Computed ones (a
teacher's labels, a pretrained network) differ in their last bits from one kind of CPU to another.
For records that travel there is a portable hash as well, in which a sketch stands for those bits.
"""

from __future__ import annotations

import ast
import hashlib
import inspect
import json
import math
import textwrap
from collections.abc import Sequence
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

import lightning_dqnlr
from lightning_dqnlr.bench.methods_plan import Learned, Method
from lightning_dqnlr.tasks.task import Task

_ROOT = Path(lightning_dqnlr.__file__).parent
# Besides the method's own module. A policy's results depend on the controller, too.
_ALWAYS = ("bench/run.py", "bench/evaluation.py", "envs/trainer_data.py", "groups.py")
_CONTROLLER = ("control", "bench/controls.py", "callback.py", "driver.py", "snapshot.py")
_PLAIN = (str, int, float)
_VERSIONS = ("torch", "lightning", "prodigyopt", "dadaptation", "schedulefree")
_PROJECTIONS = 4


def code_hash(method: Method, task: Task, content: bytes | None = None) -> str:
    """Hash of everything a result depends on but the learning rate, seed and policy's weights.

    Args:
        method: what sets the learning rate.
        task: what is trained.
        content: `task_content(task)`, for who asks for many methods; with the portable one the
            hash is portable.
    """
    digest = hashlib.sha256()
    settings = (task.name, task.batch_size, task.horizon, task.known_horizon, task.gradient_clip)
    digest.update(repr((*settings, task.shuffle, _settings(method), _versions())).encode())
    paths = [*_ALWAYS, *(_CONTROLLER if isinstance(method, Learned) else ())]
    for path in paths:
        digest.update(_sources(path).encode())
    digest.update(_class_source(type(method).__module__).encode())
    digest.update(task_content(task) if content is None else content)
    return digest.hexdigest()[:16]


def policy_hash(method: Method) -> str | None:
    """Hash of a method's policy, weights and specification; None for methods without one.

    Raises:
        PolicyFileError: if it cannot be read.
    """
    if not isinstance(method, Learned):
        return None
    policy = method.load()
    digest = hashlib.sha256(json.dumps(policy.spec.to_dict(), sort_keys=True).encode())
    digest.update(f"{policy.start} {policy.circuit_breaker}".encode())
    for name, tensor in policy.network.state_dict().items():
        digest.update(name.encode() + tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


def task_content(task: Task, *, portable: bool = False) -> bytes:
    """Initial weights, data, optimizer, and the code of the module's own layers.

    Args:
        task: whose.
        portable: a sketch for weights and data instead of all of their bits.
    """
    module = task.build(0)
    weights = list(module.state_dict().values())
    data = [*pytree.tree_leaves(task.train_data), *pytree.tree_leaves(task.validation_data)]
    parts = [_sketch(weights), _sketch(data)] if portable else [*map(_bits, weights + data)]
    try:
        parts.append(repr(module.configure_optimizers()).encode())
    except Exception as error:  # it may need its Trainer
        parts.append(type(error).__name__.encode())
    parts.append(repr(module).encode())
    for kind in sorted({type(part) for part in module.modules()}, key=lambda k: k.__qualname__):
        parts.append(_layer_source(kind).encode())
    return b"".join(parts)


def _bits(tensor: Tensor) -> bytes:
    return bytes(tensor.detach().cpu().contiguous().numpy().tobytes())


def _sketch(tensors: Sequence[Tensor]) -> bytes:
    """Shapes, and four sums with random signs over all values, each tensor scaled to norm 1.

    Other values give other sums, which have a standard deviation of about 1 per tensor. Last bits
    move them by some 1e-7, and only one in some ten thousand of such moves changes two decimals.
    """
    sums = [0.0] * _PROJECTIONS
    generator = torch.Generator().manual_seed(0)  # integers, which are the same on every CPU
    for tensor in tensors:
        values = tensor.detach().cpu().reshape(-1).double().nan_to_num()
        unit = values / values.norm().clamp_min(1e-300)
        for place in range(_PROJECTIONS):
            signs = torch.randint(2, unit.shape, generator=generator, dtype=torch.int8)
            sums[place] += float(unit @ signs.double().mul_(2).sub_(1))
    shapes = [(tuple(tensor.shape), str(tensor.dtype)) for tensor in tensors]
    return repr((shapes, [math.floor(100 * value + 0.5) for value in sums])).encode()


def _layer_source(kind: type[nn.Module]) -> str:
    """Code of a layer of the task's own; torch's are known by the version."""
    if kind.__module__.split(".")[0] in ("torch", "lightning"):
        return ""
    try:
        return _meaning(textwrap.dedent(inspect.getsource(kind)))
    except (OSError, TypeError):  # defined in an interactive session
        return kind.__qualname__


@cache
def _sources(path: str) -> str:
    """Code of a file, or of all files of a folder of this package."""
    place = _ROOT / path
    files = sorted(place.glob("*.py")) if place.is_dir() else [place]
    return "\n".join(_meaning(file.read_text()) for file in files)


@cache
def _class_source(module: str) -> str:
    return _meaning(inspect.getsource(__import__(module, fromlist=["_"])))


def _meaning(source: str) -> str:
    """The code without comments and docstrings."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            first = node.body[0] if node.body else None
            if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant):
                node.body = node.body[1:] or [ast.Pass()]
    return ast.unparse(tree)


def _settings(method: Method) -> dict[str, Any]:
    """A method's plain fields; where a policy lies does not matter."""
    kept = {k: v for k, v in vars(method).items() if isinstance(v, _PLAIN) and k != "policy"}
    return {"kind": type(method).__qualname__, **kept}


@cache
def _versions() -> tuple[str, ...]:
    return tuple(_version(name) for name in _VERSIONS)


def _version(package: str) -> str:
    try:
        return version(package).split("+")[0]
    except PackageNotFoundError:
        return ""
