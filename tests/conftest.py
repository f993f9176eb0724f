"""What every test begins with."""

import os

import pytest


@pytest.fixture(autouse=True)
def _a_free_port():
    """Lightning keeps the port of the first run of several processes, for all later ones.

    Between two tests another program may take it: a cluster of Ray, or the other test worker.
    """
    os.environ.pop("MASTER_PORT", None)
