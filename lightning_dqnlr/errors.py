"""The package's own errors. Each message names the argument at fault and the remedy."""


class ConfigurationError(ValueError):
    """An argument or a combination of arguments cannot work; raised before any work starts."""


class PolicyFileError(ValueError):
    """A policy file is missing, damaged, or made for another feature or action specification."""


class UnsupportedTrainingError(ConfigurationError):
    """The training loop does something the controller cannot handle yet (two optimizers, say)."""
