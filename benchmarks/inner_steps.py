"""Inner steps per second of a Trainer, a plain torch loop and the vectorised environment.

    python benchmarks/inner_steps.py                # device=cpu, one core
    python benchmarks/inner_steps.py --processes 2  # two cores
    python benchmarks/inner_steps.py device=cuda

Prints, for three families, the rates at R = 16, 64 and 256 replicas as ratios to the Trainer's, and
where the time of meta-training goes (`memory.py`: its memory). Rates are medians over rounds in
which the contestants take turns, because the machine's speed drifts. With several processes,
replicas run in each at once, as with `collector.workers`, and their rates are added. The Trainer
may take one thread or as many as there are processes, whichever is faster. Shares are of processor
time (of wall-clock time with the device synchronised, on a GPU).
"""

from __future__ import annotations

import argparse
import logging
import multiprocessing
import platform
import time
import warnings
from collections import defaultdict
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial, wraps
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch.utils import _pytree as pytree

from lightning_dqnlr import DQNLRCallback
from lightning_dqnlr.bench.report.content import Table
from lightning_dqnlr.control.controller import LRController
from lightning_dqnlr.control.probe import Probe
from lightning_dqnlr.control.spec import ControllerSpec
from lightning_dqnlr.control.telemetry import Telemetry
from lightning_dqnlr.envs.environment import Terms
from lightning_dqnlr.envs.module import training_loss
from lightning_dqnlr.envs.process import keep_freed_memory
from lightning_dqnlr.envs.replicas import BatchOrder, Replicas
from lightning_dqnlr.envs.replicated_optimizer import configured_optimizer
from lightning_dqnlr.envs.trainer_data import quiet, task_loader, task_trainer
from lightning_dqnlr.envs.vector import VectorEngine
from lightning_dqnlr.meta.collect import CollectConfig
from lightning_dqnlr.meta.train import MetaTrainer, TrainConfig
from lightning_dqnlr.policy.policy import LRPolicy
from lightning_dqnlr.rl.dqn import Agent, DQNConfig, DQNLearner
from lightning_dqnlr.rl.replay import ReplayBuffer, UniformReplayConfig
from lightning_dqnlr.rl.rewards import LogProgress
from lightning_dqnlr.tasks.families.basic import DigitsCNNs, DigitsMLPs, NoisyQuadratics
from lightning_dqnlr.tasks.task import Task, TaskFamily

REPLICAS = (16, 64, 256)
FAMILIES: dict[str, type] = {
    "noisy_quadratics": NoisyQuadratics,
    "digits_mlps": DigitsMLPs,
    "digits_cnns": DigitsCNNs,
}
PHASES: dict[str, dict[type, tuple[str, ...]]] = {
    "forward and backward": {Replicas: ("backward",)},
    "optimizer": {Replicas: ("update",)},
    "telemetry": {
        Probe: ("read_flat",),
        Telemetry: ("begin", "before", "after", "add_loss", "read"),
    },
    "control": {LRController: ("safe_start", "start", "observe", "apply")},
    "circuit breaker": {Replicas: ("snapshot", "restore")},
    "building replicas": {Replicas: ("__init__",)},
    "final evaluation": {Replicas: ("evaluate",)},
    "policy": {LRPolicy: ("q_values",)},
    "replay": {ReplayBuffer: ("extend", "sample")},
    "learning": {DQNLearner: ("update",)},
}
STEP = ("forward and backward", "optimizer", "telemetry")  # phases of an inner step


def family(name: str, horizon: int) -> TaskFamily:
    """Tasks of one length and batch size."""
    built: TaskFamily = FAMILIES[name](
        min_horizon=horizon, max_horizon=horizon, batch_sizes=(32,), known_horizon_probability=1.0
    )
    return built


def device_parser(description: str) -> argparse.ArgumentParser:
    """With the device as the first argument."""
    parser = argparse.ArgumentParser(description=description.splitlines()[0])
    choices = ("device=cpu", "device=cuda")
    parser.add_argument("device", nargs="?", default="device=cpu", help=" or ".join(choices))
    return parser


def synchronise(device: str) -> None:
    """Waits for a GPU."""
    if device.startswith("cuda"):
        torch.cuda.synchronize()


def trainer_rate(task: Task, device: str, seconds: float, most_threads: int) -> float:
    """Steps per second of a Trainer with the callback, with one thread or so many."""
    before = torch.get_num_threads()
    measured = []
    steps = max(100, round(400 * seconds))
    for threads in {1, most_threads}:
        torch.set_num_threads(threads)
        with quiet():
            callbacks = [DQNLRCallback(log=False)]
            trainer = task_trainer(task, callbacks, torch.device(device).type, steps)
            began = time.perf_counter()
            trainer.fit(task.build(0), task_loader(task, 0))
        measured.append(steps / (time.perf_counter() - began))
    torch.set_num_threads(before)
    return max(measured)


def plain_rate(task: Task, device: str, seconds: float) -> float:
    """Steps per second of a plain torch loop."""
    module = task.build(0).to(device)
    module.log = lambda *_, **__: None  # type: ignore[method-assign]
    optimizer = configured_optimizer(module)
    data = pytree.tree_map(lambda t: t.to(device), task.train_data)
    order = BatchOrder(task.examples, task.batch_size, [0])
    steps = 0
    began = time.perf_counter()
    while time.perf_counter() - began < seconds:
        index = order.next()[0].to(device)
        optimizer.zero_grad()
        training_loss(module, pytree.tree_map(lambda t, i=index: t[i], data)).backward()
        optimizer.step()
        steps += 1
    synchronise(device)
    return steps / (time.perf_counter() - began)


