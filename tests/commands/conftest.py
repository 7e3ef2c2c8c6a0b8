"""Every table that a test of a command makes is readable at 80 columns."""

from __future__ import annotations

import io
from collections.abc import Iterator

import pytest
from rich.console import Console
from rich.table import Table

from fastblt.commands import output


@pytest.fixture(autouse=True)
def tables_are_readable(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Print every table again on a terminal of 80 columns: nothing may be cut or run over the edge."""
    made: list[Table] = []

    class Recorded(Table):
        def __init__(self, *args: object, **options: object) -> None:
            super().__init__(*args, **options)  # type: ignore[arg-type]
            made.append(self)

    monkeypatch.setattr(output, "Table", Recorded)
    yield
    for table in made:
        lines = printed(table, 80).splitlines()
        assert max(map(len, lines), default=0) <= 80, "\n".join(lines)
        assert not any("…" in line for line in lines), "\n".join(lines)


def printed(table: Table, width: int) -> str:
    """Return a table as a terminal of some width shows it."""
    console = Console(file=io.StringIO(), width=width, force_terminal=True, color_system=None)
    output.print_table(console, table)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()
