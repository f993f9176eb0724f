import platform
import subprocess
import sys

import pytest

PROGRAM = """
import torch
from lightning_dqnlr.envs.process import keep_freed_memory

def resident():
    return int(open("/proc/self/statm").read().split()[1]) * 4096

assert keep_freed_memory()
before = resident()
activations = [torch.empty(8 * 2**20, dtype=torch.uint8).fill_(1) for _ in range(20)]
del activations
print((resident() - before) / 2**20)
"""


HOLES = """
import torch
from lightning_dqnlr.envs.process import give_back_freed_memory, keep_freed_memory

def resident():
    return int(open("/proc/self/statm").read().split()[1]) * 4096

assert keep_freed_memory()
before = resident()
blocks = [torch.empty(2**20, dtype=torch.uint8).fill_(1) for _ in range(160)]
kept = blocks[1::16]  # live blocks between the holes
del blocks
full = resident()
assert give_back_freed_memory()
print((full - before) / 2**20, (resident() - before) / 2**20)
"""


def run(program):
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return [float(number) for number in done.stdout.split()]


# Elsewhere both functions say that they can do nothing, and there is nothing to measure.
with_glibc = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc only")


@with_glibc
def test_the_holes_that_an_episode_leaves_do_not_add_to_those_of_the_next():
    kept, given_back = run(HOLES)
    assert kept > 120  # MiB of the 160
    assert given_back < 40  # ten of them are in use


@with_glibc
def test_freed_memory_stays_with_the_process_instead_of_being_faulted_in_anew():
    assert run(PROGRAM)[0] > 120  # MiB of the 160
