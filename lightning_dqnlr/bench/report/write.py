"""The benchmark's report: one HTML page, one Markdown page, and the pictures as files."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from pathlib import Path

from lightning_dqnlr.bench.report.blocks import Block, Case, Heat, Picture, Points, Section, Table
from lightning_dqnlr.bench.report.comparison import Comparison, Roles
from lightning_dqnlr.bench.report.page import page
from lightning_dqnlr.bench.report.pictures import standalone
from lightning_dqnlr.bench.report.sections import sections
from lightning_dqnlr.bench.runs.record import Record
from lightning_dqnlr.bench.tasks.task import APART
from lightning_dqnlr.errors import ConfigurationError
from lightning_dqnlr.files import write_atomically
from lightning_dqnlr.provenance import provenance

PAGE, MARKDOWN, PICTURES = "report.html", "report.md", "pictures"


def write_report(
    records: Sequence[Record],
    folder: Path,
    *,
    roles: Roles | None = None,
    command: str = "",
    trained_horizon: int | None = None,
    race_margin: float | None = None,
    apart: Collection[str] = frozenset(APART),
    planned: Collection[str] = (),
) -> Path:
    """Writes `report.html`, `report.md` and the pictures.

    Args:
        records: of any number of methods, tasks, LRs and seeds; what is missing is said.
        folder: made if missing; a report that is there is replaced.
        roles: whom the report is about, whom regret is relative to, whom overhead is relative to.
        command: that made the records, to be printed.
        trained_horizon: the longest run, in steps, that the subject's policy was trained on.
        race_margin: of the race that the grids were run as, see `comparison.survivors`.
        apart: splits that ask a question of their own; no table over all tasks has them.
        planned: names of the tasks that there should be records of.

    Returns:
        The HTML page.

    Raises:
        ConfigurationError: without records, if they contradict each other, without matplotlib, or
            if the folder cannot be written.
    """
    if not records:
        raise ConfigurationError("records is empty; run the benchmark first.")
    comparison = Comparison(records, roles, race_margin, apart)
    parts = [*sections(comparison, trained_horizon, planned), _origin(comparison, command)]
    title = f"{comparison.roles.subject} against {len(comparison.methods) - 1} other methods"
    folder = Path(folder)
    for picture in _pictures(parts):
        write_atomically(folder / _file(picture), standalone(picture.svg).encode())
    write_atomically(folder / MARKDOWN, markdown(title, parts).encode())
    return write_atomically(folder / PAGE, page(title, parts).encode())


def markdown(title: str, parts: Sequence[Section]) -> str:
    """The same report for a README or a terminal; small pictures stay on the page."""
    texts = [f"# {title}"]
    for part in parts:
        texts.append(f"## {part.title}")
        texts += [text for block in part.blocks if (text := _markdown(block))]
    return "\n\n".join(texts) + "\n"


def _markdown(block: Block) -> str:
    if isinstance(block, Points):
        return "\n".join(f"- {item}" for item in block.items)
    if isinstance(block, Heat):
        return block.table.markdown()
    if isinstance(block, Table):
        return block.markdown()
    if isinstance(block, Case):
        return f"**{block.title}**\n\n{_markdown(block.points)}"
    if isinstance(block, Picture):
        hidden = block.small or block.name.startswith("legend")
        return "" if hidden else f"![{block.text}]({_file(block)})"
    return block


def _file(picture: Picture) -> str:
    return f"{PICTURES}/{re.sub(r'[^A-Za-z0-9_.-]+', '-', picture.name)}.svg"


def _pictures(parts: Sequence[Section]) -> list[Picture]:
    blocks = [block for part in parts for block in part.blocks]
    blocks = [block.picture if isinstance(block, Case) else block for block in blocks]
    return [block for block in blocks if isinstance(block, Picture)]


def _origin(comparison: Comparison, command: str) -> Section:
    """Where the figures come from, so that they can be made again."""
    here, records = provenance(), comparison.records
    machine, versions = here["machine"], here["versions"]
    accelerators = ", ".join(machine["accelerators"]) or "no accelerator"
    made_by = sorted({record.version for record in records})
    policies = sorted({record.policy for record in records if record.policy})
    seeds = sorted({record.seed for record in records})
    hours = sum(record.seconds for record in records) / 3600
    items = [
        f"Command: {command}" if command else "",
        f"Report of {here['created']}, commit {here['commit'] or 'unknown'}.",
        "Versions: " + ", ".join(f"{name} {version}" for name, version in versions.items()) + ".",
        f"Machine: {machine['platform']}, {machine['cpus']} CPUs, {accelerators}.",
        f"{len(records)} runs, {hours:.1f} hours of training, {len(comparison.tasks)} tasks, "
        f"{len(comparison.methods)} methods, seeds {', '.join(map(str, seeds))}.",
        f"Versions of runs: {_some(made_by)}. Policy hashes: {_some(policies)}.",
    ]
    return Section("Where it comes from", (Points(tuple(item for item in items if item)),))


def _some(names: Sequence[str], shown: int = 6) -> str:
    more = f" and {len(names) - shown} more" if len(names) > shown else ""
    return (", ".join(names[:shown]) or "none") + more
