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
from functools import cache
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import lightning_dqnlr
from lightning_dqnlr.bench.methods.plan import Learned, Method
from lightning_dqnlr.scoring.task_content import _meaning, _module_source, task_content
from lightning_dqnlr.tasks.task import Task

_ROOT = Path(lightning_dqnlr.__file__).parent
# Besides the method's own module. A policy's results depend on the controller, too.
_ALWAYS = (
    "bench/runs/run.py",
    "bench/runs/evaluation.py",
    "envs/trainer_data.py",
    "host/group_rates.py",
)
_CONTROLLER = (
    "control", "bench/methods/controls.py", "host/callback.py", "host/driver.py", "envs/trainer_run.py",
    "policy/choice.py", "policy/network.py", "policy/policy.py", "host/snapshot.py",
    "host/trainer_queries.py",
)  # fmt: skip
_PLAIN = (str, int, float)
_VERSIONS = ("torch", "lightning", "prodigyopt", "dadaptation", "schedulefree")


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


@cache
def _sources(path: str) -> str:
    """Code of a file, or of all files of a folder of this package."""
    place = _ROOT / path
    files = sorted(place.glob("*.py")) if place.is_dir() else [place]
    return "\n".join(_meaning(file.read_text()) for file in files)


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
