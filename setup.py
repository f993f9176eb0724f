"""The part of the package's metadata that is computed: the README as PyPI shows it.

There a relative link leads nowhere. So each becomes a link to the repository of `pyproject.toml`,
and a picture one to the file itself.
"""

import re
from pathlib import Path

from setuptools import setup

ROOT = Path(__file__).parent


def absolute(readme: str, repository: str) -> str:
    """The text with links and pictures that work anywhere.

    Example:
        >>> absolute("[a](docs/a.md) ![b](b.svg)", "https://x.org/p")
        '[a](https://x.org/p/blob/main/docs/a.md) ![b](https://x.org/p/raw/main/b.svg)'
    """
    relative = r"\]\((?!https?://|#)"
    pictures = re.sub(rf"(!\[[^\]]*){relative}", rf"\1]({repository}/raw/main/", readme)
    return re.sub(relative, f"]({repository}/blob/main/", pictures)


def long_description() -> str:
    """The README with absolute links."""
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    found = re.search(r'^Repository = "([^"]+)"$', project, re.MULTILINE)
    if found is None:
        raise SystemExit("pyproject.toml: [project.urls] must name the Repository.")
    return absolute((ROOT / "README.md").read_text(encoding="utf-8"), found[1])


if __name__ == "__main__":
    setup(long_description=long_description(), long_description_content_type="text/markdown")
