"""What every test begins with."""

import io
import logging
import os

import pytest
import rich

# What Lightning, accelerate and transformers leave in the environment of a process.
LEFT = (
    "MASTER_",
    "RANK",
    "LOCAL_RANK",
    "NODE_RANK",
    "WORLD_SIZE",
    "LOCAL_WORLD_SIZE",
    "ACCELERATE_",
)


@pytest.fixture(autouse=True)
def _no_earlier_processes():
    """Takes what runs of several processes have left, for the next one or for a subprocess.

    Another program may have taken their port: a cluster of Ray, or the other test worker. A rank
    that is left makes accelerate wait for other processes.
    """
    for name in [name for name in os.environ if name.startswith(LEFT)]:
        del os.environ[name]


@pytest.fixture(autouse=True)
def _loggers_as_they_were():
    """Commands that run in the test's own process quieten loggers for good."""
    loggers = [logging.getLogger(name) for name in ("lightning_dqnlr", "lightning.pytorch")]
    levels = [logger.level for logger in loggers]
    yield
    for logger, level in zip(loggers, levels, strict=True):
        logger.setLevel(level)


@pytest.fixture
def terminal():
    """What a terminal of 160 columns would get of Rich; Lightning's bar is told of it, too."""
    console = rich.get_console()
    before = dict(console.__dict__)
    screen = io.StringIO()
    rich.reconfigure(file=screen, force_terminal=True, width=160)
    yield screen
    console.__dict__.update(before)
