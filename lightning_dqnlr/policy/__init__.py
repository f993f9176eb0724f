"""A learned choice of action: the Q-network and its files (torch only)."""

from lightning_dqnlr.policy.policy import LRPolicy

__all__ = [
    "LRPolicy",
]
