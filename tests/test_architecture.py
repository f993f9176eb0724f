"""The house rules that a machine can check: import directions, sizes, names."""

import ast
import inspect
import io
import re
import subprocess
import sys
import tokenize
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "lightning_dqnlr"
FILES = sorted(PACKAGE.rglob("*.py"))
DOCS = [*sorted((ROOT / "docs").glob("*.md")), ROOT / "CONTRIBUTING.md"]
CATCH_ALL_NAMES = {"utils", "util", "helpers", "common", "base", "misc"}
# Files of the package under 60 lines, each with the reason why it stands alone.
SHORT = {
    "host/best_state.py": "what a run comes down from, beside the breaker's copies",
    "bench/tasks/tables.py": "the one task on a table, beside the images and the sequences",
    "bench/tasks/real/package_data.py": "where data packages lie, for tasks of several files",
}
LONGEST_SENTENCE = 25  # words
SENTENCE_END = re.compile(r"(?<=[.!?])[)\"'*]*\s+")
ADDRESS = re.compile(r"(?<=\])\([^)]*\)")
CODE = re.compile(r"`[^`]*`")
# A doctest, a literal block, or a formula: a comparison or an assignment with its operands.
EXAMPLE = re.compile(
    r">>>|::\n|Example:\n"
    r"|[\w)\]'] [-+*/]?==? [-\w(|\[\"']"
    r"|[\w)\]] (<-|->|~) [\w(]"
)
# "Args:" or an entry of such a section, a list's bullet, a table's row: each begins anew.
UNIT = re.compile(r"\s*([A-Z][a-z]+:$|[\w*, .]+: |[-*|] |\d+\. )")


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


def public_docstrings():
    """Names in the `__all__` of each package face, with their files and docstrings."""
    for face in sorted(PACKAGE.rglob("__init__.py")):
        tree = ast.parse(face.read_text())
        listed = set()
        for node in tree.body:
            if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
                listed = set(ast.literal_eval(node.value))
        imports = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
        homes = {alias.name: node.module for node in imports for alias in node.names}
        for name in sorted(listed - {"__version__"}):
            home = (ROOT / homes[name].replace(".", "/")).with_suffix(".py")
            for node in ast.parse(home.read_text()).body:
                if isinstance(node, ast.ClassDef | ast.FunctionDef) and node.name == name:
                    docstring = ast.get_docstring(node) or ""
                    yield pytest.param(name, home.relative_to(ROOT), docstring, id=name)


def docstrings(source):
    """The docstrings of a file as they stand there, each with its first line's number."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            docstring = ast.get_docstring(node, clean=False)
            if docstring is not None:
                yield node.body[0].lineno, docstring


def prose(source):
    """Paragraphs of docstrings and comments, each with its line; examples are left out."""
    for line, docstring in docstrings(source):
        yield from paragraphs(line, inspect.cleandoc(docstring).splitlines())
    comments = {}
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            comments[token.start] = token.string.lstrip("#: ")
    while comments:
        (row, column) = start = min(comments)
        text = [comments.pop(start)]
        while (row + len(text), column) in comments:
            text.append(comments.pop((row + len(text), column)))
        yield from paragraphs(row, text)


def paragraphs(first, lines):
    text, begun = [], first
    for number, line in enumerate([*lines, ""], first):
        code = line.lstrip().startswith((">>>", "..."))
        if text and (code or not line.strip() or UNIT.match(line)):
            yield begun, " ".join(text)
            text = []
        if line.strip() and not code:
            begun = begun if text else number
            text.append(line.strip())


def messages(source):
    """Texts of errors, warnings and reports, in which every value counts as a word."""
    nodes = list(ast.walk(ast.parse(source)))
    parts = {id(part) for node in nodes if isinstance(node, ast.JoinedStr) for part in node.values}
    described = {docstring for _, docstring in docstrings(source)}
    for node in nodes:
        pieces = node.values if isinstance(node, ast.JoinedStr) else [node]
        texts = [getattr(piece, "value", "") for piece in pieces]
        text = "".join(text if isinstance(text, str) else "value" for text in texts)
        whole = isinstance(node, ast.JoinedStr | ast.Constant) and id(node) not in parts
        if whole and text not in described:
            yield from paragraphs(node.lineno, text.splitlines())


def sentences_of(path):
    """Paragraphs, each with the number of its first line."""
    if path.suffix == ".py":
        return [*prose(path.read_text()), *messages(path.read_text())]
    lines = dict(lines_of_prose(path))
    text = [ADDRESS.sub("", lines.get(number, "")) for number in range(1, max(lines) + 1)]
    return list(paragraphs(1, text))


def lines_of_prose(path):
    """Numbered lines of a Python file's docstrings, or of a document without tables and code."""
    if path.suffix == ".py":
        for first, docstring in docstrings(path.read_text()):
            yield from enumerate(docstring.splitlines(), first)
        return
    fenced = False
    for number, line in enumerate(path.read_text().splitlines(), 1):
        fenced ^= line.lstrip().startswith("```")
        if not fenced and not line.lstrip().startswith(("|", "```", "    ")):
            yield number, line


