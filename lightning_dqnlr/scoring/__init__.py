"""How good a run was: the tuned cosine, regret to it, and statistics over runs."""
