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
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

import lightning_dqnlr
from lightning_dqnlr.bench.methods_plan import Learned, Method
from lightning_dqnlr.envs.optimizers import configured_optimizer
from lightning_dqnlr.tasks.task import Task

_ROOT = Path(lightning_dqnlr.__file__).parent
# Besides the method's own module. A policy's results depend on the controller, too.
_ALWAYS = ("bench/run.py", "bench/evaluation.py", "envs/trainer_data.py", "groups.py")
_CONTROLLER = (
    "control", "bench/controls.py", "callback.py", "driver.py", "envs/trainer_run.py",
    "policy/network.py", "policy/policy.py", "snapshot.py", "trainer.py",
)  # fmt: skip
_PLAIN = (str, int, float)
_VERSIONS = ("torch", "lightning", "prodigyopt", "dadaptation", "schedulefree")
_PROJECTIONS = 4
_SETTINGS = (bool, int, float, str, tuple)


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
    for name in _with_imports(type(method).__module__):
        digest.update(_module_source(name).encode())
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
def _sources(path: str) -> str:
    """Code of a file, or of all files of a folder of this package."""
    place = _ROOT / path
    files = sorted(place.glob("*.py")) if place.is_dir() else [place]
    return "\n".join(_meaning(file.read_text()) for file in files)


@cache
def _module_source(name: str) -> str:
    return _meaning(inspect.getsource(import_module(name)))


@cache
def _with_imports(name: str) -> tuple[str, ...]:
    """A method's module, and those of the benchmark that it imports, and so on."""
    found, waiting = {name}, [name]
    while waiting:
        tree = ast.parse(inspect.getsource(import_module(waiting.pop())))
        named = {node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
        more = {n for n in named if n.startswith(f"{__package__}.")} - found
        found |= more
        waiting += more
    return tuple(sorted(found))


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
