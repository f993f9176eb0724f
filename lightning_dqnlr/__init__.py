"""A deep Q-network that sets the learning rate of PyTorch Lightning training runs.

The public names are loaded on first use, so that `import lightning_dqnlr` costs nothing. A plain
torch loop needs `LRController` or `DQNLRScheduler` only, and never loads Lightning.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lightning_dqnlr.control.controller import LRController
    from lightning_dqnlr.host.callback import DQNLRCallback
    from lightning_dqnlr.host.hf_trainer import DQNLRTrainerCallback as DQNLRTrainerCallback
    from lightning_dqnlr.host.scheduler import DQNLRScheduler
    from lightning_dqnlr.policy.policy import LRPolicy

__version__ = "0.2.0"

# Without DQNLRTrainerCallback, because `import *` would ask for the packages of an extra.
__all__ = ["DQNLRCallback", "DQNLRScheduler", "LRController", "LRPolicy", "__version__"]

_HOME = {
    "DQNLRCallback": "lightning_dqnlr.host.callback",
    "DQNLRScheduler": "lightning_dqnlr.host.scheduler",
    "DQNLRTrainerCallback": "lightning_dqnlr.host.hf_trainer",
    "LRController": "lightning_dqnlr.control.controller",
    "LRPolicy": "lightning_dqnlr.policy.policy",
}


def __getattr__(name: str) -> Any:
    """Load a public name from its module on first use (PEP 562)."""
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(_HOME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """List the public names too, loaded or not."""
    return sorted(set(globals()) | set(__all__))
