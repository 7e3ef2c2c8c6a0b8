"""Tables, notes and progress bars."""

from __future__ import annotations

import io
import sys

import pytest
from rich.console import Console

from fastblt.commands import output
from fastblt.commands.output import add_row, left, make_table, note, print_table, progress, right, words


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def console(file: io.StringIO, width: int = 80) -> Console:
    return Console(file=file, width=width, markup=False, highlight=False)


def test_cells_are_no_markup() -> None:
    table = make_table(left("[a]"), words("[b]"), title="[c]")
    add_row(table, "pip install 'fastblt[tensorrt-rtx]'", "[bold]x[/bold]")
    file = io.StringIO()
    print_table(console(file), table)
    for text in ("[a]", "[b]", "[c]", "pip install 'fastblt[tensorrt-rtx]'", "[bold]x[/bold]"):
        assert text in file.getvalue()


def test_numbers_are_whole_where_there_is_no_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "20")
    table = make_table(left("method"), right("figure"), right("another figure"))
    add_row(table, "dv:8@one+partial", "1234567.89", "9876543.21")
    file = io.StringIO()
    print_table(console(file, 20), table)
    assert file.getvalue().splitlines()[-1].split() == ["dv:8@one+partial", "1234567.89", "9876543.21"]


def test_only_words_wrap(monkeypatch: pytest.MonkeyPatch) -> None:
    table = make_table(left("name"), words("text"))
    add_row(table, "one-long-name", "some words that are longer than the line")
    monkeypatch.setenv("COLUMNS", "30")
    narrow, wide = io.StringIO(), io.StringIO()
    print_table(console(narrow, 30), table)
    assert max(map(len, narrow.getvalue().splitlines())) <= 30
    assert "one-long-name" in narrow.getvalue()
    monkeypatch.delenv("COLUMNS")
    print_table(console(wide, 30), table)
    assert "some words that are longer than the line" in wide.getvalue()


@pytest.mark.parametrize(("terminal", "lines"), [(True, 2), (False, 1)])
def test_prose_wraps_on_terminals_alone(terminal: bool, lines: int) -> None:
    file = Terminal() if terminal else io.StringIO()
    note(Console(file=file, width=40, color_system=None), "some words that are longer than the line and go on")
    assert len(file.getvalue().splitlines()) == lines


def test_progress_is_for_terminals_and_shows_the_time_left(monkeypatch: pytest.MonkeyPatch) -> None:
    pipe = io.StringIO()
    monkeypatch.setattr(sys, "stderr", pipe)
    with progress("working") as on_progress:
        on_progress(1, 3, "a step")
    assert pipe.getvalue() == ""
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "80")
    with progress("working", redraw=False) as on_progress:
        on_progress(1, 3, "a step [x]")
        on_progress(2, 3, "another")
    shown = terminal.getvalue()
    assert all(text in shown for text in ("working", "1/3", "2/3", "a step [x]", "-:--:--"))


def test_bar_of_a_measurement_is_not_drawn_by_a_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[bool] = []
    original = output.Progress.__init__

    def spy(self: object, *args: object, **options: object) -> None:
        seen.append(bool(options["auto_refresh"]))
        original(self, *args, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(output.Progress, "__init__", spy)
    with progress("a", redraw=False), progress("b"):
        pass
    assert seen == [False, True]


@pytest.mark.parametrize(("no_color", "expected"), [("1", False), ("", True)])
def test_no_color_is_honored(no_color: str, expected: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", Terminal())
    monkeypatch.setenv("TERM", "xterm-256color")
    if no_color:
        monkeypatch.setenv("NO_COLOR", no_color)
    else:
        monkeypatch.delenv("NO_COLOR", raising=False)
    found = output.stdout()
    found.print("x", style="red")
    assert ("\x1b[31m" in found.file.getvalue()) is expected  # type: ignore[attr-defined]
