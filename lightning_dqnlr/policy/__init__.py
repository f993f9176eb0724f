"""A learned choice of action: the Q-network and its files (torch only)."""
