"""The confirmation at real size: two tasks of millions of parameters and thousands of steps.

    python benchmarks/real_size.py --device cuda
    python benchmarks/real_size.py --scale tiny  # a first look: about a minute on one core

Cosine with warm-up and WSD at five peaks over two decades, and `DQNLRCallback()` with nothing
tuned, through the benchmark's own runs: real Trainers, one JSON file per run. The same command
makes only the runs that are missing; one that raised is tried again. Several commands with
`--share 1/4`, `--share 2/4`, ... make the runs side by side; the one without prints the tables. On
a GPU all train in mixed precision, bfloat16, as models of this size do; `--mixed` does so on a CPU
that is made for it, and `--sequences` and `--context` make the steps small enough for one.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import shlex
import signal
import statistics
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, replace
from datetime import timedelta
from functools import partial
from pathlib import Path

import torch
from real_size_tasks import HEADS, TINY, Size, Watched, residual_task, transformer_task

from lightning_dqnlr.bench.methods.plan import Method
from lightning_dqnlr.bench.methods.policies import LearnedPolicy
from lightning_dqnlr.bench.methods.schedules import ScheduledLR, wsd
from lightning_dqnlr.bench.report.comparison import Comparison
from lightning_dqnlr.bench.runs.archive import Store
from lightning_dqnlr.bench.runs.losses import TRAIN, VALIDATION, final_loss
from lightning_dqnlr.bench.runs.record import Record
from lightning_dqnlr.bench.runs.run import run
from lightning_dqnlr.bench.runs.suite import Opened, PlannedRun, Suite, missing, plan
from lightning_dqnlr.bench.tasks.task import BenchTask
from lightning_dqnlr.cli.errors import errors_in_one_line
from lightning_dqnlr.errors import ConfigurationError
from lightning_dqnlr.files import write_atomically
from lightning_dqnlr.provenance import provenance
from lightning_dqnlr.scoring.cosine import cosine
from lightning_dqnlr.tasks.task import Task

METHODS: tuple[Method, ...] = (
    LearnedPolicy(),
    ScheduledLR("cosine", cosine),
    ScheduledLR("wsd", wsd),
)
DECADES, EVALUATIONS = 2.0, 8
STEPS, TINY_STEPS = 4000, 100
TOLD_EVERY = 30.0  # seconds between two lines about a run that is under way
MEANING = (
    "Regret: log((L + e) / (L_cos + e)), L the final loss, e = 1% of the initial one, L_cos that\n"
    "of the cosine at its best peak; mean over seeds [lowest, highest]. The best peak is chosen\n"
    "by the training loss of the very seeds that are shown."
)
# Each with the centre of its grid, and its seconds per step in units of the residual network's,
# by floating-point operations: for the time left, until its own pace is known.
TASKS: dict[str, tuple[Callable[[Size, int], Task], float, float]] = {
    "transformer": (transformer_task, 1e-3, 4.0),
    "residual": (residual_task, 10**-1.5, 1.0),  # between He et al.'s 0.1 and the usual 0.01
}


def open_tasks(names: Sequence[str], size: Size, steps: int) -> Iterator[BenchTask]:
    """The tasks with their data; prints what they are.

    Raises:
        ConfigurationError: a task's data are not installed, or too few for its batches.
    """
    for name in names:
        make, lr, seconds = TASKS[name]
        task = make(size, steps)
        parameters = sum(p.numel() for p in task.build(0).parameters())
        print(
            f"{name}: {parameters:,} parameters, {task.optimizer}, {steps:,} steps of "
            f"{task.batch_size}, {task.examples:,} training examples",
            flush=True,
        )
        yield BenchTask(name, "longer runs", Opened(task), lr, seconds)


class Progress:
    """Lines about the runs and the time left, by the pace of each task so far.

    Args:
        runs: that are about to be made, in this order.
        steps: of each.
    """

    def __init__(self, runs: Sequence[PlannedRun], steps: int) -> None:
        self._runs, self._steps, self._done, self._step = runs, steps, 0, 0
        self._made: Counter[str] = Counter()  # steps of the runs that are over
        self._spent: dict[str, float] = defaultdict(float)  # seconds of those
        self._began = self._told = time.monotonic()

    def tick(self) -> None:
        """Before each step."""
        self._step += 1
        if time.monotonic() - self._told >= TOLD_EVERY:
            self._tell(f"step {self._step:,} of {self._steps:,}", self.seconds_left())

    def end(self, record: Record) -> None:
        """After each run."""
        losses = f"train {_loss([record], TRAIN)}, validation {_loss([record], VALIDATION)}"
        outcome = f"failed: {record.failure}" if record.failure else losses
        outcome += f", {record.seconds:.3g} s of training"
        self._tell(outcome, self.seconds_left(over=True))
        self._made[record.task] += self._step
        self._spent[record.task] += time.monotonic() - self._began
        self._done, self._step, self._began = self._done + 1, 0, time.monotonic()

    def seconds_left(self, *, over: bool = False) -> float:
        """Of all runs; a task that has not begun counts by its nominal cost.

        Args:
            over: whether the run under way is (it may have stopped early).

        Returns:
            NaN before the first step of all.
        """
        here, cost = self._runs[self._done].task.name, {r.task.name: r.task for r in self._runs}
        made, spent = Counter(self._made), defaultdict(float, self._spent)
        made[here] += self._step
        spent[here] += time.monotonic() - self._began
        nominal = sum(cost[name].seconds * steps for name, steps in made.items())
        unit = sum(spent.values()) / nominal if nominal else math.nan
        runs = Counter(run.task.name for run in self._runs[self._done + 1 :])
        left = Counter({name: count * self._steps for name, count in runs.items()})
        left[here] += 0 if over else self._steps - self._step
        pace = {n: spent[n] / made[n] if made[n] else unit * cost[n].seconds for n in left}
        return sum(pace[name] * steps for name, steps in left.items())

    def _tell(self, what: str, left: float) -> None:
        here, now = self._runs[self._done], time.monotonic()
        peak = "" if here.lr is None else f", peak {here.lr:g}"
        name = f"{here.task.name}, {here.method.name}{peak}, seed {here.seed}"
        clock = "unknown" if math.isnan(left) else str(timedelta(seconds=round(left)))
        place = f"run {self._done + 1}/{len(self._runs)}"
        print(f"{place} ({name}): {what}; time left {clock}", flush=True)
        self._told = now


def make(runs: Sequence[PlannedRun], store: Store, device: str, steps: int, mixed_on: str) -> None:
    """Makes the runs one by one, and stores each when it is over; `mixed_on` as in `Watched`."""
    progress = Progress(runs, steps)
    for planned in runs:
        task = planned.task.open()
        watched = replace(task, build=Watched(task.build, progress.tick, mixed_on))
        where = (planned.lr, planned.seed, planned.task.split, EVALUATIONS)
        record = run(planned.method, watched, *where, device=device)
        store.put(record)
        progress.end(record)


def table(comparison: Comparison, task: str) -> str:
    """The result on a task, in Markdown; the means over seeds, and the seeds' range of regrets."""
    header = (
        "method", "runs per result", "best peak", "training loss", "validation loss", "regret",
        "regret, validation", "s per step",
    )  # fmt: skip
    runs = comparison.entries[task, "cosine"].runs
    lines = [
        f"\n## {task}: {runs[0].parameters:,} parameters, {runs[0].optimizer}, "
        f"{runs[0].horizon:,} steps, seeds: {len(runs)}\n",
        "| " + " | ".join(header) + " |",
        "| --- |" + " ---: |" * (len(header) - 1),
    ]
    for method in comparison.methods:
        lines.append("| " + " | ".join([method, *_cells(comparison, task, method)]) + " |")
    return "\n".join(lines)


