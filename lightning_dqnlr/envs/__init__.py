"""Learning-rate control as an environment."""
