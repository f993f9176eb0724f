"""What all console scripts share: errors in one line, the command as typed, devices by name."""

from __future__ import annotations

import errno
import os
import shlex
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

import torch
from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException

from lightning_dqnlr.cli.spelling import mended
from lightning_dqnlr.errors import ConfigurationError, PolicyFileError

EXIT_CONFIGURATION = 2
EXIT_INTERRUPTED = 130
ANEW = "the same command begins anew"
FULL_ERROR = "HYDRA_FULL_ERROR"
_TRACEBACKS_WANTED = os.environ.get(FULL_ERROR, "0") not in ("", "0")
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # disk, quota, largest file
_OURS = (ConfigurationError, PolicyFileError)


def find_device(name: str) -> str:
    """Checks a device's name; "auto" becomes "cuda" where there is a GPU and "cpu" elsewhere.

    Raises:
        ConfigurationError: the device is unknown, or not on this machine.
    """
    present = torch.cuda.is_available()
    if name == "auto":
        return "cuda" if present else "cpu"
    try:
        kind = torch.device(name).type
    except (RuntimeError, TypeError) as error:
        raise ConfigurationError(f"device={name!r} must be cpu, cuda or auto.") from error
    if kind not in ("cpu", "cuda") or (kind == "cuda" and not present):
        raise ConfigurationError(f"device={name!r} is not available here; use device=cpu or auto.")
    return name


def one_line(error: BaseException, config_name: str = "") -> str:
    """An error's message without line breaks; our own one if Hydra wrapped it.

    With the name of a configuration, an error of Hydra's says what was probably meant.
    """
    key = next((line for line in str(error).splitlines() if line.startswith("full_key: ")), "")
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, _OURS):
        cause = cause.__cause__
    if cause is None and config_name and (said := mended(error, config_name)):
        return " ".join(said.split())
    if cause is None or cause is error:
        return " ".join(str(error).split())
    return " ".join(f"{key.removeprefix('full_key: ')}: {cause}".split()).lstrip(": ")


def command() -> str:
    """What was typed, without the folder: where files lay on a machine says nothing elsewhere."""
    typed = [word for word in sys.argv[1:] if not word.startswith("folder=")]
    return shlex.join([Path(sys.argv[0]).name, *typed])


@contextmanager
def errors_in_one_line(go_on: str, config_name: str = "") -> Iterator[None]:
    """Shows what a user can mend as one line, with its own exit code; leaves the rest alone.

    Args:
        go_on: how to continue what was interrupted.
        config_name: of the command's configuration, for what was probably meant.
    """
    if _TRACEBACKS_WANTED:
        yield
        return
    try:
        yield
    except (*_OURS, HydraException, OmegaConfBaseException) as error:
        _stop(one_line(error, config_name))
    except ValueError as error:  # Hydra raises one for a choice that is no name, as suite=0
        said = mended(error, config_name) if config_name else None
        if said is None:
            raise
        _stop(said)
    except OSError as error:
        if error.errno in _FULL:
            _stop(f"{error.strerror}; free some space. What was saved before is unchanged.")
        if error.filename is None:
            raise  # a closed pipe, say: nothing that another path could mend
        _stop(f"{error.filename}: {error.strerror}; choose another folder.")
    except KeyboardInterrupt:
        print(f"\n{Path(sys.argv[0]).name}: interrupted; {go_on}.", file=sys.stderr)
        sys.exit(EXIT_INTERRUPTED)


def quiet_when_full(error: threading.ExceptHookArgs) -> None:
    """TensorBoard writes in a thread, and hands its errors to the main one as well."""
    if not isinstance(error.exc_value, OSError) or error.exc_value.errno not in _FULL:
        threading.__excepthook__(error)


def _stop(message: str) -> NoReturn:
    print(f"{Path(sys.argv[0]).name}: error: {message}", file=sys.stderr)
    sys.exit(EXIT_CONFIGURATION)
