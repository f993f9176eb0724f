"""`dqnlr-bench`: configuration to a suite, its missing runs, and the report."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf, open_dict
from tqdm import tqdm  # type: ignore[import-untyped]

from lightning_dqnlr.checks import check_choice, check_integer, check_kind
from lightning_dqnlr.cli.errors import FULL_ERROR, command, errors_in_one_line
from lightning_dqnlr.cli.spelling import check_added
from lightning_dqnlr.cli.targets import with_present_targets
from lightning_dqnlr.errors import ConfigurationError

if TYPE_CHECKING:
    from lightning_dqnlr.bench.runs.archive import Store
    from lightning_dqnlr.bench.runs.record import Record
    from lightning_dqnlr.bench.runs.run import PlannedRun
    from lightning_dqnlr.bench.runs.suite import Progress, Suite
    from lightning_dqnlr.bench.tasks.task import BenchTask

_GO_ON = "what was finished is stored, and the same command goes on with what is missing"


def bench() -> None:
    """The console script `dqnlr-bench`."""
    os.environ[FULL_ERROR] = "1"  # makes Hydra let errors through instead of printing its own way
    with errors_in_one_line(_GO_ON, "bench"):
        _app()


@hydra.main(version_base="1.3", config_path="pkg://lightning_dqnlr.conf", config_name="bench")
def _app(config: DictConfig) -> None:
    # Here too: Hydra announces errors that leave a job.
    with errors_in_one_line(_GO_ON, "bench"):
        check_added(list(HydraConfig.get().overrides.task), "bench")
        run(config, str(HydraConfig.get().runtime.choices["suite"]))


def run(config: DictConfig, name: str) -> Path | None:
    """Makes the suite's missing runs, then writes and shows its report in the folder of its name.

    Returns:
        The report's page; None for a dry run and for packing.

    Raises:
        ConfigurationError: a value cannot work, or a process was killed.
    """
    from lightning_dqnlr.bench.methods import with_policies
    from lightning_dqnlr.bench.runs import suite as suites
    from lightning_dqnlr.bench.runs.archive import Archive, Store

    for key in ("pack", "retry_failed", "dry_run", "report_only"):  # `dry_run=no` is text
        check_choice(key, config[key], (True, False))
    check_kind("folder", config.folder, str)
    config = with_present_targets(config)
    workers = _workers(config.workers)
    suite = suites.with_further(instantiate(config.suite), list(config.policies))
    folder = Path(config.folder)
    archive = None if config.archive is None else Archive(config.archive)
    runs = list(suites.plan(suite, _tasks(config), with_policies(config.policies)))
    store = Store(folder / "runs", archive)
    if config.pack:
        _pack(runs, store)
        return None
    if config.report_only and not config.dry_run:
        return _report(_some_stored(runs, store), runs, folder / name, suite)
    retry = bool(config.retry_failed)
    margin = suite.race_margin
    first = suites.rounds(runs, store, margin)
    todo = suites.missing(first.wanted, store, retry_failed=retry)
    later = suites.missing(first.undecided, store)
    seconds = suites.estimate(todo, workers) + suites.SHARE * suites.estimate(later, workers)
    print(
        f"suite={name}: {len(first.wanted)} runs, {len(first.wanted) - len(todo)} of them stored "
        f"in {folder}"
        + (f"; about a third of {len(later)} further seeds follow" if later else "")
        + _how_long(seconds, workers, known="task" not in config),
        flush=True,
    )
    if config.dry_run:
        return None
    follow = suites.SHARE * suites.estimate(later, 1)  # after the first of two rounds
    for missing_now in suites.missing_in_rounds(runs, store, margin, retry_failed=retry):
        _make(missing_now, store, workers, follow)
        follow = 0.0
    return _report(_stored(runs, store), runs, folder / name, suite)


def _how_long(seconds: float, workers: int, *, known: bool) -> str:
    """The end of a sentence. How long runs of a user's own task take is known after the first."""
    if not seconds:
        return ". Nothing is missing."
    if not known:
        return f". {workers} processes make the others; the first run tells how long that takes."
    return f". The others take {_about(seconds)} on {workers} processes."