def test_a_plain_torch_loop_never_loads_lightning():
    names = torch_only_modules()
    assert "lightning_dqnlr.control.controller" in names
    imports = "; ".join(f"import {name}" for name in names)
    shown = run_python(
        f"import sys; {imports}; print({{'lightning', 'pytorch_lightning'}} & set(sys.modules))"
    )
    assert shown.stdout.strip() == "set()", shown.stdout + shown.stderr


def test_imports_keep_the_contracts_of_pyproject():
    checked = run_python(
        "from importlinter.cli import lint_imports_command;"
        "lint_imports_command(['--no-cache', '--no-logo'])"
    )
    assert checked.returncode == 0, checked.stdout + checked.stderr


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_files_and_functions_stay_short_enough_to_read(path):
    source = path.read_text()
    assert len(source.splitlines()) <= 500
    functions = [
        node
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    ]
    too_long = {node.name: lines for node in functions if (lines := function_lines(node)) > 60}
    assert too_long == {}


def test_a_file_under_60_lines_has_a_reason():
    short = {
        str(path.relative_to(PACKAGE))
        for path in FILES
        if path.name != "__init__.py" and len(path.read_text().splitlines()) < 60
    }
    assert short - set(SHORT) == set()
    assert set(SHORT) - short == set(), "no longer short: take it off the list"


@pytest.mark.parametrize(("name", "path", "docstring"), public_docstrings())
def test_a_public_name_is_explained_by_an_example_or_a_formula(name, path, docstring):
    if not EXAMPLE.search(docstring):
        pytest.fail(f"{path}: {name} has neither", pytrace=False)


@pytest.mark.parametrize("path", [*FILES, *DOCS], ids=lambda path: str(path.relative_to(ROOT)))
def test_no_sentence_of_prose_and_messages_is_longer_than_25_words(path):
    found = [
        f"{path.relative_to(ROOT)}:{line}: {count} words: {sentence}"
        for line, text in sentences_of(path)
        for sentence in SENTENCE_END.split(text)
        if (count := len(CODE.sub("code", sentence).split())) > LONGEST_SENTENCE
    ]
    if found:
        pytest.fail("\n".join(found), pytrace=False)


@pytest.mark.parametrize("path", [*FILES, *DOCS], ids=lambda path: str(path.relative_to(ROOT)))
def test_prose_is_wrapped_at_100_columns(path):
    found = [
        f"{path.relative_to(ROOT)}:{number}: {len(line)} columns: {line}"
        for number, line in lines_of_prose(path)
        if len(line) > 100 and "](" not in line and "http" not in line
    ]
    if found:
        pytest.fail("\n".join(found), pytrace=False)


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
