"""The file a killed run continues from."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from lightning_dqnlr.checks import check_fields, check_integer, check_kind, check_number
from lightning_dqnlr.errors import ConfigurationError
from lightning_dqnlr.files import read_regular, sealed, unsealed, write_atomically

CHECKPOINT = "checkpoint.pt"
FORMAT_VERSION = 1
_MOST = 2**37  # bytes
_FIELDS = (
    *("learner", "replay", "generator", "episode", "inner_steps", "seconds", "best_score"),
    *("failures", "validation", "settings"),
)


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
    return write_atomically(folder / CHECKPOINT, sealed(content.getbuffer()))


def read_checkpoint(folder: Path) -> dict[str, Any]:
    """Reads what `write_checkpoint` wrote.

    Files of earlier versions have no checksum. They are read, and a flipped bit may go unnoticed.

    Raises:
        ConfigurationError: if there is none, or it is damaged.
    """
    path = folder / CHECKPOINT
    if not path.exists():
        raise ConfigurationError(
            f"resume=true, but {path} does not exist; start with resume=false or give the "
            "folder of the run to continue."
        )
    with faults_of(folder):
        content = io.BytesIO(unsealed(read_regular(path, _MOST)))
        state: dict[str, Any] = torch.load(content, weights_only=True, map_location="cpu")
        check_kind("the state", state, dict)
    return state


@contextmanager
def faults_of(folder: Path) -> Iterator[None]:
    """Turns what is wrong with a checkpoint's content into one error that names the file.

    Raises:
        ConfigurationError: for any error within the block.
    """
    path = folder / CHECKPOINT
    try:
        yield
    except ConfigurationError as error:
        hint = "" if str(path) in str(error) else f" The checkpoint is {path}."
        raise ConfigurationError(f"{error}{hint}") from error
    except Exception as error:  # torch has no error of its own for what cannot be loaded
        raise ConfigurationError(
            f"{path} is damaged or of another version ({type(error).__name__}: "
            f"{str(error)[:200]}); start again in another folder."
        ) from error


def check_state(state: Mapping[str, Any]) -> None:
    """Refuses a state that no trainer of this version returned.

    Raises:
        ConfigurationError: naming what is absent, of another type or out of range.
    """
    check_fields("the state", state, _FIELDS, ("format_version",))
    check_integer("format_version", state.get("format_version", 1), 1, FORMAT_VERSION)
    check_integer("episode", state["episode"], 0)
    check_integer("inner_steps", state["inner_steps"], 0)
    check_number("seconds", state["seconds"], "[0, inf)")
    check_number("best_score", state["best_score"], "(-inf, inf]")
    check_fields("failures", state["failures"], ("texts", "in_a_row"))
    for name in ("learner", "replay", "validation", "settings"):
        check_kind(name, state[name], dict)


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
                f"{name} was {then.get(name)} when the run began and is {value} now. Resume with "
                "the settings of the run, or start a new one in another folder."
            )
