"""The package's own errors. Each message names the argument at fault and the remedy."""

from collections.abc import Iterator
from contextlib import contextmanager


class ConfigurationError(ValueError):
    """An argument or a combination of arguments cannot work; raised before any work starts."""


class PolicyFileError(ValueError):
    """A policy file is missing, damaged, or made for another feature or action specification."""


class UnsupportedTrainingError(ConfigurationError):
    """The training loop does something the controller cannot handle yet (two optimizers, say)."""


class NonFiniteLossError(RuntimeError):
    """The very first training loss is NaN or infinite, so that no learning rate could help."""


class CallOrderError(RuntimeError):
    """A method was called before what it depends on had happened."""


class RecordError(ValueError):
    """A benchmark record is damaged or of another version."""


class MissingPackageError(ConfigurationError):
    """A package is not installed; the message names the extra that brings it."""


@contextmanager
def needs_package(user: str, packages: str, extra: str) -> Iterator[None]:
    """Turns an ImportError into the error that says who needs which packages.

    Raises:
        MissingPackageError: something that is imported within is not installed.

    Example:
        >>> with needs_package("the report", "matplotlib", "plot"):
        ...     from matplotlib.figure import Figure
    """
    try:
        yield
    except ImportError as error:
        raise MissingPackageError(
            f"{user} needs {packages}, which is not installed; "
            f'run `pip install "lightning-dqnlr[{extra}]"`.'
        ) from error


def silent_optimizer(optimizer: object) -> UnsupportedTrainingError:
    """What to raise when an optimizer steps without telling.

    Example:
        raise silent_optimizer(optimizer)
    """
    return UnsupportedTrainingError(
        f"{type(optimizer).__name__} does not tell of its steps, so its learning rate cannot be "
        "followed: it wraps another optimizer and its __init__ does not call torch's. Give the "
        "optimizer inside it instead."
    )
