"""Tables whose columns are described by what they show of a row."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from rich.table import Table

from fastblt.commands.output import add_row, left, make_table, right

R = TypeVar("R")


@dataclass(frozen=True)
class Field(Generic[R]):
    """Describes a column of numbers."""

    heading: str
    cell: Callable[[R], str]
    wide: bool = False
    """Whether only ``--wide`` shows it."""


def fields_table(
    title: str, rows: Sequence[R], names: Mapping[str, Callable[[R], str]], fields: Sequence[Field[R]], *, wide: bool
) -> Table:
    """Return a table; a field whose cells are all empty is left out, unless all columns are wanted.

    Args:
        title: above the table.
        rows: one line each.
        names: columns that name a row, by heading.
        fields: the others.
        wide: whether all columns are wanted.
    """
    cells = {field: [field.cell(row) for row in rows] for field in fields if wide or not field.wide}
    shown = {field: texts for field, texts in cells.items() if wide or set(texts) != {"-"}}
    table = make_table(*map(left, names), *(right(field.heading) for field in shown), title=title)
    for index, row in enumerate(rows):
        add_row(table, *(name(row) for name in names.values()), *(texts[index] for texts in shown.values()))
    return table
