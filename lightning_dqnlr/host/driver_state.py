"""What a driver's saved state must hold to be gone on with, and what of it is whose."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from lightning_dqnlr.errors import ConfigurationError
from lightning_dqnlr.host.options import identity
from lightning_dqnlr.host.ranks import rank, world_size
from lightning_dqnlr.policy.choice import Policy

_STATE = (
    "base_lrs", "probed", "sizes", "controller", "telemetry", "snapshot", "generator",
    "record",
)  # fmt: skip


def check_state(state: Mapping[str, Any], policy: Policy, optimizer: torch.optim.Optimizer) -> None:
    """Raises ConfigurationError for the state of another version, policy, model or optimizer.

    Example:
        check_state(saved["driver"], policy, optimizer)
    """
    missing = [name for name in _STATE if name not in state]
    if missing:
        raise ConfigurationError(
            f"state: it lacks {missing}; it was saved by another version of lightning-dqnlr. "
            "Go on with that version, or without the saved control."
        )
    now = identity(policy)
    then = state.get("policy", now)  # older versions did not say
    if then["policy_hash"] != now["policy_hash"]:
        raise ConfigurationError(
            f"policy: the saved run was controlled by {' '.join(then.values())}, and this one "
            f"has {' '.join(now.values())}. Pass the policy that it was saved with, or begin "
            "without the saved control."
        )
    groups = optimizer.param_groups
    sizes = [p.numel() for group in groups for p in group["params"]]
    known = [sizes[i] if i < len(sizes) else 0 for i in state["probed"]]
    if len(state["base_lrs"]) > len(groups) or known != list(state["sizes"]):
        raise ConfigurationError(
            "state: the saved learning-rate control is of another model or of an optimizer "
            "with other parameter groups; resume with those it was saved with."
        )


def own_state(state: Mapping[str, Any], *, spread: bool) -> Mapping[str, Any]:
    """What a saved state holds for this process alone; nothing unless weights are spread.

    Args:
        state: of a driver.
        spread: whether this run's weights are spread over processes.

    Raises:
        ConfigurationError: if the saved run had another number of processes.

    Example:
        >>> own_state({"of_ranks": [{"alarm": {}}]}, spread=False)
        {'alarm': {}}
    """
    states = state.get("of_ranks", [{}])
    now = world_size() if spread else 1
    if len(states) != now:
        raise ConfigurationError(
            f"state: the saved run was sharded over {len(states)} processes, and this one over "
            f"{now}. Resume with as many, or without the saved control."
        )
    own: Mapping[str, Any] = states[rank() if spread else 0]
    return own
