"""Which code a result depends on: a hash of modules and of all that they import of this package.

What no result depends on leaves the hash alone: comments, layout, docstrings, documentation, and
modules that are not imported. So a changed report or a new rival does not make old runs stale.
"""

from __future__ import annotations

import ast
import hashlib
import importlib.util
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path

_PACKAGE = __package__.split(".")[0]


def source_hash(modules: Iterable[str]) -> str:
    """Hash of the sources of modules and, recursively, of what they import of this package.

    Args:
        modules: dotted names. Those of other packages are read too, but not what they import.

    Returns:
        16 hexadecimal digits, the same for code that differs in comments or docstrings only, but
        not for different versions of Python, whose syntax trees differ.
    """
    digest = hashlib.sha256()
    for name in sorted(_reached(modules)):
        digest.update(f"{name}:{_meaning(name)}\n".encode())
    return digest.hexdigest()[:16]


def _reached(modules: Iterable[str]) -> set[str]:
    found: set[str] = set()
    waiting = list(modules)
    while waiting:
        name = waiting.pop()
        if name not in found and _path(name) is not None:
            found.add(name)
            waiting += _imports(name)
    return found


@cache
def _path(name: str) -> Path | None:
    """The source file of a module; None for what is not a module, or has no source."""
    try:
        spec = importlib.util.find_spec(name)
    except (ImportError, ValueError):  # a name inside a module; `__main__`
        return None
    origin = Path(spec.origin) if spec is not None and spec.origin is not None else None
    return origin if origin is not None and origin.suffix == ".py" else None


@cache
def _tree(name: str) -> ast.Module:
    path = _path(name)
    assert path is not None  # asked by `_reached`
    return ast.parse(path.read_bytes())


@cache
def _imports(name: str) -> tuple[str, ...]:
    """What a module imports of this package, imports within functions included.

    Names that are imported from a module are listed too; they are no modules and drop out.
    """
    return tuple(
        imported
        for node in ast.walk(_tree(name))
        for imported in _targets(node)
        if imported.split(".")[0] == _PACKAGE
    )


def _targets(node: ast.AST) -> Iterator[str]:
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom) and node.module is not None and node.level == 0:
        yield node.module
        yield from (f"{node.module}.{alias.name}" for alias in node.names)


def _meaning(name: str) -> str:
    """The module's syntax tree without docstrings."""
    tree = ast.parse(ast.unparse(_tree(name)))
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    for node in ast.walk(tree):
        if isinstance(node, documented) and ast.get_docstring(node, clean=False) is not None:
            node.body = node.body[1:] or [ast.Pass()]
    return ast.dump(tree)
