"""Where commands print tables and show progress."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from fastblt.runtime.progress import OnProgress

#: What the widest table needs; a file or a pipe has no width of its own.
TABLE_WIDTH = 138


def table_console() -> Console:
    """Return a console for standard output, wide enough for tables where it has no width of its own."""
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = TABLE_WIDTH
    return console


@contextmanager
def progress_bar(title: str) -> Iterator[OnProgress]:
    """Show a bar with the time left on standard error, where that is a terminal; yield what moves it.

    The bar is drawn by the calls alone: a thread that redraws would disturb what is measured.
    """
    console = Console(stderr=True)
    columns = (
        TextColumn(title),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.description}"),
    )
    with Progress(
        *columns, console=console, transient=True, auto_refresh=False, disable=not console.is_terminal
    ) as bar:
        task = bar.add_task("", total=None)

        def on_progress(done: int, total: int, what: str) -> None:
            bar.update(task, completed=done, total=total, description=what, refresh=True)

        yield on_progress