def _cells(comparison: Comparison, task: str, method: str) -> list[str]:
    entry = comparison.entries[task, method]
    peak = "none needed" if entry.lr is None else f"{entry.lr:g}"
    return [
        str(entry.tries),
        peak + edge(comparison, task, method),
        *(_loss(entry.runs, which) for which in (TRAIN, VALIDATION)),
        *(_regret(comparison, task, method, which) for which in (TRAIN, VALIDATION)),
        _seconds([r for r in comparison.records if (r.task, r.method) == (task, method)]),
    ]


def edge(comparison: Comparison, task: str, method: str) -> str:
    """Says so if the best peak is the lowest or highest of its grid; "" otherwise."""
    peaks = sorted(comparison.sweep(task, method))
    ends = {peaks[0]: ", the lowest", peaks[-1]: ", the highest"} if peaks else {}
    return ends.get(comparison.entries[task, method].lr or 0.0, "")


def at_the_edge(comparison: Comparison) -> list[str]:
    """One line per best peak at its grid's edge, or one that says that there is none."""
    found = [
        f"The best peak of {method} on {task} is {comparison.entries[task, method].lr:g}"
        f"{edge(comparison, task, method)} of its grid: a better one may lie beyond."
        for task, method in comparison.entries
        if edge(comparison, task, method)
    ]
    return found or ["No best peak lies at the edge of its grid."]


