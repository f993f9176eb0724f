"""What a record depends on: hashes of task, method, code and policy.

The same run on another machine has the same hashes, so that results can be gathered from several.
"""

from __future__ import annotations

import ast
import hashlib
import inspect
import json
import textwrap
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from torch import nn
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


def code_hash(method: Method, task: Task) -> str:
    """Hash of everything a result depends on but the learning rate, seed and policy's weights."""
    digest = hashlib.sha256()
    settings = (task.name, task.batch_size, task.horizon, task.known_horizon, task.gradient_clip)
    digest.update(repr((*settings, task.shuffle, _settings(method), _versions())).encode())
    paths = [*_ALWAYS, *(_CONTROLLER if isinstance(method, Learned) else ())]
    for path in paths:
        digest.update(_sources(path).encode())
    digest.update(_class_source(type(method).__module__).encode())
    _add_task(digest, task)
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


def _add_task(digest: Any, task: Task) -> None:
    """Initial weights, data, and the code of the module's own layers."""
    module = task.build(0)
    data = (*pytree.tree_leaves(task.train_data), *pytree.tree_leaves(task.validation_data))
    for tensor in (*module.state_dict().values(), *data):
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    try:
        digest.update(repr(module.configure_optimizers()).encode())
    except Exception as error:  # it may need its Trainer
        digest.update(type(error).__name__.encode())
    digest.update(repr(module).encode())
    for kind in sorted({type(part) for part in module.modules()}, key=lambda k: k.__qualname__):
        digest.update(_layer_source(kind).encode())


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
