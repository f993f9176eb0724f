"""A learned choice of action: protocol, Q-networks and policy files (torch only)."""

from lightning_dqnlr.policy.choice import Choice, Policy, ScriptedPolicy
from lightning_dqnlr.policy.policy import LRPolicy

__all__ = [
    "Choice",
    "LRPolicy",
    "Policy",
    "ScriptedPolicy",
]
