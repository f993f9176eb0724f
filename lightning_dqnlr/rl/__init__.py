"""Deep Q-learning: rewards, targets, replay, the learner, and the tabular baseline. Torch only."""