def _loss(runs: Sequence[Record], which: str) -> str:
    losses = [final_loss(run, which) for run in runs]
    lost = sum(map(math.isnan, losses))
    return f"{lost} of {len(runs)} diverged" if lost else f"{statistics.mean(losses):.4f}"


def _regret(comparison: Comparison, task: str, method: str, which: str) -> str:
    each = comparison.regrets(task, method, which)
    mean, low, high = (f"{x.item():.3f}" for x in (each.mean(), each.min(), each.max()))
    return f"{mean} [{low}, {high}]".replace("-0.000", "0.000")


def _seconds(runs: Sequence[Record]) -> str:
    """Median over all runs of a method; one that diverged has stopped early."""
    each = [run.seconds / run.curve["step"][-1] for run in runs if any(run.curve["step"])]
    return f"{statistics.median(each):.4g}" if each else "failed"


def compare(arguments: argparse.Namespace) -> None:
    """Makes what is missing, and prints the tables.

    Raises:
        ConfigurationError: no such device or data, or the folder cannot be written.
    """
    device, steps = chosen_device(arguments.device), arguments.steps
    steps = steps or (TINY_STEPS if arguments.scale == TINY else STEPS)
    mixed_on = device if arguments.mixed or device == "cuda" else ""
    # Speeds and losses of one are none of the other's.
    folder = arguments.folder / (device + "-bfloat16" * (device == "cpu" and arguments.mixed))
    size = replace(arguments.scale, **sizes_given(arguments))
    about = {"command": shlex.join(sys.argv), "size": asdict(size), **provenance()}
    write_atomically(folder / "about.json", (json.dumps(about, indent=1) + "\n").encode())
    where = torch.cuda.get_device_name() if device == "cuda" else platform.machine()
    print(f"{where}, {torch.get_num_threads()} threads, torch {torch.__version__}")
    tasks = list(open_tasks(arguments.tasks, size, steps))
    suite = Suite(seeds=arguments.seeds, points=arguments.peaks, decades=DECADES)
    runs, store = list(plan(suite, tasks, METHODS)), Store(folder / "runs")
    place, shares = arguments.share
    runs = runs[place - 1 :: shares]
    todo = missing(runs, store, retry_failed=True)
    print(f"{len(runs)} runs, {len(runs) - len(todo)} of them stored in {folder}", flush=True)
    make(todo, store, device, steps, mixed_on)
    if shares > 1:
        print("This share is done; the same command without --share prints the tables.")
        return
    comparison = Comparison(record for run in runs if (record := store.get(run.key)))
    print(*(table(comparison, task.name) for task in tasks), sep="\n")
    print("", *at_the_edge(comparison), MEANING, sep="\n")
    failed = sum(record.failure is not None for record in comparison.records)
    if failed:
        print(f"{failed} runs raised, and count as diverged; the same command tries them again.")


