"""The benchmark's report: one HTML page, one Markdown page, and the pictures as files."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from jinja2 import Environment, StrictUndefined

from lightning_dqnlr.bench.report import headline, one_task
from lightning_dqnlr.bench.report.calibration import calibration
from lightning_dqnlr.bench.report.comparison import SUBJECT, Comparison
from lightning_dqnlr.bench.report.content import NOTHING, Bullets, Section, listed
from lightning_dqnlr.bench.report.costs import what_it_costs
from lightning_dqnlr.bench.report.duels import Duel, against_each, duels
from lightning_dqnlr.bench.report.in_short import in_short, what_is_missing
from lightning_dqnlr.bench.report.losing import LostTask, losing, where_we_lose
from lightning_dqnlr.bench.report.sensitivity import how_much_the_lr_matters
from lightning_dqnlr.bench.report.trajectories import learning_rates_and_losses
from lightning_dqnlr.bench.runs.record import Record
from lightning_dqnlr.errors import ConfigurationError
from lightning_dqnlr.files import write_atomically
from lightning_dqnlr.provenance import provenance
from lightning_dqnlr.svg import standalone

_TEMPLATE = Path(__file__).with_name("page.html.jinja")
_FULL_COLOUR = 1.5  # regret at which a cell of the heat map is as strong as it gets
_WORSE = "213,94,0"
_BETTER = "0,114,178"


class WrittenReport(NamedTuple):
    """What came of a report."""

    page: Path  # HTML
    headline: str  # Markdown for a terminal: in short, what is missing, how good each method is


def write_report(
    records: Sequence[Record],
    folder: Path,
    *,
    command: str = "",
    race_margin: float | None = None,
    planned: Collection[str] = (),
) -> WrittenReport:
    """Writes `report.html`, `report.md` and the pictures.

    Args:
        records: of any number of methods, tasks, LRs and seeds; what is missing is said.
        folder: made if missing; a report that is there is replaced.
        command: that made the records, to be printed.
        race_margin: of the race that the grids were run as, see `record.survivors`.
        planned: names of the tasks that there should be records of.

    Raises:
        ConfigurationError: without records, if they contradict each other, without matplotlib, or
            if the folder cannot be written.

    Example:
        >>> report = write_report(list(store.records()), Path("outputs"))  # doctest: +SKIP
        >>> print(report.headline)  # doctest: +SKIP
    """
    if not records:
        raise ConfigurationError("records is empty; run the benchmark first.")
    comparison = Comparison(records, race_margin=race_margin)
    alone = one_task.fits(comparison)
    against = f"{SUBJECT} against {len(comparison.methods) - 1} other methods"
    title = f"{comparison.tasks[0]}: {against}" if alone else against
    rows = duels(comparison)
    lost = losing(comparison)
    if alone:
        short = _of_one_task(comparison, rows, planned)
    else:
        short = _of_many(comparison, rows, lost, planned)
    others = [*_details(comparison, rows, lost, alone), _origin(comparison, command)]
    if alone:
        others = [replace(part, folded=True) for part in (headline.how_good(comparison), *others)]
    parts = [part for part in (*short, *others) if part.blocks]
    for picture in (picture for part in parts for picture in part.pictures):
        write_atomically(Path(folder) / picture.file, standalone(picture.svg).encode())
    write_atomically(Path(folder) / "report.md", _markdown(title, parts).encode())
    page = write_atomically(Path(folder) / "report.html", _page(title, parts).encode())
    shown = _markdown(title, [part for part in short if part.words], pictures=False)
    return WrittenReport(page, shown)


def _of_many(
    comparison: Comparison,
    rows: Sequence[Duel],
    lost: Sequence[LostTask],
    planned: Collection[str],
) -> list[Section]:
    """What comes first, on the page and in the terminal."""
    short = [in_short(comparison, rows, lost), what_is_missing(comparison, planned)]
    return [*short, headline.how_good(comparison)] if comparison.ranked else short


def _of_one_task(
    comparison: Comparison, rows: Sequence[Duel], planned: Collection[str]
) -> list[Section]:
    """The same in a user's words: the picture, the verdict, the losses."""
    return [
        one_task.opening(comparison),
        one_task.verdict_in_short(comparison, rows),
        what_is_missing(comparison, planned),
        one_task.losses(comparison, rows),
    ]


def _details(
    comparison: Comparison, rows: Sequence[Duel], lost: Sequence[LostTask], alone: bool
) -> list[Section]:
    losses = headline.final_losses(comparison)
    if not comparison.ranked:
        return [losses]
    return [
        headline.how_fast(comparison),
        *([headline.regret_by_task(comparison)] if not alone else []),
        against_each(comparison, rows),
        where_we_lose(comparison, lost),
        headline.split_by_split(comparison),
        learning_rates_and_losses(comparison),
        calibration(comparison),
        how_much_the_lr_matters(comparison, drawn=alone),
        what_it_costs(comparison),
        losses,
    ]


def _markdown(title: str, parts: Sequence[Section], *, pictures: bool = True) -> str:
    texts = [f"# {title}", *(part.markdown(pictures=pictures) for part in parts)]
    return "\n\n".join(texts) + "\n"


def _page(title: str, parts: Sequence[Section]) -> str:
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    template = environment.from_string(_TEMPLATE.read_text(encoding="utf-8"))
    names = {
        "kind": lambda block: type(block).__name__,
        "heat_colour": _heat_colour,
        "nothing": NOTHING,
    }
    return template.render(title=title, parts=parts, **names)


def _heat_colour(cell: str) -> str:
    """Of a cell of the heat map: orange above zero, blue below."""
    strength = 0.75 * min(1.0, abs(float(cell)) / _FULL_COLOUR)
    return f"rgba({_WORSE if float(cell) > 0 else _BETTER},{strength:.2f})"


def _origin(comparison: Comparison, command: str) -> Section:
    """Where the figures come from, so that they can be made again."""
    here = provenance()
    machine = here["machine"]
    records = comparison.records
    accelerators = ", ".join(machine["accelerators"]) or "no accelerator"
    versions = ", ".join(f"{name} {version}" for name, version in here["versions"].items())
    seeds = ", ".join(map(str, sorted({record.seed for record in records})))
    made_by = sorted({record.version for record in records})
    policies = sorted({record.policy for record in records if record.policy}) or ["none"]
    hours = sum(record.seconds for record in records) / 3600
    items = [
        f"Command: {command}" if command else "",
        f"Report of {here['created']}, commit {here['commit'] or 'unknown'}.",
        f"Versions: {versions}.",
        f"Machine: {machine['platform']}, {machine['cpus']} CPUs, {accelerators}.",
        f"{len(records)} runs, {hours:.1f} hours of training, {len(comparison.tasks)} tasks, "
        f"{len(comparison.methods)} methods, seeds {seeds}.",
        f"Versions of runs: {listed(made_by, 6)}. Policy hashes: {listed(policies, 6)}.",
    ]
    return Section("Where it comes from", (Bullets(tuple(filter(None, items))),))
