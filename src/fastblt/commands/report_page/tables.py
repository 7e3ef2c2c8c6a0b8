"""Lays out the tables of the page: names on the left, a bar, numbers on the right."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple
from xml.etree.ElementTree import Element

from fastblt.commands.report_page.markup import Child, element
from fastblt.commands.report_page.terms import backend_term, method_term
from fastblt.runtime.measure.bench.rows import BenchRow

#: Kinds of columns, which are also classes of the style sheet.
NAME, BAR, NUMBER, WORDS = "name", "graph", "number", "prose"
MISSING = "–"


class Column(NamedTuple):
    """Holds the head of a column."""

    kind: str
    head: Child = None
    swatch: str | None = None
    """Class of the color that the column stands for in a bar."""


def table(columns: Sequence[Column], rows: Iterable[Sequence[Child]], caption: str) -> Element:
    """Return a table that scrolls by itself where it is too wide.

    Args:
        columns: heads.
        rows: cells; those of column `NAME` are the heads of their rows.
        caption: what it shows, for those who cannot see it.
    """
    head = element("tr", *map(_head, columns))
    body = (
        element("tr", *(_cell(column.kind, cell) for column, cell in zip(columns, row, strict=True))) for row in rows
    )
    made = element("table", element("caption", caption), element("thead", head), element("tbody", *body))
    return element("div", made, class_="wide", tabindex="0", role="group", aria_label=caption)


def _head(column: Column) -> Element:
    swatch = element("i", class_=f"swatch {column.swatch}") if column.swatch else None
    return element("th", swatch, column.head, class_=column.kind, scope="col")


def _cell(kind: str, cell: Child) -> Element:
    return element("th", cell, class_=kind, scope="row") if kind == NAME else element("td", cell, class_=kind)


def section(name: str, title: str, lead: Sequence[Child], *content: Child) -> Element:
    """Return a part of the page: its title, a sentence or two, and what follows."""
    return element(
        "section", element("h2", title), element("p", *lead, class_="lead"), *content, id=name, aria_label=title
    )


def contender(row: BenchRow, *, of: str) -> Element:
    """Return the name of a row: its method, and its backend where that is not the one that the page is about."""
    if row.backend == of:
        return element("span", method_term(row.method))
    return element("span", method_term(row.method), " ", element("small", "in ", backend_term(row.backend)))


def times(value: float | None) -> str:
    """Return a ratio as text."""
    return MISSING if value is None else f"{value:.2f}×"


def count(value: float | None, digits: int = 0) -> str:
    """Return a number as text, with separators of thousands."""
    return MISSING if value is None else f"{value:,.{digits}f}"


def share(value: float | None, digits: int = 0) -> str:
    """Return a part of a whole as percent."""
    return MISSING if value is None else f"{100 * value:.{digits}f} %".replace("-", "−")
