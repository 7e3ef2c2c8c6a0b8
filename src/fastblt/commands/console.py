"""Where commands print tables."""

from __future__ import annotations

from rich.console import Console

#: What the widest table needs; a file or a pipe has no width of its own.
TABLE_WIDTH = 138


def table_console() -> Console:
    """Standard output, wide enough for tables where it has no width of its own."""
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = TABLE_WIDTH
    return console
