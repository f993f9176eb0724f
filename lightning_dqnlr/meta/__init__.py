"""Meta-training: collect transitions, learn, evaluate, save the best policy."""
