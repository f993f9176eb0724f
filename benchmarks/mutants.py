"""Breaks the controller in one place at a time and counts which breaks the tests notice.

    python benchmarks/mutants.py --count 300 --seed 0

A mutant is one changed operator, number or truth value, or two exchanged arguments, at a random
place of `control/`, `policy/choice.py` or `host/driver.py`. Its tests are those of its folder, the
file of the same name first. A mutant is killed if a test fails, or needs more than its time.
"""

from __future__ import annotations

import argparse
import ast
import copy
import importlib.abc
import importlib.util
import os
import random
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lightning.pytorch  # noqa: F401 (imported once, for all mutants)
import pytest
import torch

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "lightning_dqnlr"
SOURCES = (
    *sorted((PACKAGE / "control").glob("[!_]*.py")),
    PACKAGE / "policy" / "choice.py",
    PACKAGE / "host" / "driver.py",
)
HOST_TESTS = ("scheduler", "equal_hosts", "ruin", "rates_of_others", "callback_resume")
SECONDS = 120  # of the processor, for the tests of one mutant
OPERATORS: dict[type, type] = {
    ast.Lt: ast.LtE,
    ast.LtE: ast.Lt,
    ast.Gt: ast.GtE,
    ast.GtE: ast.Gt,
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot,
    ast.IsNot: ast.Is,
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Div,
    ast.Div: ast.Mult,
    ast.BitAnd: ast.BitOr,
    ast.BitOr: ast.BitAnd,
    ast.And: ast.Or,
    ast.Or: ast.And,
}
NAMES = {"clamp_min": "clamp_max", "minimum": "maximum", "any": "all", "min": "max", "amin": "amax"}
NAMES |= {other: name for name, other in NAMES.items()}


def places(tree: ast.Module) -> Iterator[tuple[ast.AST, str]]:
    """What can be changed, and by which field; annotations and decorators are left alone."""
    for node in code(tree):
        for field in ("op", "ops"):
            found = getattr(node, field, None)
            if type(found[0] if isinstance(found, list) else found) in OPERATORS:
                yield node, field
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not | ast.Invert | ast.USub):
            yield node, "operand"
        if isinstance(node, ast.Constant) and isinstance(node.value, bool | int | float):
            yield node, "value"
        if isinstance(node, ast.Attribute) and node.attr in NAMES:
            yield node, "attr"
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "torch.where":
            yield node, "args"


def code(node: ast.AST) -> Iterator[ast.AST]:
    """All nodes below one that are neither annotations nor decorators."""
    yield node
    for name, value in ast.iter_fields(node):
        if name not in ("annotation", "returns", "decorator_list"):
            for child in value if isinstance(value, list) else [value]:
                if isinstance(child, ast.AST):
                    yield from code(child)


def change(node: Any, field: str) -> None:
    """Breaks a node in place."""
    if field == "op":
        node.op = OPERATORS[type(node.op)]()
    elif field == "ops":
        node.ops[0] = OPERATORS[type(node.ops[0])]()
    elif field == "operand":
        node.op = ast.UAdd() if isinstance(node.op, ast.USub) else ast.Not()
        if isinstance(node.op, ast.Not):
            node.operand = ast.UnaryOp(ast.Not(), node.operand)
    elif field == "value":
        node.value = not node.value if isinstance(node.value, bool) else node.value * 2 + 1
    elif field == "attr":
        node.attr = NAMES[node.attr]
    else:
        node.args[1], node.args[2] = node.args[2], node.args[1]


class Mutant(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Gives a module another source when it is imported."""

    def __init__(self, path: Path, source: str) -> None:
        relative = path.relative_to(ROOT).with_suffix("")
        self.name, self.path, self.source = ".".join(relative.parts), path, source

    def find_spec(self, fullname: str, path: Any, target: Any = None) -> Any:
        """The spec of the one module."""
        return importlib.util.spec_from_loader(fullname, self) if fullname == self.name else None

    def exec_module(self, module: Any) -> None:
        """Runs the other source."""
        module.__file__ = str(self.path)
        exec(compile(self.source, str(self.path), "exec"), module.__dict__)


def tests_of(path: Path) -> list[str]:
    """Files of tests, the one of the same name first."""
    folder = ROOT / "tests" / path.parent.name
    if path.parent.name == "host":
        return [str(folder / f"test_{name}.py") for name in HOST_TESTS]
    own = folder / f"test_{path.stem}.py"
    rest = [file for file in sorted(folder.glob("test_*.py")) if file.stem != "test_docstrings"]
    return [str(file) for file in dict.fromkeys((own, *rest)) if file.exists()]


def judge(mutant: Mutant, tests: list[str]) -> str:
    """Runs the tests in a process of their own, in which the module is the mutant."""
    child = os.fork()
    if child == 0:
        signal.setitimer(signal.ITIMER_PROF, SECONDS)  # SIGPROF ends the process
        quiet = os.open(os.devnull, os.O_WRONLY)
        os.dup2(quiet, 1)
        os.dup2(quiet, 2)
        sys.meta_path.insert(0, mutant)
        arguments = ["-x", "-q", "-n0", "-p", "no:cacheprovider", *tests]
        os._exit(int(pytest.main(arguments)) & 127)
    status = os.waitpid(child, 0)[1]
    return "survived" if os.waitstatus_to_exitcode(status) == 0 else "killed"


def main() -> None:
    """Prints each survivor, and the score."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--count", type=int, default=300)
    parser.add_argument("--first", type=int, default=0, help="number of the first mutant")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--room", choices=("control", "policy", "host"), help="only mutants of one")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    sources = [path for path in SOURCES if arguments.room in (None, path.parent.name)]
    trees = {path: ast.parse(path.read_text()) for path in sources}
    every = [(path, i) for path, tree in trees.items() for i, _ in enumerate(places(tree))]
    random.Random(arguments.seed).shuffle(every)
    last = arguments.first + arguments.count
    counts = {"killed": 0, "survived": 0}
    for number, (path, index) in enumerate(every[arguments.first : last], arguments.first):
        tree = copy.deepcopy(trees[path])
        node, field = list(places(tree))[index]
        before = ast.unparse(node)
        change(node, field)
        mutant = Mutant(path, ast.unparse(ast.fix_missing_locations(tree)))
        began = time.monotonic()
        verdict = judge(mutant, tests_of(path))
        counts[verdict] += 1
        where = f"{path.relative_to(PACKAGE)}:{getattr(node, 'lineno', 0)}"
        text = f"{number} {verdict} {where}: {before} -> {ast.unparse(node)}"
        print(f"{text} ({time.monotonic() - began:.0f} s)", flush=True)
    total = sum(counts.values())
    print(f"{counts['killed']} of {total} mutants killed, of {len(every)} that there are")


if __name__ == "__main__":
    main()
