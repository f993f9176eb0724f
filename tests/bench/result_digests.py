"""Digests of all that decides the benchmark's results, beside the versions they were taken at.

    python -m tests.bench.result_digests

writes `result_digests.json` anew. Whoever changed deciding code runs it in two cases. The results
change: raise the version in `lightning_dqnlr/bench/runs/versions.py` (or the task's own) and make
the runs again. The results do not change, bit by bit: this command alone says so.

A digest is that of the set of definitions, without words, annotations and imports. A definition
may therefore move from file to file. What computes data and weights is not looked at: their values
are, by a sketch that the last bits of another CPU do not change.
"""

import ast
import hashlib
import inspect
import json
import math
from importlib import import_module
from pathlib import Path

import torch

import lightning_dqnlr
from lightning_dqnlr.bench.methods import METHODS
from lightning_dqnlr.bench.runs import versions
from lightning_dqnlr.bench.tasks import TASKS
from lightning_dqnlr.bench.tasks.real import REAL_TASKS
from lightning_dqnlr.scoring.task_content import task_content

LEDGER = Path(__file__).with_suffix(".json")
PACKAGE = Path(lightning_dqnlr.__file__).parent
ROOT = PACKAGE.parent
PROTOCOL = (
    "bench/runs/run.py",
    "bench/runs/evaluation.py",
    "envs/module.py",
    "envs/process.py",
    "envs/trainer_data.py",
    "host/group_rates.py",
)
CONTROLLER = ("control", "policy", "host", "bench/methods/policies.py", "envs/trainer_run.py")
SHARED_BY_METHODS = ("bench/methods/plan.py", "envs/trainer_run.py", "scoring/cosine.py")
MOST_VALUES = 250_000  # of one tensor
PACKAGES = ("torch", "lightning", "prodigyopt", "dadaptation", "schedulefree", "scikit-learn")
SILENT = (ast.Import, ast.ImportFrom)
WORDS = ("annotation", "returns", "type_comment", "type_params", "ctx", "kind")


def shape(node):
    """A syntax tree as nested tuples, the same for every version of Python."""
    if isinstance(node, list):
        return tuple(shape(item) for item in node if not isinstance(item, SILENT))
    if not isinstance(node, ast.AST):
        return repr(node)
    fields = ((name, shape(value)) for name, value in ast.iter_fields(without_words(node)))
    kept = ((name, value) for name, value in fields if name not in WORDS and value != ())
    return (type(node).__name__, *kept)


def without_words(node):
    """The node without its docstring."""
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    if isinstance(node, kinds) and ast.get_docstring(node) is not None:
        node.body = node.body[1:]
    return node


def definitions(source):
    """One text for each statement at the top of a module."""
    return [repr(statement) for statement in shape(without_words(ast.parse(source)).body)]


def files(paths):
    """The Python files of these files and folders of the package."""
    for path in paths:
        place = PACKAGE / path
        yield from sorted(place.glob("*.py")) if place.is_dir() else [place]


def digest(*parts):
    """Sixteen hex digits of some texts or bytes, whatever their order."""
    whole = sorted(part.encode() if isinstance(part, str) else part for part in parts)
    return hashlib.sha256(b"\0".join(whole)).hexdigest()[:16]


def of_files(paths):
    """Digest of all definitions in these files and folders."""
    return digest(*(text for file in files(paths) for text in definitions(file.read_text())))


def of_method(method):
    """Digest of the module of a method and of what the methods share."""
    own = definitions(inspect.getsource(import_module(type(method).__module__)))
    shared = [text for file in files(SHARED_BY_METHODS) for text in definitions(file.read_text())]
    return digest(*own, *shared)


def of_task(named):
    """Digest of a task's settings, model, optimizer, and a sketch of weights and data."""
    task = named.open()
    settings = (task.name, task.batch_size, task.horizon, task.known_horizon)
    settings += (task.gradient_clip, task.shuffle, named.lr, named.centre)
    return digest(repr(settings), task_content(task, sketch))


def sketch(tensors):
    """Shapes, norms, and four sums with random signs over the values, each tensor at norm 1.

    A large tensor has every k-th of its values in the sums, and all in the norm.

    Other values give other sums, which have a standard deviation of about 1 per tensor. Last bits
    move sums and norms by some 1e-7 of themselves. That changes none of the digits that are kept
    but in one case of ten thousand.
    """
    sums, norms = [0.0] * 4, []
    generator = torch.Generator().manual_seed(0)  # integers, which are the same on every CPU
    for tensor in tensors:
        values = tensor.detach().cpu().reshape(-1).double().nan_to_num()
        norms.append(f"{values.norm():.3g}")
        some = values[:: math.ceil(max(1, len(values) / MOST_VALUES))]
        unit = some / some.norm().clamp_min(1e-300)
        draws = torch.randint(2 ** len(sums), unit.shape, generator=generator, dtype=torch.int8)
        for place in range(len(sums)):
            signs = (draws >> place & 1).double().mul_(2).sub_(1)
            sums[place] += float(unit @ signs)
    shapes = [(tuple(tensor.shape), str(tensor.dtype)) for tensor in tensors]
    return repr((shapes, norms, [math.floor(100 * value + 0.5) for value in sums])).encode()


def tested_packages():
    """The versions of the packages that results depend on, as `constraints.txt` has them."""
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pinned = dict(line.split("==") for line in lines if "==" in line and line[0] != "#")
    return {name: pinned[name] for name in PACKAGES}


def todays():
    """All versions and digests as they are now, by what they are of."""
    entries = {
        "protocol": [versions.PROTOCOL, of_files(PROTOCOL)],
        "controller": [versions.CONTROLLER, of_files(CONTROLLER)],
        "packages": tested_packages(),
    }
    for method in METHODS:
        number = versions.METHODS.get(method.name, 1)
        entries[f"method {method.name}"] = [number, of_method(method)]
    for named in (*TASKS, *REAL_TASKS):
        entries[f"task {named.name}"] = [named.version, of_task(named)]
    return entries


def recorded():
    """All versions and digests as somebody last said that they belong together."""
    return json.loads(LEDGER.read_text())


if __name__ == "__main__":
    now, before = todays(), recorded() if LEDGER.exists() else {}
    changed = sorted(name for name in {*now, *before} if now.get(name) != before.get(name))
    LEDGER.write_text(json.dumps(now, indent=0) + "\n")
    print("\n".join(changed) or "Nothing that decides a result has changed.")
