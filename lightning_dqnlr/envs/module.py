"""A LightningModule without its Trainer: what of it can be trained all the same."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NoReturn

from lightning import LightningModule
from lightning.pytorch.utilities.model_helpers import is_overridden
from lightning.pytorch.utilities.signature_utils import is_param_in_hook_signature
from torch import Tensor

from lightning_dqnlr.errors import UnsupportedTrainingError
from lightning_dqnlr.tasks.user import library_of

# Hooks that only a Trainer calls; each may change the effect of a training step.
_HOOKS = (
    "backward",
    "configure_gradient_clipping",
    "on_after_backward",
    "on_after_batch_transfer",
    "on_before_batch_transfer",
    "on_before_optimizer_step",
    "on_before_zero_grad",
    "on_train_batch_end",
    "on_train_batch_start",
    "on_train_epoch_start",
    "on_train_start",
    "optimizer_step",
    "optimizer_zero_grad",
    "transfer_batch_to_device",
)


class NoTrainer:
    """Stands where the Trainer would; any attribute is refused with the remedy."""

    def __init__(self, module: str) -> None:
        self._module = module

    def __getattr__(self, name: str) -> NoReturn:
        raise UnsupportedTrainingError(
            f"{self._module} asks its Trainer for {name!r}, and replicas have none; train it with "
            "env=trainer."
        )


def detach_from_trainer(module: LightningModule) -> LightningModule:
    """Prepares a module for training steps without a Trainer; `self.log` does nothing then.

    Raises:
        UnsupportedTrainingError: if it relies on what only a Trainer does.
    """
    name = type(module).__name__
    parent = library_of(module).LightningModule
    hooks = [hook for hook in _HOOKS if is_overridden(hook, module, parent)]
    if not module.automatic_optimization:
        hooks.append("automatic_optimization = False")
    if hooks:
        raise UnsupportedTrainingError(
            f"{name} has {', '.join(hooks)}, which only a Trainer calls; train it with env=trainer."
        )
    silence(module)
    module.trainer = NoTrainer(name)  # type: ignore[assignment]
    module.setup("fit")
    module.configure_model()
    return module


def silence(module: LightningModule) -> None:
    """Makes `self.log` and `self.log_dict` do nothing."""
    # Past nn.Module's own bookkeeping, and before the methods of the class.
    module.__dict__.update(log=_nothing, log_dict=_nothing)


def training_loss(module: LightningModule, batch: Any) -> Tensor:
    """The loss that `training_step` returns, shape ().

    Raises:
        UnsupportedTrainingError: if it returns none.
    """
    step = module.training_step
    takes_index = is_param_in_hook_signature(step, "batch_idx", min_args=2)
    outputs = step(batch, 0) if takes_index else step(batch)
    loss = outputs.get("loss") if isinstance(outputs, Mapping) else outputs
    if not isinstance(loss, Tensor):
        raise UnsupportedTrainingError(
            f"{type(module).__name__}.training_step must return the loss, or a dict with one under "
            f"'loss'; it returned {type(outputs).__name__}."
        )
    return loss


def _nothing(*_: Any, **__: Any) -> None:
    """Takes what `self.log` takes."""
