"""The file a killed run continues from."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from lightning_dqnlr.errors import ConfigurationError
from lightning_dqnlr.files import write_atomically

CHECKPOINT = "checkpoint.pt"


def write_checkpoint(folder: Path, state: dict[str, Any]) -> Path:
    """Writes the state atomically: a kill at any moment leaves this checkpoint or the previous.

    Args:
        folder: of the run.
        state: tensors and builtins only, so that it loads with `weights_only=True`.

    Raises:
        ConfigurationError: if the folder cannot be written.
    """
    content = io.BytesIO()
    torch.save(state, content)
    return write_atomically(folder / CHECKPOINT, content.getbuffer())


def read_checkpoint(folder: Path) -> dict[str, Any]:
    """Reads what `write_checkpoint` wrote.

    Raises:
        ConfigurationError: if there is none, or it is damaged.
    """
    path = folder / CHECKPOINT
    if not path.is_file():
        raise ConfigurationError(
            f"resume=true, but {path} does not exist; start with resume=false or give the "
            "folder of the run to continue."
        )
    try:
        state: dict[str, Any] = torch.load(path, weights_only=True, map_location="cpu")
    except Exception as error:  # torch.load has no error of its own
        raise ConfigurationError(
            f"{path} is damaged ({type(error).__name__}); start again in another folder."
        ) from error
    return state


def check_same_settings(then: Mapping[str, str], now: Mapping[str, str]) -> None:
    """Refuses to continue a run as another one.

    Args:
        then: the settings in words, by name, when the run began.
        now: the same, now.

    Raises:
        ConfigurationError: if they differ; names the first that does.
    """
    for name, value in now.items():
        if then.get(name) != value:
            raise ConfigurationError(
                f"{name} was {then.get(name)} when the run began and is {value} now; resume with "
                "the settings of the run, or start a new one in another folder."
            )
