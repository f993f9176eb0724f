import subprocess
import sys

import pytest

PROGRAM = """
import torch
from lightning_dqnlr.envs.heap import keep_freed_memory

def resident():
    return int(open("/proc/self/statm").read().split()[1]) * 4096

assert keep_freed_memory()
before = resident()
activations = [torch.empty(8 * 2**20, dtype=torch.uint8).fill_(1) for _ in range(20)]
del activations
print((resident() - before) / 2**20)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc only")
def test_freed_memory_stays_with_the_process_instead_of_being_faulted_in_anew():
    command = [sys.executable, "-c", PROGRAM]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert float(done.stdout) > 120  # MiB of the 160
