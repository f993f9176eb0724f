"""Hydra configuration of `dqnlr-train`; installed as the package `lightning_dqnlr.conf`."""
