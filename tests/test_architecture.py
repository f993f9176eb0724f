"""The house rules that a machine can check: import directions, sizes, names."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "lightning_dqnlr"
FILES = sorted(PACKAGE.rglob("*.py"))
CATCH_ALL_NAMES = {"utils", "util", "helpers", "common", "base", "misc"}


def run_python(code):
    command = [sys.executable, "-c", code]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def torch_only_modules():
    """The modules that a plain torch loop may load."""
    folders = ("control", "policy", "rl")
    paths = [path for folder in folders for path in sorted((PACKAGE / folder).glob("*.py"))]
    dotted = [".".join(path.relative_to(ROOT).with_suffix("").parts) for path in paths]
    return [name.removesuffix(".__init__") for name in dotted] + ["lightning_dqnlr.host.scheduler"]


def function_lines(function):
    """Lines of a function from `def` to its end, without the docstring."""
    lines = function.end_lineno - function.lineno + 1
    if ast.get_docstring(function) is None:
        return lines
    docstring = function.body[0]
    return lines - (docstring.end_lineno - docstring.lineno + 1)


def test_a_plain_torch_loop_never_loads_lightning():
    names = torch_only_modules()
    assert "lightning_dqnlr.control.controller" in names
    imports = "; ".join(f"import {name}" for name in names)
    shown = run_python(
        f"import sys; {imports}; print({{'lightning', 'pytorch_lightning'}} & set(sys.modules))"
    )
    assert shown.stdout.strip() == "set()", shown.stdout + shown.stderr


def test_layers_import_downwards_only():
    checked = run_python(
        "from importlinter.cli import lint_imports_command;"
        "lint_imports_command(['--no-cache', '--no-logo'])"
    )
    assert checked.returncode == 0, checked.stdout + checked.stderr


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_files_and_functions_stay_short_enough_to_read(path):
    source = path.read_text()
    assert len(source.splitlines()) < 350
    functions = [
        node
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    ]
    too_long = {node.name: lines for node in functions if (lines := function_lines(node)) > 60}
    assert too_long == {}


def test_no_module_is_a_drawer_for_everything():
    names = {part for path in FILES for part in path.relative_to(PACKAGE).with_suffix("").parts}
    assert names & CATCH_ALL_NAMES == set()


def test_no_test_stands_inside_a_function_where_pytest_never_finds_it():
    inside = [
        f"{path.relative_to(ROOT)}:{inner.lineno} {inner.name}"
        for path in sorted((ROOT / "tests").rglob("*.py"))
        for outer in ast.walk(ast.parse(path.read_text()))
        if isinstance(outer, ast.FunctionDef)
        for inner in ast.walk(outer)
        if isinstance(inner, ast.FunctionDef) and inner is not outer
        if inner.name.startswith("test_")
    ]
    assert inside == []
