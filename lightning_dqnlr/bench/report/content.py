"""What a report is made of, before it is Markdown or HTML: text cells, tables, pictures, sections.

A block knows its Markdown. The HTML of each kind of block is in `page.html.jinja`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

from lightning_dqnlr.scoring.statistics import Estimate, Interval

Row = TypeVar("Row")
NOTHING = "—"  # in the place of a figure that is missing
LONG_CELL = 36  # columns with longer cells are words


def number(value: float, digits: int = 3) -> str:
    """The figure as text, without the sign of a zero and with a dash for NaN."""
    if math.isnan(value):
        return NOTHING
    text = f"{value:.{digits}f}"
    return text.removeprefix("-") if float(text) == 0 else text


def interval_text(interval: Interval, digits: int = 3) -> str:
    """`[0.057, 0.085]`."""
    return "[" + ", ".join(number(end, digits) for end in interval) + "]"


def with_interval(estimate: Estimate, digits: int = 3) -> str:
    """`0.069 [0.057, 0.085]`."""
    return f"{number(estimate.value, digits)} {interval_text(estimate.interval, digits)}"


def listed(names: Sequence[str], shown: int) -> str:
    """The first ones, and how many more there are; a dash for none."""
    more = f" and {len(names) - shown} more" if len(names) > shown else ""
    return (", ".join(names[:shown]) or NOTHING) + more


def share(value: float) -> str:
    """Per cent without decimals, unless that would round a few runs down to none."""
    return f"{value:.1%}" if 0 < value < 0.01 or 0.99 < value < 1 else f"{value:.0%}"


@dataclass(frozen=True)
class Table:
    """Cells as text; the first column names the row.

    Example:
        >>> print(Table(("method", "regret"), (("dqnlr", "0.01"),), marked=("dqnlr",)).markdown())
        | method | regret |
        | --- | ---: |
        | **dqnlr** | 0.01 |
    """

    header: tuple[str, ...]  # (C,)
    rows: tuple[tuple[str, ...], ...]  # (R, C)
    marked: tuple[str, ...] = ()  # first cells of the rows to set in bold
    heat: bool = False  # whether the page colours the numbers, blue below zero and orange above

    @classmethod
    def of(
        cls,
        rows: Iterable[Row],
        columns: Mapping[str, Callable[[Row], str]],
        marked: tuple[str, ...] = (),
    ) -> Table:
        """One row of cells for each of `rows`, from the functions that make a column's cells."""
        cells = tuple(tuple(cell(row) for cell in columns.values()) for row in rows)
        return cls(tuple(columns), cells, marked)

    def with_gap(self, name: str, reason: str) -> Table:
        """One more row, without figures for a reason."""
        gap = (name, reason, *[NOTHING] * (len(self.header) - 2))
        return replace(self, rows=(*self.rows, gap))

    @property
    def wordy(self) -> tuple[bool, ...]:
        """Whether each column holds words rather than figures, (C,)."""
        columns = range(len(self.header))
        return tuple(any(len(row[i]) > LONG_CELL for row in self.rows) for i in columns)

    def markdown(self) -> str:
        """A pipe table; the first column left, the others right aligned."""
        rule = ("---", *["---:"] * (len(self.header) - 1))
        rows = [self.header, rule, *map(self._bold, self.rows)]
        return "\n".join("| " + " | ".join(map(_escape, row)) + " |" for row in rows)

    def _bold(self, row: tuple[str, ...]) -> tuple[str, ...]:
        return (f"**{row[0]}**", *row[1:]) if row[0] in self.marked else row


def _escape(cell: str) -> str:
    return " ".join(cell.split()).replace("|", "\\|")


@dataclass(frozen=True)
class Picture:
    """An SVG element, which is a file, too."""

    name: str
    svg: str
    text: str  # says in words what it shows

    @property
    def file(self) -> str:
        return f"pictures/{re.sub(r'[^A-Za-z0-9_.-]+', '-', self.name)}.svg"

    def markdown(self) -> str:
        return f"![{self.text}]({self.file})"


@dataclass(frozen=True)
class Gallery:
    """Small pictures side by side under one legend, on the page only."""

    legend: Picture
    pictures: tuple[Picture, ...]

    def markdown(self) -> str:
        """Nothing: there are too many of them."""
        return ""


@dataclass(frozen=True)
class Bullets:
    """A list of short statements."""

    points: tuple[str, ...]

    def markdown(self) -> str:
        return "\n".join(f"- {point}" for point in self.points)


@dataclass(frozen=True)
class Case:
    """One task looked at closely; the picture is on the page only."""

    title: str
    bullets: Bullets
    picture: Picture

    def markdown(self) -> str:
        return f"**{self.title}**\n\n{self.bullets.markdown()}"


Block = str | Bullets | Table | Picture | Gallery | Case


@dataclass(frozen=True)
class Section:
    """A heading and what stands under it; without blocks, it is left out of the report."""

    title: str
    blocks: tuple[Block, ...]
    folded: bool = False  # whether the page shows the heading alone until it is clicked

    @property
    def pictures(self) -> tuple[Picture, ...]:
        """All of them, small ones included."""
        return tuple(picture for block in self.blocks for picture in _pictures(block))

    @property
    def words(self) -> bool:
        """Whether there is more than pictures."""
        return any(not isinstance(block, Picture) for block in self.blocks)

    def markdown(self, *, pictures: bool = True) -> str:
        """The section for a README, or without pictures for a terminal."""
        blocks = [b for b in self.blocks if pictures or not isinstance(b, Picture)]
        texts = (block if isinstance(block, str) else block.markdown() for block in blocks)
        return "\n\n".join([f"## {self.title}", *filter(None, texts)])


def _pictures(block: Block) -> tuple[Picture, ...]:
    if isinstance(block, Gallery):
        return (block.legend, *block.pictures)
    if isinstance(block, Case):
        return (block.picture,)
    return (block,) if isinstance(block, Picture) else ()
