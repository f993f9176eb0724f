"""Inner steps per second of a Trainer, a plain torch loop and the vectorised environment.

    python benchmarks/inner_steps.py                # device=cpu, one core
    python benchmarks/inner_steps.py --processes 2  # two cores
    python benchmarks/inner_steps.py device=cuda

Prints, for three families side by side in one run, the rates at R = 16, 64 and 256 replicas as
ratios to the Trainer's, and where the time of meta-training goes (`memory.py`: its memory). Rates
are medians over rounds in which the contestants take turns, because the machine's speed drifts.
With several processes, replicas run in each at once, as with `collector.workers`, and their rates
are added; the Trainer may take one thread or as many as there are processes, whichever is faster.
Shares are of processor time (of wall-clock time with the device synchronised, on a GPU).
"""

from __future__ import annotations

import argparse
import logging
import multiprocessing
import platform
import statistics
import time
import warnings
from collections import defaultdict
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import wraps
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch.utils import _pytree as pytree

from lightning_dqnlr import DQNLRCallback
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
PHASES: dict[str, list[tuple[type, tuple[str, ...]]]] = {
    "forward and backward": [(Replicas, ("backward",))],
    "optimizer": [(Replicas, ("update",))],
    "telemetry": [
        (Probe, ("read_flat",)),
        (Telemetry, ("begin", "before", "after", "add_loss", "read")),
    ],
    "control": [(LRController, ("safe_start", "start", "observe", "apply"))],
    "circuit breaker": [(Replicas, ("snapshot", "restore"))],
    "building replicas": [(Replicas, ("__init__",))],
    "final evaluation": [(Replicas, ("evaluate",))],
    "policy": [(LRPolicy, ("q_values",))],
    "replay": [(ReplayBuffer, ("extend", "sample"))],
    "learning": [(DQNLearner, ("update",))],
}


def family(name: str, horizon: int) -> TaskFamily:
    """Tasks of one length and batch size."""
    built: TaskFamily = FAMILIES[name](
        min_horizon=horizon, max_horizon=horizon, batch_sizes=(32,), known_horizon_probability=1.0
    )
    return built


def trainer_rate(task: Task, device: str, seconds: float) -> float:
    """Steps per second of a Trainer with the callback."""
    with quiet():
        trainer = task_trainer(task, [DQNLRCallback(log=False)], torch.device(device).type)
        trainer.fit_loop.epoch_loop.max_steps = max(100, round(400 * seconds))
        steps, began = trainer.max_steps, time.perf_counter()
        trainer.fit(task.build(0), task_loader(task, 0))
    return steps / (time.perf_counter() - began)


def plain_rate(task: Task, device: str, seconds: float) -> float:
    """Steps per second of a plain torch loop."""
    module = task.build(0).to(device)
    module.log = lambda *_, **__: None  # type: ignore[method-assign]
    optimizer = configured_optimizer(module)
    data = pytree.tree_map(lambda t: t.to(device), task.train_data)
    order, steps = BatchOrder(task.examples, task.batch_size, [0]), 0
    began = time.perf_counter()
    while time.perf_counter() - began < seconds:
        batch = rows(data, order.next()[0].to(device))
        optimizer.zero_grad()
        training_loss(module, batch).backward()
        optimizer.step()
        steps += 1
    synchronise(device)
    return steps / (time.perf_counter() - began)


def rows(data: Any, index: torch.Tensor) -> Any:
    """A batch of these examples."""
    return pytree.tree_map(lambda t: t[index], data)


def vector_rate(
    task: Task,
    replicas: int,
    device: str,
    seconds: float,
    begin: Callable[[], object] = lambda: None,
) -> float:
    """Inner steps per second over all replicas, telemetry and control included."""
    engine = VectorEngine(device)
    env = engine.open(task, ControllerSpec(), range(replicas), Terms())
    keep = torch.full((replicas,), env.controller.spec.actions.keep, device=device)
    env.reset()
    begin()
    steps, began = env.controller.step, time.perf_counter()
    while not env.finished and time.perf_counter() - began < seconds:
        env.step(keep)
        synchronise(device)
    return (env.controller.step - steps) * replicas / (time.perf_counter() - began)


class Crew:
    """Processes that measure the same at once.

    Args:
        count: how many; 1 for this one.
    """

    def __init__(self, count: int) -> None:
        context = multiprocessing.get_context("spawn")
        self.count, self._barrier = count, context.Barrier(count)
        if count > 1:
            arguments = (self._barrier,)
            self._pool = ProcessPoolExecutor(count, context, join_crew, arguments)

    def vector_rate(self, *arguments: Any) -> float:
        """The sum over the processes."""
        if self.count == 1:
            return vector_rate(*arguments)
        measured = [self._pool.submit(rate_in_step, arguments) for _ in range(self.count)]
        return sum(future.result() for future in measured)


def join_crew(barrier: Any) -> None:
    """Begins a process."""
    global together
    together = barrier
    torch.set_num_threads(1)
    keep_freed_memory()