def vector_rate(task: Task, replicas: int, device: str, seconds: float) -> float:
    """Inner steps per second over all replicas, telemetry and control included."""
    env = VectorEngine(device).open(task, ControllerSpec(), range(replicas), Terms(LogProgress()))
    keep = torch.full((replicas,), env.controller.spec.actions.keep, device=device)
    env.reset()
    if together is not None:
        together.wait()
    steps, began = env.controller.step, time.perf_counter()
    while not env.finished and time.perf_counter() - began < seconds:
        env.step(keep)
        synchronise(device)
    return (env.controller.step - steps) * replicas / (time.perf_counter() - began)


together: Any = None  # a barrier, in processes that measure the same from the same moment on


def join(barrier: Any) -> None:
    """Begins such a process."""
    global together
    together = barrier
    torch.set_num_threads(1)
    keep_freed_memory()


def rates(task: Task, arguments: argparse.Namespace, pool: Any) -> dict[str, float]:
    """Medians of the contestants, which take turns."""
    device, seconds, count = arguments.device, arguments.seconds, arguments.processes

    def vector(replicas: int) -> float:
        job = (task, replicas, device, seconds)
        return sum(pool.starmap(vector_rate, [job] * count, 1)) if pool else vector_rate(*job)

    contestants: dict[str, Callable[[], float]] = {
        "Trainer": partial(trainer_rate, task, device, seconds, count),
        "plain": partial(plain_rate, task, device, seconds),
        **{f"R = {replicas}": partial(vector, replicas) for replicas in REPLICAS},
    }
    measured: dict[str, list[float]] = defaultdict(list)
    for _ in range(arguments.rounds):
        for label, measure in contestants.items():
            measured[label].append(measure())
    return {label: median(values) for label, values in measured.items()}


class Clock:
    """Time spent in methods, each counted without those called from it."""

    def __init__(self, device: str) -> None:
        self.spent: dict[str, float] = defaultdict(float)
        self._device = device
        self._inner = [0.0]

    def now(self) -> float:
        """Processor time, which a busy machine does not stretch; on a GPU, wall-clock time."""
        synchronise(self._device)
        on_gpu = self._device.startswith("cuda")
        return time.perf_counter() if on_gpu else time.process_time()

    def wrap(self, owner: type, method: str, phase: str) -> None:
        """Counts the method's time as the phase's."""
        original = getattr(owner, method)

        @wraps(original)
        def timed(*args: Any, **kwargs: Any) -> Any:
            self._inner.append(0.0)
            began = self.now()
            try:
                return original(*args, **kwargs)
            finally:
                took = self.now() - began
                self.spent[phase] += took - self._inner.pop()
                self._inner[-1] += took

        setattr(owner, method, timed)


def shares(name: str, device: str, episodes: int) -> dict[str, float]:
    """Shares of the time of meta-training, at the default recipe's sizes."""
    clock = Clock(device)
    for phase, methods in PHASES.items():
        for owner, names in methods.items():
            for method in names:
                clock.wrap(owner, method, phase)
    config = TrainConfig(
        episodes=episodes,
        updates=80,
        warm_up_episodes=0,
        evaluate_every=10**6,
        checkpoint_every=10**6,
        evaluation_tasks=1,
        device=device,
    )
    with TemporaryDirectory() as folder:
        trainer = MetaTrainer(
            tasks=family(name, 200),
            reward=LogProgress(),
            spec=ControllerSpec(),
            agent=Agent(DQNConfig(), UniformReplayConfig()),
            collect=CollectConfig(replicas=64),
            config=config,
            folder=Path(folder),
            engine=VectorEngine(device),
        )
        trainer._select = lambda _: None  # type: ignore[method-assign, assignment, return-value]
        began = clock.now()
        trainer.fit(lambda _: None)
        total = clock.now() - began
    spent = {phase: clock.spent[phase] / total for phase in PHASES}
    telemetry = spent["telemetry"] / sum(spent[phase] for phase in STEP)
    others = {"everything else": 1 - sum(spent.values()), "telemetry of a step": telemetry}
    return {**spent, **others}


def table(title: str, rows: dict[str, dict[str, str]]) -> None:
    """Prints rows of equal keys."""
    header = (title, *next(iter(rows.values())))
    cells = tuple((name, *row.values()) for name, row in rows.items())
    print("\n" + Table(header, cells).markdown(), flush=True)


def main() -> None:
    """Prints the two tables."""
    parser = device_parser(__doc__)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--processes", type=int, default=1, help="that run replicas, a core each")
    parser.add_argument("--seconds", type=float, default=3.0, help="of one measurement")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--episodes", type=int, default=6, help="of the time shares")
    arguments = parser.parse_args()
    arguments.device = device = arguments.device.removeprefix("device=")
    warnings.filterwarnings("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    torch.set_num_threads(arguments.threads)
    keep_freed_memory()
    where = torch.cuda.get_device_name() if device.startswith("cuda") else platform.machine()
    count = arguments.processes
    print(f"{where}, {count} processes of {arguments.threads} threads, torch {torch.__version__}")
    context = multiprocessing.get_context("spawn")
    several = count > 1
    with context.Pool(count, join, (context.Barrier(count),)) if several else nullcontext() as pool:
        tasks = {name: family(name, 20_000).sample(0, "test") for name in FAMILIES}
        measured = {name: rates(task, arguments, pool) for name, task in tasks.items()}
    shown = {
        name: {
            label: f"{rate:,.0f}" + f" (x{rate / row['Trainer']:.1f})" * (label != "Trainer")
            for label, rate in row.items()
        }
        for name, row in measured.items()
    }
    table("inner steps per second", shown)
    spent = {name: shares(name, device, arguments.episodes) for name in FAMILIES}
    table("share of time", {n: {p: f"{s:.1%}" for p, s in row.items()} for n, row in spent.items()})


if __name__ == "__main__":
    main()
