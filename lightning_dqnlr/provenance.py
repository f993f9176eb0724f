"""Where a result came from: commit, versions, machine and date."""

from __future__ import annotations

import os
import platform
import subprocess
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch


def provenance() -> dict[str, Any]:
    """Commit, versions, machine and date as plain JSON data."""
    return {
        "commit": source_commit(),
        "versions": {
            "python": platform.python_version(),
            "torch": str(torch.__version__),
            "lightning": version("lightning"),
            "lightning_dqnlr": version("lightning-dqnlr"),
        },
        "machine": machine(),
        "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }


def machine() -> dict[str, Any]:
    """Platform and processors of this machine."""
    accelerators = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return {
        "platform": platform.platform(),
        "processor": platform.machine(),
        "cpus": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "accelerators": accelerators,
    }


def source_commit(path: str | Path = __file__) -> str | None:
    """The commit the package runs from, with "-dirty" if its tree differs; None if there is none.

    The file itself must be tracked: an installed package may lie inside another repository, as a
    virtual environment often does.

    Args:
        path: a file of the package.
    """
    path = Path(path)
    if _git(path.parent, "ls-files", "--error-unmatch", path.name) is None:
        return None
    return _git(path.parent, "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*")


def _git(folder: Path, *arguments: str) -> str | None:
    command = ["git", "-C", str(folder), *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
