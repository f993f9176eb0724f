"""The package's own errors. Each message names the argument at fault and the remedy."""


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
    """A rival's own package is not installed; the message names the extra that brings it."""
