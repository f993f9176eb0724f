"""What a report is made of, before it is Markdown or HTML."""

from __future__ import annotations

from dataclasses import dataclass

NOTHING = "—"  # in the place of a figure that is missing


@dataclass(frozen=True)
class Table:
    """Cells as text; the first column names the row.

    Args:
        header: (C,) column titles.
        rows: (R, C) cells.
        marked: the first cells of the rows to set in bold.
    """

    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    marked: tuple[str, ...] = ()

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
    """An SVG element.

    Args:
        name: of its file.
        svg: the element.
        text: says in words what it shows.
        small: one of many beside each other.
    """

    name: str
    svg: str
    text: str
    small: bool = False


@dataclass(frozen=True)
class Heat:
    """A table whose numbers are coloured: blue below zero, orange above."""

    table: Table


@dataclass(frozen=True)
class Points:
    """A list of short statements."""

    items: tuple[str, ...]


@dataclass(frozen=True)
class Case:
    """One task looked at closely.

    Args:
        title: which.
        points: what there is to see.
        picture: of it.
    """

    title: str
    points: Points
    picture: Picture


Block = str | Points | Table | Heat | Picture | Case


@dataclass(frozen=True)
class Section:
    """A heading and what stands under it; folded if few readers need it."""

    title: str
    blocks: tuple[Block, ...]
    folded: bool = False
