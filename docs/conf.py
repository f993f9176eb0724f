"""The site: `make docs` builds it from these pages, the README and the files beside the package.

A link that leads out of `docs/` is right on a code host. On the site it becomes a link to the page
that shows the file, or else to the repository.
"""

import os
import re
from pathlib import Path
from typing import Any

from lightning_dqnlr import __version__

DOCS = Path(__file__).parent
ROOT = DOCS.parent
REPOSITORY = re.search(r'^Repository = "(.+)"$', (ROOT / "pyproject.toml").read_text(), re.M)[1]
# Pages whose text is a file elsewhere: the page itself has what follows that text.
SHOWN = {
    "index": "README.md",
    "changelog": "CHANGELOG.md",
    "contributing": "CONTRIBUTING.md",
    "model-card": "lightning_dqnlr/policy/default/MODEL_CARD.md",
    "your-own-policy-example": "examples/train_your_own_policy/README.md",
}
LINK = re.compile(r"(\]\()(?!https?:|#)([^)#\s]+)")

project = "lightning-dqnlr"
author = "The lightning-dqnlr developers"
copyright = author
release = version = __version__

extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx_copybutton"]
myst_heading_anchors = 4
nb_merge_streams = True
nb_execution_mode = "off"  # the tests execute the tutorial; the page shows what is stored in it
copybutton_prompt_text = "$ "
autodoc_typehints = "none"  # the signature is long enough without them; "Args" has the meaning
autodoc_mock_imports = ["accelerate", "transformers"]  # a callback's reference needs neither
autodoc_member_order = "bysource"
napoleon_google_docstring = True
default_role = "code"  # single backticks in docstrings mean code

html_theme = "furo"
html_title = f"lightning-dqnlr {version}"
html_static_path = ["static"]
html_css_files = ["site.css"]
html_show_sphinx = False
html_copy_source = False
linkcheck_ignore = [r"https?://.*"]  # no network at build time; links within are checked


def show(app: Any, docname: str, source: list[str]) -> None:
    """Sphinx's event for the text of a page: the shown file before it, links led to where they go.

    Example: `[a](../lightning_dqnlr/files.py)` of `architecture.md` leads to the repository.
    """
    origin = ROOT / SHOWN[docname] if docname in SHOWN else Path(app.env.doc2path(docname))
    if origin.suffix != ".md":
        return
    if docname in SHOWN:
        source[0] = origin.read_text(encoding="utf-8") + "\n" + source[0]
    page = Path(app.env.doc2path(docname)).parent
    source[0] = LINK.sub(lambda link: link[1] + target(origin.parent, link[2], page), source[0])


def target(folder: Path, link: str, page: Path) -> str:
    """Where a link of a file in `folder` leads from a page in the folder `page`."""
    path = Path(os.path.normpath(folder / link))
    shown = {ROOT / file: DOCS / f"{name}.md" for name, file in SHOWN.items()}
    if path in shown:
        path = shown[path]
    if path.is_relative_to(DOCS) and path.is_file():
        return os.path.relpath(path, page)
    return f"{REPOSITORY}/blob/main/{path.relative_to(ROOT).as_posix()}"


def mark_code(app: Any, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """Sphinx's event for a docstring: code that stands indented in it is shown as code."""
    if what == "property":  # napoleon takes what stands before a colon for a type
        lines[0] = lines[0].replace(": ", "; ", 1)
    marked, above = [], ""  # the last line that is not empty
    for number, line in enumerate(lines):
        example = line == "Example:" and not lines[number + 1].lstrip().startswith(">>>")
        begins = line.startswith("    ") and not lines[number - 1].strip()
        if begins and above and not above.startswith(" ") and not above.endswith(":"):
            marked += ["::", ""]
        marked.append("Example::" if example else line)
        if example:
            marked.append("")
        above = line if line.strip() else above
    # A shape such as (*lead) is no emphasis.
    lines[:] = [re.sub(r"(?<!`)\(\*", r"(\\*", line) for line in marked]


def setup(app: Any) -> None:
    """Sphinx's entry."""
    app.connect("source-read", show)
    app.connect("autodoc-process-docstring", mark_code, priority=100)  # before napoleon
