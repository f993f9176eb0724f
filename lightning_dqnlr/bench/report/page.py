"""The report as one HTML page that fetches nothing."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from lightning_dqnlr.bench.report.blocks import (
    NOTHING,
    Block,
    Case,
    Heat,
    Picture,
    Points,
    Section,
    Table,
)

FULL_COLOUR = 1.5  # regret at which a cell of the heat map is as strong as it gets
WORDS = 36  # columns with longer cells are text
_WORSE, _BETTER = "213,94,0", "0,114,178"

_STYLE = """
:root{color-scheme:light dark;--paper:#fff;--ink:#1b1b1b;--soft:#5c6168;--grid:#d8d8d8;
--shade:#f4f5f6}
@media (prefers-color-scheme:dark){
:root{--paper:#161a1f;--ink:#e4e4e4;--soft:#a3a9b1;--grid:#3a3f46;--shade:#1f242a}}
*{box-sizing:border-box}
body{margin:0 auto;padding:1.5rem clamp(1rem,4vw,3rem) 4rem;max-width:1180px;
background:var(--paper);color:var(--ink);font:16px/1.5 system-ui,"Segoe UI",Roboto,Arial,sans-serif}
h1{font-size:1.8rem;line-height:1.2;margin:.5rem 0}
h2{font-size:1.3rem;margin:2.6rem 0 .6rem;padding-top:.6rem;border-top:1px solid var(--grid)}
h3{font-size:1.02rem;margin:1.8rem 0 .2rem}
article{break-inside:avoid}article ul{margin:.2rem 0}
p,li{max-width:78ch}
nav{display:flex;flex-wrap:wrap;gap:.2rem 1.1rem;font-size:.9rem;margin:.8rem 0}
a{color:inherit;text-decoration-color:var(--soft);text-underline-offset:.2em}
.wide{overflow-x:auto;margin:.8rem 0}
table{border-collapse:collapse;font-size:.84rem;font-variant-numeric:tabular-nums}
th,td{padding:.3rem .6rem;text-align:right;vertical-align:bottom;
border-bottom:1px solid var(--grid)}
td{vertical-align:top;white-space:nowrap}
.words{text-align:left}td.words{white-space:normal;min-width:13rem}
th{font-weight:600;color:var(--soft);max-width:11rem}
th:first-child{text-align:left;position:sticky;left:0;background:var(--paper)}
th[scope=row]{font-weight:400;color:inherit;white-space:nowrap;vertical-align:top}
tr.marked td,tr.marked th{background:var(--shade);font-weight:700}
table.heat{font-size:.78rem}
table.heat th[scope=col]:not(:first-child){writing-mode:vertical-rl;transform:rotate(180deg);
text-align:left;padding:.5rem .2rem;vertical-align:top}
table.heat td{padding:.25rem .4rem;border:1px solid var(--paper)}
.many{display:grid;grid-template-columns:repeat(auto-fill,minmax(300px,1fr));gap:1rem}
figure{margin:.8rem 0;break-inside:avoid}
.many figure{margin:0}
figure svg{width:100%;height:auto;max-width:100%;display:block}
figure.legend svg{width:auto}
summary{cursor:pointer}summary h2{display:inline-block;border:0;margin:1rem 0}
@media print{
:root{--paper:#fff;--ink:#000;--soft:#444;--grid:#ccc;--shade:#f2f2f2}
body{max-width:none;padding:0;font-size:10pt}nav{display:none}.wide{overflow:visible}
table{font-size:7pt}table.heat{font-size:6.5pt}th,td{padding:.15rem .25rem}
th:first-child{position:static}td,th[scope=row]{white-space:normal}
.many{grid-template-columns:repeat(3,1fr)}tr,figure,li{break-inside:avoid}h2{break-after:avoid}
*{-webkit-print-color-adjust:exact;print-color-adjust:exact}}
"""


def page(title: str, parts: Sequence[Section]) -> str:
    """The whole document."""
    links = "".join(f'<a href="#part-{i}">{escape(p.title)}</a>' for i, p in enumerate(parts))
    body = "\n".join(_section(part, f"part-{i}") for i, part in enumerate(parts))
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>{escape(title)}</title><style>{_STYLE}</style></head>\n"
        f"<body><h1>{escape(title)}</h1><nav>{links}</nav>\n{body}\n</body></html>\n"
    )


def _section(part: Section, name: str) -> str:
    heading = f"<h2>{escape(part.title)}</h2>"
    inner = "\n".join(_groups(part.blocks))
    if part.folded:
        return f'<details id="{name}"><summary>{heading}</summary>{inner}</details>'
    return f'<section id="{name}">{heading}{inner}</section>'


def _groups(blocks: Sequence[Block]) -> list[str]:
    """Small pictures that follow each other share a grid."""
    texts: list[str] = []
    small: list[str] = []
    for block in blocks:
        if isinstance(block, Picture) and block.small:
            small.append(_block(block))
            continue
        texts += _grid(small)
        small = []
        texts.append(_block(block))
    return texts + _grid(small)


def _grid(figures: Sequence[str]) -> list[str]:
    return [f'<div class="many">{"".join(figures)}</div>'] if figures else []


def _block(block: Block) -> str:
    if isinstance(block, Points):
        return "<ul>" + "".join(f"<li>{escape(item)}</li>" for item in block.items) + "</ul>"
    if isinstance(block, Heat):
        return _table(block.table, heat=True)
    if isinstance(block, Table):
        return _table(block)
    if isinstance(block, Picture):
        return _figure(block)
    if isinstance(block, Case):
        points = _block(block.points)
        return f"<article><h3>{escape(block.title)}</h3>{points}{_figure(block.picture)}</article>"
    return f"<p>{escape(block)}</p>"


def _figure(picture: Picture) -> str:
    kind = ' class="legend"' if picture.name.startswith("legend") else ""
    return f'<figure{kind} role="img" aria-label="{escape(picture.text)}">{picture.svg}</figure>'


def _table(table: Table, heat: bool = False) -> str:
    wordy = [any(len(row[i]) > WORDS for row in table.rows) for i in range(len(table.header))]
    head = "".join(
        f'<th scope="col"{_kind(words)}>{escape(title)}</th>'
        for title, words in zip(table.header, wordy, strict=True)
    )
    rows = "".join(
        f'<tr{_mark(row[0] in table.marked)}><th scope="row">{escape(row[0])}</th>'
        + "".join(
            _heat_cell(cell) if heat else _cell(cell, words)
            for cell, words in zip(row[1:], wordy[1:], strict=True)
        )
        + "</tr>"
        for row in table.rows
    )
    kind = ' class="heat"' if heat else ""
    return f'<div class="wide"><table{kind}><tr>{head}</tr>{rows}</table></div>'


def _mark(marked: bool) -> str:
    return ' class="marked"' if marked else ""


def _cell(text: str, words: bool) -> str:
    return f"<td{_kind(words)}>{escape(text)}</td>"


def _kind(words: bool) -> str:
    return ' class="words"' if words else ""


def _heat_cell(text: str) -> str:
    if text == NOTHING:
        return f'<td title="missing">{NOTHING}</td>'
    value = float(text)
    strength = 0.75 * min(1.0, abs(value) / FULL_COLOUR)
    colour = _WORSE if value > 0 else _BETTER
    return f'<td style="background:rgba({colour},{strength:.2f})">{text}</td>'
