"""README, documentation and metadata: links that lead somewhere, code that runs, one version."""

import ast
import json
import re
import subprocess
import textwrap
from pathlib import Path

import pytest

from lightning_dqnlr import __version__

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
FOLDERS = ("docs", "lightning_dqnlr", "examples", ".github")
PAGES = [*ROOT.glob("*.md"), *(path for f in FOLDERS for path in (ROOT / f).rglob("*.md"))]
NOTEBOOK = DOCS / "tutorial.ipynb"
FENCE = re.compile(r"^```(\w*)\n(.*?)^```", re.M | re.S)
LINK = re.compile(r"\]\((?!https?://)([^)#\s]*)(?:#([^)\s]+))?\)")


def text_of(path):
    """Without blocks of code; of a notebook, the cells of text."""
    if path.suffix == ".ipynb":
        cells = json.loads(path.read_text())["cells"]
        return "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] != "code")
    return FENCE.sub("", path.read_text())


def anchors(path):
    """What code hosts make of the headings."""
    found = []
    for heading in re.findall(r"^#+ (.+)$", text_of(path), re.M):
        words = re.sub(r"[^\w\- ]", "", re.sub(r"\[([^\]]+)\]\([^)]*\)", r"\1", heading).lower())
        found.append(words.strip().replace(" ", "-"))
    return found


@pytest.mark.parametrize("page", [*PAGES, NOTEBOOK], ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_within_the_repository_leads_to_a_file_and_to_a_heading_of_it(page):
    dead = []
    for place, anchor in LINK.findall(re.sub(r"`[^`]*`", "", text_of(page))):
        target = (page.parent / place).resolve() if place else page
        lost = anchor and target.suffix == ".md" and anchor not in anchors(target)
        if not target.exists() or lost:
            dead.append(f"{place}#{anchor}")
    assert dead == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_python_in_the_pages_is_python(page):
    for language, code in FENCE.findall(page.read_text()):
        if language == "python":
            ast.parse(textwrap.dedent(code))


def test_every_page_can_be_reached_on_the_site():
    listed = set(re.findall(r"^(?:.* <)?([\w/.-]+?)>?$", (DOCS / "index.md").read_text(), re.M))
    pages = [*DOCS.rglob("*.md"), *DOCS.rglob("*.ipynb")]
    names = {path.relative_to(DOCS).with_suffix("").as_posix() for path in pages} - {"index"}
    assert names - listed == set()


def test_the_readme_is_one_screen():
    assert len((ROOT / "README.md").read_text().split()) <= 700


def test_the_commands_of_the_readme_are_there():
    readme = (ROOT / "README.md").read_text()
    targets = re.findall(r"\bmake ([\w-]+)", readme)
    assert {"demo", "test", "docs"} <= set(targets)
    for target in targets:
        done = subprocess.run(
            ["make", "--dry-run", target], cwd=ROOT, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr


def test_the_badges_say_what_the_metadata_says():
    badges = (DOCS / "badges.svg").read_text()
    project = (ROOT / "pyproject.toml").read_text()
    pythons = re.findall(r":: (3\.\d+)\"", project)
    assert f"{pythons[0]} to {pythons[-1]}" in badges
    oldest = re.search(r'"lightning>=([\d.]+)[",]', project)[1]
    assert f"Lightning {oldest} or newer" in badges  # for those who hear it
    assert f">≥ {oldest}<" in badges
    assert re.search(r'^license = "(.+)"', project, re.M)[1] in badges


def test_one_version_is_named_everywhere():
    changes = re.search(r"^## (\S+?)[, ]", (ROOT / "CHANGELOG.md").read_text(), re.M)[1]
    citation = re.search(r"^version: (\S+)$", (ROOT / "CITATION.cff").read_text(), re.M)[1]
    assert changes == citation == __version__


def test_the_repository_has_one_place():
    project = (ROOT / "pyproject.toml").read_text()
    places = re.findall(r'^\w+ = "(https://[^"]+)"$', project, re.M)
    repository = re.search(r'^Repository = "(.+)"$', project, re.M)[1]
    assert all(place.startswith(repository) for place in places)
    assert f"repository-code: {repository}\n" in (ROOT / "CITATION.cff").read_text()


def test_the_tutorial_runs_and_what_it_asserts_holds(tmp_path):
    import nbformat
    from nbclient import NotebookClient

    notebook = nbformat.read(NOTEBOOK, as_version=4)
    place = {"metadata": {"path": str(tmp_path)}}
    NotebookClient(notebook, timeout=120, kernel_name="python3", resources=place).execute()
    assert (tmp_path / "lr.png").is_file()