def sizes_given(arguments: argparse.Namespace) -> dict[str, int]:
    """Attributes of `Size` that were asked for by themselves."""
    given = {name: getattr(arguments, name) for name in ("sequences", "context")}
    return {name: value for name, value in given.items() if value is not None}


def chosen_device(wanted: str) -> str:
    """The device to train on; "auto" prefers CUDA.

    Raises:
        ConfigurationError: CUDA is wanted and not there.
    """
    if wanted == "cuda" and not torch.cuda.is_available():
        raise ConfigurationError(
            f"--device cuda: torch {torch.__version__} finds no CUDA device; install a driver and "
            "a CUDA build of torch, or use --device cpu with a --scale that a CPU can do."
        )
    return wanted if wanted != "auto" else "cuda" if torch.cuda.is_available() else "cpu"


def at_least(least: int, text: str) -> int:
    """An integer argument.

    Raises:
        argparse.ArgumentTypeError: it is none, or too small.
    """
    if not text.isdecimal() or int(text) < least:
        raise argparse.ArgumentTypeError(f"{text!r} must be an integer of at least {least}")
    return int(text)


def share(text: str) -> tuple[int, int]:
    """K and N for `--share K/N`.

    Raises:
        argparse.ArgumentTypeError: it is not of this form, or K is not one of 1..N.
    """
    place, slash, shares = text.partition("/")
    if not slash or not (place + shares).isdecimal() or not 1 <= int(place) <= int(shares):
        raise argparse.ArgumentTypeError(f"{text!r} must be K/N with K in 1..N, such as 1/4")
    return int(place), int(shares)


def scaled(text: str) -> Size:
    """The size for `--scale`: "tiny", or a factor on the widths of the real one.

    Raises:
        argparse.ArgumentTypeError: it is neither.
    """
    if text == "tiny":
        return TINY
    try:
        factor = float(text)
    except ValueError:
        factor = 0.0
    if not 0.01 <= factor <= 10.0:
        raise argparse.ArgumentTypeError(f"{text!r} must be tiny, or a factor from 0.01 to 10")
    real = Size()
    width = HEADS * max(1, round(factor * real.width / HEADS))
    return replace(real, width=width, channels=max(2, round(factor * real.channels)))


def main() -> None:
    """Compares the methods at real size, or goes on where an earlier command was interrupted."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--device", choices=("cpu", "cuda", "auto"), default="auto")
    add("--steps", type=partial(at_least, 10), help="of a run; 4000, for --scale tiny 100")
    add("--seeds", type=partial(at_least, 1), default=2, help="runs of each (default 2)")
    add("--peaks", type=partial(at_least, 3), default=5, help="over two decades (default 5)")
    add("--tasks", nargs="+", choices=tuple(TASKS), default=tuple(TASKS))
    add("--scale", type=scaled, default=Size(), help="factor on the widths, or tiny")
    add("--sequences", type=partial(at_least, 1), help="per step of the transformer; 32")
    add("--context", type=partial(at_least, 2), help="characters of each; 256")
    add("--mixed", action="store_true", help="mixed precision on a CPU too; on a GPU always")
    add("--share", type=share, default=(1, 1), metavar="K/N", help="make every Nth run only")
    add("--folder", type=Path, default=Path("outputs/real_size"), help="of the records")
    arguments = parser.parse_args()
    # Else SIGTERM would end the command without a word between two runs.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with errors_in_one_line("what was finished is stored, and the same command goes on"):
        compare(arguments)


if __name__ == "__main__":
    main()
