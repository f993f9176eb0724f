"""`dqnlr memory`: what a folder of remembered runs holds, and what it says of the next run."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from lightning_dqnlr.cli.errors import errors_in_one_line
from lightning_dqnlr.errors import ConfigurationError
from lightning_dqnlr.memory.folder import Memory
from lightning_dqnlr.memory.picture import save_picture
from lightning_dqnlr.memory.runs import RememberedRun
from lightning_dqnlr.memory.suggest import Suggestion, suggest

_COLUMNS = ("file", "date", "steps", "ended", "held", "upper quartile", "peak", "result", "why")


def memory() -> None:
    """The command `dqnlr memory`."""
    parser = argparse.ArgumentParser(prog="dqnlr memory", description=__doc__.split(": ", 1)[1])
    parser.add_argument("folder", type=Path, help="as in DQNLRCallback(memory=...)")
    parser.add_argument("--picture", type=Path, help="draw metric over rate, fit and next run")
    parser.add_argument("--forget", metavar="FILE", help="delete the run of this file")
    arguments = parser.parse_args()
    with errors_in_one_line():
        _show(arguments)


def _show(arguments: argparse.Namespace) -> None:
    if not arguments.folder.is_dir():
        raise ConfigurationError(f"{arguments.folder} is no folder; name that of memory=...")
    remembered = Memory(arguments.folder)
    if arguments.forget:
        print(f"Forgotten: {remembered.forget(arguments.forget)}")
    models = models_of(remembered)
    if not models:
        print(f"No runs in {arguments.folder}.")
        return
    print("\n\n".join(_section(title, runs, found) for title, runs, found in models))
    if arguments.picture:
        pairs = [(title, found) for title, _, found in models]
        print(f"\nThe picture is {save_picture(pairs, arguments.picture)}")


def models_of(remembered: Memory) -> list[tuple[str, dict[Path, RememberedRun], Suggestion]]:
    """Title, runs and suggestion of each model and metric in a memory.

    Example:
        for title, runs, suggestion in models_of(Memory("lr-memory")):
            print(title, suggestion.held)
    """
    runs = remembered.runs()
    groups: dict[tuple[object, ...], dict[Path, RememberedRun]] = {}
    for path, run in runs.items():
        groups.setdefault((run.model, run.metric, run.mode), {})[path] = run
    found = []
    for own in groups.values():
        latest = list(own.values())[-1]
        suggestion = suggest(runs.values(), latest.model, latest.metric, latest.mode)
        found.append((_title(latest), own, suggestion))
    return found


def _title(run: RememberedRun) -> str:
    model = run.model
    batch = "" if model.batch_size is None else f", batch {model.batch_size}"
    steps = "unknown length" if model.horizon is None else f"{model.horizon:,} steps"
    size = f"{model.parameters:,} parameters"
    return f"{model.name} ({size}, {model.optimizer}{batch}, {steps}), by {run.metric}"


def _section(title: str, runs: dict[Path, RememberedRun], found: Suggestion) -> str:
    rows = [_COLUMNS, *(_row(path, run) for path, run in runs.items())]
    following = "the policy's own rates" if found.held is None else f"{found.held:.3g}"
    return f"{title}\n{_aligned(rows)}\nNext run: {following} ({found.why})"


def _row(path: Path, run: RememberedRun) -> tuple[str, ...]:
    return (
        path.name,
        run.date[:16].replace("T", " "),
        f"{run.steps:,}",
        run.ended,
        "policy" if run.held is None else f"{run.held:.3g}",
        f"{run.upper_quartile:.3g}",
        f"{run.peak:.3g}",
        "not finite" if run.value is None else f"{run.value:.5g}",
        run.why,
    )


def _aligned(rows: Sequence[tuple[str, ...]]) -> str:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]
    return "\n".join(lines)
