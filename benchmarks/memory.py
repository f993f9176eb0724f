"""Whether meta-training's memory grows: what is held between episodes of ever new tasks.

    python benchmarks/memory.py --minutes 60
    python benchmarks/memory.py device=cuda --minutes 60

Quadratics, MLPs and CNNs run in turn, 64 replicas and 200 steps each, as a worker of meta-training
runs them. There is one figure for each tenth of the time. One that grew with time would be a leak.
"""

from __future__ import annotations

import math
import resource
import statistics
import time
from pathlib import Path

import torch
from inner_steps import FAMILIES, device_parser, family

from lightning_dqnlr.control.spec import ControllerSpec
from lightning_dqnlr.envs.environment import Terms
from lightning_dqnlr.envs.process import give_back_freed_memory, keep_freed_memory
from lightning_dqnlr.envs.vector import VectorEngine


def growth(device: str, minutes: float) -> list[float]:
    """Memory in MiB held between episodes of ever new tasks, the mean of each tenth of the time."""
    engine = VectorEngine(device)
    families = [family(name, 200) for name in FAMILIES]
    marks: list[list[float]] = [[] for _ in range(10)]
    began = time.monotonic()
    seed = 0
    while (share := (time.monotonic() - began) / (60 * minutes)) < 1 or not marks[9]:
        task = families[seed % len(families)].sample(seed)
        env = engine.open(task, ControllerSpec(), range(64), Terms())
        env.reset()
        while not env.finished:
            env.step(torch.full((64,), 3, device=device))
        del env
        give_back_freed_memory()  # as meta-training does
        marks[min(9, int(10 * share))].append(held_memory(device))
        seed += 1
    return [statistics.mean(tenth) if tenth else math.nan for tenth in marks]


def held_memory(device: str) -> float:
    """In MiB: of the GPU, or resident memory of the process (elsewhere than on Linux, its peak)."""
    if device.startswith("cuda"):
        return torch.cuda.memory_allocated() / 2**20
    statm = Path("/proc/self/statm")
    if statm.is_file():
        return int(statm.read_text().split()[1]) * resource.getpagesize() / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10


def main() -> None:
    """Prints the ten figures."""
    parser = device_parser(__doc__)
    parser.add_argument("--minutes", type=float, default=60.0)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    keep_freed_memory()
    held = growth(arguments.device.removeprefix("device="), arguments.minutes)
    tenths = ", ".join(f"{value:.0f}" for value in held)
    print(f"MiB held between episodes in each tenth of {arguments.minutes:g} minutes: {tenths}")


if __name__ == "__main__":
    main()
