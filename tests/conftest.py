"""What every test begins with."""

import io
import os

import pytest
import rich


@pytest.fixture(autouse=True)
def _a_free_port():
    """Lightning keeps the port of the first run of several processes, for all later ones.

    Between two tests another program may take it: a cluster of Ray, or the other test worker.
    """
    os.environ.pop("MASTER_PORT", None)


@pytest.fixture
def terminal():
    """What a terminal of 160 columns would get of Rich; Lightning's bar is told of it, too."""
    console = rich.get_console()
    before = dict(console.__dict__)
    screen = io.StringIO()
    rich.reconfigure(file=screen, force_terminal=True, width=160)
    yield screen
    console.__dict__.update(before)