def rate_in_step(arguments: tuple[Any, ...]) -> float:
    """`vector_rate` in each process of a crew, from the same moment on."""
    return vector_rate(*arguments, begin=together.wait)


def best_trainer_rate(task: Task, device: str, seconds: float, threads: int) -> float:
    """With one thread or so many."""
    before, measured = torch.get_num_threads(), []
    for count in {1, threads}:
        torch.set_num_threads(count)
        measured.append(trainer_rate(task, device, seconds))
    torch.set_num_threads(before)
    return max(measured)


def rates(name: str, device: str, seconds: float, rounds: int, crew: Crew) -> dict[str, float]:
    """Medians of the contestants, which take turns."""
    task = family(name, 20_000).sample(0, "test")
    contestants: dict[str, Callable[[], float]] = {
        "Trainer": lambda: best_trainer_rate(task, device, seconds, crew.count),
        "plain": lambda: plain_rate(task, device, seconds),
    }
    for count in REPLICAS:
        contestants[f"R = {count}"] = lambda count=count: crew.vector_rate(  # type: ignore[misc]
            task, count, device, seconds
        )
    measured: dict[str, list[float]] = defaultdict(list)
    for _ in range(rounds):
        for label, measure in contestants.items():
            measured[label].append(measure())
    return {label: statistics.median(values) for label, values in measured.items()}


def synchronise(device: str) -> None:
    """Waits for a GPU."""
    if device.startswith("cuda"):
        torch.cuda.synchronize()


class Clock:
    """Time spent in methods, each counted without those called from it."""

    def __init__(self, device: str) -> None:
        self.spent: dict[str, float] = defaultdict(float)
        self._device, self._inner = device, [0.0]

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
        for owner, names in methods:
            for method in names:
                clock.wrap(owner, method, phase)
    with TemporaryDirectory() as folder:
        trainer = MetaTrainer(
            tasks=family(name, 200),
            reward=LogProgress(),
            spec=ControllerSpec(),
            agent=Agent(DQNConfig(), UniformReplayConfig()),
            collect=CollectConfig(replicas=64),
            config=TrainConfig(
                episodes=episodes,
                updates=80,
                warm_up_episodes=0,
                evaluate_every=10**6,
                checkpoint_every=10**6,
                evaluation_tasks=1,
                device=device,
            ),
            folder=Path(folder),
            engine=VectorEngine(device),
        )
        trainer._select = lambda _: None  # type: ignore[method-assign, assignment, return-value]
        began = clock.now()
        trainer.fit(lambda _: None)
        total = clock.now() - began
    spent = {phase: clock.spent[phase] / total for phase in PHASES}
    return {**spent, "everything else": 1 - sum(spent.values())}


def table(title: str, rows: dict[str, dict[str, str]]) -> None:
    """Prints rows of equal keys as a Markdown table."""
    columns = list(next(iter(rows.values())))
    print(f"\n| {title} | " + " | ".join(columns) + " |")
    print("| --- |" + " ---: |" * len(columns))
    for name, cells in rows.items():
        print(f"| {name} | " + " | ".join(cells[column] for column in columns) + " |", flush=True)


def show_rate(rates: dict[str, float], label: str) -> str:
    """The rate, and what it is to the Trainer's."""
    ratio = rates[label] / rates["Trainer"]
    return f"{rates[label]:,.0f}" + ("" if label == "Trainer" else f" (x{ratio:.1f})")


def main() -> None:
    """Prints the two tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("device", nargs="?", default="device=cpu", help="device=cpu or device=cuda")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument(
        "--processes", type=int, default=1, help="that run replicas, on a core each"
    )
    parser.add_argument("--seconds", type=float, default=3.0, help="of one measurement")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--episodes", type=int, default=6, help="of the time shares")
    arguments = parser.parse_args()
    device = arguments.device.removeprefix("device=")
    warnings.filterwarnings("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    torch.set_num_threads(arguments.threads)
    keep_freed_memory()
    where = torch.cuda.get_device_name() if device.startswith("cuda") else platform.machine()
    crew = Crew(arguments.processes)
    print(
        f"{where}, {crew.count} processes of {arguments.threads} threads, torch {torch.__version__}"
    )
    settings = (device, arguments.seconds, arguments.rounds, crew)
    measured = {name: rates(name, *settings) for name in FAMILIES}
    table(
        "inner steps per second",
        {n: {label: show_rate(r, label) for label in r} for n, r in measured.items()},
    )
    spent = {n: shares(n, device, arguments.episodes) for n in FAMILIES}
    for row in spent.values():
        step = sum(row[phase] for phase in ("forward and backward", "optimizer", "telemetry"))
        row["telemetry of a step"] = row["telemetry"] / step
    table("share of time", {n: {p: f"{s:.1%}" for p, s in row.items()} for n, row in spent.items()})


if __name__ == "__main__":
    main()
