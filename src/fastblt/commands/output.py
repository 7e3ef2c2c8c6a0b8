"""How commands print: tables, notes and progress bars.

What is printed may come from files: control characters become escapes (`visible`), so that a name in a manifest neither
moves the cursor nor looks like a line of ours. Nothing is markup: ``[x]`` stays.

Results go to standard output; notes and progress go to standard error, progress to a terminal only. Colors and other
escape codes appear on terminals only, and colors not where ``NO_COLOR`` is set; rich takes care of both.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from rich import box
from rich.cells import cell_len
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.status import Status
from rich.table import Column, Table
from rich.text import Text

from fastblt.commands.escapes import visible, visible_lines
from fastblt.runtime.progress import OnProgress

#: Least width of a column of text that wraps.
_NARROWEST = 12


class PlainConsole(Console):
    """Prints text in which control characters have become escapes."""

    def __init__(self, *, stderr: bool = False) -> None:
        super().__init__(stderr=stderr, highlight=False, markup=False)
        # A note that nobody can read is no reason to fail.
        self._ignored: tuple[type[BaseException], ...] = (OSError,) if stderr else ()

    def print(self, *objects: Any, **options: Any) -> None:
        """Print tables, or text in one line."""
        with suppress(*self._ignored):
            super().print(*(visible(each) if isinstance(each, str) else each for each in objects), **options)

    def out(self, *objects: Any, **options: Any) -> None:
        """Print text that may have several lines, none of which is wrapped or cut."""
        text = visible_lines(" ".join(map(str, objects)))
        with suppress(*self._ignored):
            super().print(text, emoji=False, no_wrap=True, overflow="ignore", crop=False, **options)

    def status(self, status: Any, **options: Any) -> Status:
        """Show what is being done while the body runs; nothing where this is no terminal."""
        return super().status(Text(visible(status)), **options)


def stdout() -> Console:
    """Return a console for results."""
    return PlainConsole()


def stderr() -> Console:
    """Return a console for notes and progress."""
    return PlainConsole(stderr=True)


def left(heading: str) -> Column:
    """Return a column of names."""
    return Column(Text(heading), no_wrap=True)


def words(heading: str) -> Column:
    """Return a column of text that may wrap."""
    return Column(Text(heading), overflow="fold")


def right(heading: str) -> Column:
    """Return a column of numbers."""
    return Column(Text(heading), justify="right", no_wrap=True)


def make_table(*columns: Column, title: str = "", header: bool = True) -> Table:
    """Return an empty table; `add_row` fills it."""
    return Table(
        *columns,
        title=Text(visible(title), style="bold") if title else None,
        title_justify="left",
        box=box.SIMPLE_HEAD if header else None,
        show_edge=False,
        show_header=header,
        pad_edge=False,
        padding=(0, 1, 0, 0) if header else (0, 2, 0, 0),
    )


def add_row(table: Table, *cells: str, bold: bool = False) -> None:
    """Append a row; a cell is one line of plain text."""
    table.add_row(*(Text(visible(cell)) for cell in cells), style="bold" if bold else None)


def print_table(console: Console, table: Table) -> None:
    """Print a table; only columns of `words` are wrapped, and nothing is cut.

    A table of names and numbers that is too wide runs over the edge of the console instead of losing digits. A file or
    a pipe has no width, unless ``COLUMNS`` specifies one: nothing is wrapped there.
    """
    for column in table.columns:
        lines = [line for text in (column.header, *column.cells) for line in str(text).split("\n")]
        column.min_width = max(map(cell_len, lines)) if column.no_wrap else _NARROWEST
    natural = console.measure(table, options=console.options.update(max_width=10_000)).maximum
    width = natural
    if console.is_terminal or "COLUMNS" in os.environ:
        gaps = 2 * (len(table.columns) - 1)
        width = min(natural, max(console.width, gaps + sum(column.min_width or 0 for column in table.columns)))
    title, table.title = table.title, None
    if title is not None:
        console.print(title, soft_wrap=not console.is_terminal)
    before, console.width = console.width, width
    console.print(table)
    console.width, table.title = before, title


def note(console: Console, text: str) -> None:
    """Print prose: wrapped between words on a terminal, in one line into a file or a pipe."""
    console.print(text, soft_wrap=not console.is_terminal)


@contextmanager
def progress(label: str, *, redraw: bool = True, delay: float = 0.0) -> Iterator[OnProgress]:
    """Show a progress bar with the time left while the body runs; nothing where standard error is no terminal.

    Args:
        label: what takes so long.
        redraw: draw the bar again several times a second. False: only when it is told of progress, because a thread
            that draws would disturb what is being measured.
        delay: seconds that the work may take before anything is shown.

    Yields:
        What the work calls after each of its steps.
    """
    console = stderr()
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=20),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[what]}", markup=False),
    )
    shown = Progress(*columns, console=console, transient=True, auto_refresh=redraw, disable=not console.is_terminal)
    began = time.monotonic()
    task = shown.add_task(visible(label), total=None, what="")

    def show_when_due() -> bool:
        due = shown.live.is_started or time.monotonic() - began >= delay
        if due:
            shown.start()
        return due

    try:
        show_when_due()

        def report(done: int, total: int, what: str) -> None:
            shown.update(task, completed=done, total=total, what=visible(what))
            if show_when_due() and not redraw:
                shown.refresh()

        yield report
    finally:
        if shown.live.is_started:
            shown.stop()


def percent(value: float | None, digits: int = 1) -> str:
    """Return a share as text, ``-`` for None."""
    return "-" if value is None else f"{100 * value:.{digits}f} %"


def number(value: float | None, form: str = ".3f") -> str:
    """Return a number as text, ``-`` for None."""
    return "-" if value is None else format(value, form)


def megabytes(size: float) -> str:
    """Return bytes as megabytes, two digits after the point."""
    return f"{size / 1e6:,.2f}"
