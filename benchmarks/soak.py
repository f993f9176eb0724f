"""Trains many small models, each with one fault, and counts what reached the outside.

    python benchmarks/soak.py --runs 1000 --seed 0

Every second run is a Lightning Trainer with validation, checkpoints, clipping and accumulation as
its seed draws them. The others are plain loops with `DQNLRScheduler`. A run fails in these cases:

- It raises, or takes more than a minute of the processor.
- A learning rate is not finite, not above zero or out of its bounds, or it runs away while nothing
  can be learnt.
- The final weights, a checkpoint, a metric of the validation, or what a callback sees at the end of
  an epoch, is not finite. In a plain loop the final weights and saved states count.

`--only NUMBER` trains one run again and says what it was.
"""

from __future__ import annotations

import argparse
import json
import logging
import multiprocessing
import platform
import signal
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from collections import defaultdict
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from faulty_runs import FAULTS, Case, Watch, check_rates, draw, train_in_a_loop, train_with_trainer
from tqdm import tqdm

from lightning_dqnlr.files import write_atomically

SECONDS = 60  # of the processor, which others on the machine do not lengthen
PATIENCE = 900  # seconds on the clock, for a run that waits for ever


def train(case: Case) -> dict[str, Any]:
    """Trains a run; returns its case, its problems and its numbers as JSON takes them."""
    watch = Watch()
    torch.manual_seed(case.seed + case.number)
    for alarm in (signal.SIGALRM, signal.SIGPROF):
        signal.signal(alarm, _stop)
    signal.setitimer(signal.ITIMER_PROF, SECONDS)
    signal.alarm(PATIENCE)
    began = time.process_time()
    try:
        with tempfile.TemporaryDirectory() as folder:
            if case.trainer:
                train_with_trainer(case, watch, Path(folder))
            else:
                train_in_a_loop(case, watch)
        check_rates(case, watch)
    except Exception as error:
        where = traceback.extract_tb(error.__traceback__)[-1]
        place = f"{Path(where.filename).name}:{where.lineno}"
        watch.problems.append(f"{type(error).__name__} at {place}: {error}"[:400])
    finally:
        signal.alarm(0)
        signal.setitimer(signal.ITIMER_PROF, 0)
    return {
        "case": asdict(case),
        "problems": sorted(set(watch.problems)),
        "steps": len(watch.rates),
        "trips": watch.trips,
        "metric": watch.metrics[-1] if watch.metrics else None,
        "seconds": round(time.process_time() - began, 2),
    }


def _stop(number: int, frame: FrameType | None) -> None:
    raise TimeoutError(f"it takes more than {SECONDS} s, or waits")


def quiet() -> None:
    """Begins a worker: one thread, and no warnings of thousands of trips."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the main process is to end it
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    for name in ("lightning_dqnlr", "lightning.pytorch"):
        logging.getLogger(name).setLevel(logging.ERROR)


def table(results: list[dict[str, Any]]) -> str:
    """One line per fault, in Markdown."""
    rows: dict[str, list[dict[str, Any]]] = {fault: [] for fault in FAULTS}
    for result in results:
        rows[result["case"]["fault"]].append(result)
    lines = [
        "| fault | runs | intervals undone | failures |",
        "| --- | ---: | ---: | ---: |",
    ]
    for fault, found in {**rows, "all": results}.items():
        failures = sum(bool(result["problems"]) for result in found)
        undone = sum(result["trips"] for result in found)
        lines.append(f"| {fault} | {len(found):,} | {undone:,} | {failures:,} |")
    return "\n".join(lines)


def complaints(results: list[dict[str, Any]]) -> str:
    """The failures by kind, each with the number of the runs that show it."""
    kinds: dict[str, list[int]] = defaultdict(list)
    for result in results:
        for problem in result["problems"]:
            kinds[problem].append(result["case"]["number"])
    lines = [
        f"{len(numbers)} x {problem}: --only {' '.join(map(str, sorted(numbers)[:8]))}"
        for problem, numbers in sorted(kinds.items(), key=lambda item: -len(item[1]))
    ]
    return "\n".join(lines)


def about() -> dict[str, Any]:
    """The commit and the machine."""
    here = Path(__file__).parent
    command = ["git", "-C", str(here), "describe", "--always", "--dirty", "--abbrev=12"]
    said = subprocess.run(command, capture_output=True, text=True, check=False)
    return {
        "commit": said.stdout.strip(),
        "machine": f"{multiprocessing.cpu_count()} {platform.machine()} cores",
        "torch": torch.__version__,
    }


def options() -> argparse.Namespace:
    """Of the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--runs", type=int, default=1000)
    parser.add_argument("--first", type=int, default=0, help="number of the first run")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=2, help="processes")
    parser.add_argument("--only", type=int, nargs="+", help="numbers of the runs to train again")
    parser.add_argument("--result", type=Path, help="JSON file for cases and outcomes")
    return parser.parse_args()


def train_all(cases: list[Case], workers: int) -> list[dict[str, Any]]:
    """Trains the runs in several processes; an interrupt ends it with what there is."""
    results: list[dict[str, Any]] = []
    context = multiprocessing.get_context("spawn")
    with context.Pool(min(workers, len(cases)), quiet) as pool, suppress(KeyboardInterrupt):
        for result in tqdm(pool.imap_unordered(train, cases), desc="runs", total=len(cases)):
            results.append(result)
            if result["problems"]:
                tqdm.write(f"run {result['case']['number']}: {'; '.join(result['problems'])}")
    return results


def main() -> int:
    """Returns 1 if a run failed."""
    signal.signal(signal.SIGINT, signal.default_int_handler)  # in the background, too
    chosen = options()
    numbers = chosen.only or range(chosen.first, chosen.first + chosen.runs)
    cases = [draw(number, chosen.seed) for number in numbers]
    results = train_all(cases, chosen.workers)
    results.sort(key=lambda result: result["case"]["number"])
    if chosen.result:
        content = {**about(), "seed": chosen.seed, "results": results}
        write_atomically(chosen.result, json.dumps(content, indent=1).encode())
    if chosen.only:
        print(json.dumps(results, indent=1))
    print(table(results), complaints(results), sep="\n\n")
    return int(any(result["problems"] for result in results))


if __name__ == "__main__":
    sys.exit(main())