def _about(seconds: float) -> str:
    """`about 3 minutes`."""
    if seconds < 60:
        return "less than a minute"
    minutes = round(seconds / 60)
    count, unit = (minutes, "minute") if minutes < 100 else (round(minutes / 60), "hour")
    return f"about {count} {unit}{'s' * (count > 1)}"


def _make(runs: Sequence[PlannedRun], store: Store, workers: int, follow: float) -> None:
    from lightning_dqnlr.bench.runs.suite import complete

    # A line a second would flood a log file, in which carriage returns do not rewrite.
    with tqdm(
        total=len(runs),
        mininterval=0.2 if sys.stderr.isatty() else 30.0,
        bar_format="{percentage:3.0f}%|{bar:20}| run {n_fmt}/{total_fmt} {postfix}",
        disable=not runs,
    ) as bar:
        refused = complete(runs, store, workers, partial(_show, bar), follow)
    for method, reason in refused.items():
        print(f"Left out {method}: {reason}")


def _stored(runs: Sequence[PlannedRun], store: Store) -> list[Record]:
    return [record for run in runs if (record := store.get(run.key)) is not None]


def _some_stored(runs: Sequence[PlannedRun], store: Store) -> list[Record]:
    records = _stored(runs, store)
    if not records:
        archive = None if store.archive is None else store.archive.folder
        raise ConfigurationError(
            f"report_only=true, and archive={archive} and the folder hold no record of these runs. "
            "The archive's path counts from where the command is started: start it in the "
            "repository, give archive=FOLDER, or make the runs with report_only=false."
        )
    return records


def _pack(runs: Sequence[PlannedRun], store: Store) -> None:
    if store.archive is None:
        raise ConfigurationError(
            "pack=true needs a folder to pack into: archive=benchmarks/records."
        )
    records = _stored(runs, store)
    count = store.archive.pack(records, [run.key for run in runs])
    print(
        f"{len(records)} of {len(runs)} runs packed; {store.archive.folder} holds {count} of them."
    )


def _show(bar: Any, progress: Progress) -> None:
    """Time left and the last run on the line of the bar; failures above it."""
    latest = progress.latest
    minutes, seconds = divmod(round(progress.seconds_left), 60)
    if progress.failure is not None:
        which = f"{latest.method.name} on {latest.task.name}, lr {latest.lr}, seed {latest.seed}"
        bar.write(f"Failed: {which}: {progress.failure}", file=sys.stderr)
    if progress.over == 1 and latest.task.split == "your own":
        bar.write(f"By the first run, the others take {_about(progress.seconds_left)}.")
    left = f"time left {minutes // 60}:{minutes % 60:02d}:{seconds:02d}"
    bar.set_postfix_str(f"{left}, {latest.task.name}, {latest.method.name}", False)
    bar.update()


def _report(
    records: Sequence[Record], runs: Sequence[PlannedRun], folder: Path, suite: Suite
) -> Path:
    from lightning_dqnlr.bench.report.write import write_report

    report = write_report(
        records,
        folder,
        command=command(),
        race_margin=suite.race_margin,
        planned=dict.fromkeys(run.task.name for run in runs),
    )
    print(report.headline)
    print(f"The whole report: {report.page.resolve()}", flush=True)
    return report.page


def _tasks(config: DictConfig) -> Sequence[BenchTask]:
    from lightning_dqnlr.bench.runs.suite import your_own
    from lightning_dqnlr.bench.tasks import TASKS
    from lightning_dqnlr.bench.tasks.real import REAL_TASKS
    from lightning_dqnlr.tasks.task import Task

    if "task" not in config:
        return (*TASKS, *REAL_TASKS)
    node: Any = config.task
    module = node.get("module")
    if OmegaConf.is_dict(module) and "_partial_" not in module:
        with open_dict(module):
            module["_partial_"] = True  # a class, so that every seed has weights of its own
    task = instantiate(node, _convert_="all")
    if not isinstance(task, Task):
        raise ConfigurationError(
            f"task._target_ gives {type(task).__name__}; it must name a function that returns a "
            "Task, such as lightning_dqnlr.tasks.Task.from_lightning."
        )
    return [your_own(task, config.lr)]


def _workers(wanted: int | None) -> int:
    """As many as wanted, or as there are cores that this process may use."""
    check_integer("workers", wanted, 1, optional=True)
    if wanted is None and hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return wanted or os.cpu_count() or 1
