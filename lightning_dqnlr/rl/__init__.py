"""Deep Q-learning: replay, TD targets, rewards (torch only)."""
