"""The one line against the default training of public libraries, each in its own environment.

    make libraries      # environments, runs, table
    python examples/libraries/compare.py --seeds 0 --results examples/libraries/results.json

The second line makes no runs: it prints the table of those that ship.

Every library is a script beside this one, called with a Python that has it installed. A run is made
once: what the file of results holds is not made again, so an interrupted comparison goes on.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import threading
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

from tqdm import tqdm

from lightning_dqnlr.files import write_atomically

HERE = Path(__file__).parent
ARMS = ("default", "callback", "3x", "10x")
# The script of each library's runs; its environment has the library's name.
SCRIPTS = {
    "darts": "darts_tsmixer.py",
    "deeptab": "deeptab_ft_transformer.py",
    "pytorch_tabular": "pytorch_tabular_mlp.py",
    "gluonts": "gluonts_deepar.py",
    "neuralforecast": "neuralforecast_nhits.py",
    "scvi": "scvi_vae.py",
    "pytorch_forecasting": "pytorch_forecasting_nbeats.py",
}

Record = dict[str, Any]


class Run(NamedTuple):
    """One run: with which library, from which seed, in which arm."""

    library: str
    seed: int
    arm: str


class Results:
    """The records of runs in a JSON file, which is whole at any time.

    Args:
        path: the file; it need not be there yet.

    Example:
        >>> Results(Path("no-such-file.json")).records
        []
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.records: list[Record] = json.loads(path.read_text()) if path.exists() else []
        self._lock = threading.Lock()

    def missing(self, libraries: Iterable[str], seeds: int) -> dict[str, list[Run]]:
        """The runs that are still to be made, by library, a seed's arms together."""
        made = {Run(each["library"], each["seed"], each["arm"]) for each in self.records}
        wanted = {
            library: [Run(library, seed, arm) for seed, arm in product(range(seeds), ARMS)]
            for library in libraries
        }
        left = {name: [run for run in runs if run not in made] for name, runs in wanted.items()}
        return {name: runs for name, runs in left.items() if runs}

    def add(self, record: Record) -> None:
        """Adds a record and writes the file, a line for each, in a fixed order."""
        with self._lock:
            self.records.append(record)
            names = list(SCRIPTS)
            order = lambda each: (names.index(each["library"]), each["seed"], each["arm"])  # noqa: E731
            self.records.sort(key=order)
            lines = ",\n".join(json.dumps(each, allow_nan=False) for each in self.records)
            write_atomically(self.path, f"[\n{lines}\n]\n".encode())


def make(python: Path, runs: list[Run]) -> Iterator[Record]:
    """Makes runs of one library, and yields the record of each as it ends.

    Args:
        python: the interpreter of the library's environment.
        runs: of one library.
    """
    library = runs[0].library
    command = [str(python), str(HERE / SCRIPTS[library])]
    command += [f"{run.arm}:{run.seed}" for run in runs]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        for line in process.stdout or ():
            if line.startswith("record "):
                yield {"library": library, **json.loads(line.removeprefix("record "))}
    if process.returncode:
        raise SystemExit(f"{' '.join(command)} ended with code {process.returncode}.")


def make_all(results: Results, missing: dict[str, list[Run]], places: Path, jobs: int) -> None:
    """Makes what is missing, libraries side by side, under one progress bar.

    Args:
        results: where records go.
        missing: runs by library.
        places: the folder of the environments.
        jobs: how many libraries at a time.
    """
    with tqdm(total=sum(map(len, missing.values())), desc="runs", smoothing=0) as bar:

        def one(library: str) -> None:
            for record in make(places / library / "bin" / "python", missing[library]):
                results.add(record)
                bar.set_postfix_str(f"{library} {record['arm']} {record['seed']}")
                bar.update()

        with ThreadPoolExecutor(jobs) as pool:
            list(pool.map(one, missing))


def first_figures(records: list[Record], library: str, arm: str) -> list[float]:
    """The figure that counts of each run, by seed; infinite where a run failed or diverged."""
    chosen = [each for each in records if each["library"] == library and each["arm"] == arm]
    chosen.sort(key=lambda each: each["seed"])
    first = [next(iter(each["figures"].values()), None) for each in chosen]
    return [float("inf") if figure is None else figure for figure in first]


def report(records: list[Record]) -> str:
    """A table: medians over seeds with the worst, and how often the callback beat the default."""
    head = "| library | figure | " + " | ".join(ARMS) + " | callback / default | seeds won |"
    lines = [head, "| --- | --- |" + " ---: |" * (len(ARMS) + 2)]
    for library in [name for name in SCRIPTS if any(each["library"] == name for each in records)]:
        by_arm = {arm: first_figures(records, library, arm) for arm in ARMS}
        cells = [f"{statistics.median(by_arm[arm]):.4g} ({max(by_arm[arm]):.4g})" for arm in ARMS]
        ratio = statistics.median(by_arm["callback"]) / statistics.median(by_arm["default"])
        pairs = list(zip(by_arm["callback"], by_arm["default"], strict=True))
        won = sum(ours < theirs for ours, theirs in pairs)
        named = next(each for each in records if each["library"] == library and each["figures"])
        cells = [library, next(iter(named["figures"])), *cells, f"{ratio:.3f}"]
        lines.append("| " + " | ".join([*cells, f"{won} of {len(pairs)}"]) + " |")
    return "\n".join(lines)


def main() -> None:
    """Makes the runs that are missing, and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--libraries", nargs="+", choices=SCRIPTS, default=list(SCRIPTS))
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--results", type=Path, default=Path("outputs/libraries.json"))
    parser.add_argument("--environments", type=Path, default=Path(".venv-libraries"))
    parser.add_argument("--jobs", type=int, default=1, help="libraries side by side")
    arguments = parser.parse_args()
    results = Results(arguments.results)
    missing = results.missing(arguments.libraries, arguments.seeds)
    if missing:
        make_all(results, missing, arguments.environments, arguments.jobs)
    print(report(results.records))


if __name__ == "__main__":
    main()
