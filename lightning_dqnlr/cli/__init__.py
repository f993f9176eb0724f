"""The console scripts; the only part that knows Hydra."""
