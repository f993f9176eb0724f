"""Where a data package lies, without importing it.

Some data packages import much, or what current versions of Python or setuptools no longer have.
The files that they bring are therefore read as they are.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from lightning_dqnlr.errors import MissingPackageError


def package_folder(package: str, distribution: str, task: str) -> Path:
    """The folder of a package that a task needs; a distribution is what pip knows it as.

    Raises:
        MissingPackageError: it is not installed.
    """
    found = find_spec(package)
    if found is None or not found.submodule_search_locations:
        raise MissingPackageError(
            f"the task {task!r} needs the package {distribution}, which is not installed; "
            f'run `pip install "lightning-dqnlr[bench]"` or `pip install {distribution}`, or leave '
            "the task out: suite.tasks=[...]."
        )
    return Path(next(iter(found.submodule_search_locations)))
