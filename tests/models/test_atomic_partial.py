"""A signal that raises at any line of a writer leaves what was there, or what was to be, and nothing beside it."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

from fastblt.models.atomic_file import write_file
from fastblt.models.atomic_folder import replacing_folder


def write_folder(path: Path) -> None:
    with replacing_folder(path) as new:
        (new / "content").write_text("new")


def interrupted_at(line: int, work: Callable[[], None]) -> bool:
    """Raise KeyboardInterrupt before the given line that the writers run, counted from 0; False: they have fewer."""
    left = line

    def trace(frame: FrameType, event: str, _: Any) -> Any:
        nonlocal left
        if not Path(frame.f_code.co_filename).name.startswith("atomic_"):
            return None
        if event == "line":
            left -= 1
            if left == -1:
                raise KeyboardInterrupt
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        work()
    except KeyboardInterrupt:
        return True
    finally:
        sys.settrace(before)
    return False


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_interrupted_at_any_line_a_writer_leaves_nothing_else(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.fsync", lambda descriptor: None)  # it takes milliseconds, two hundred times
    target = tmp_path / "target"
    content = target / "content" if kind == "folder" else target
    write = write_folder if kind == "folder" else lambda path: write_file(path, "new")
    if kind == "folder":
        target.mkdir()
    line = 0
    while True:
        content.write_text("old")
        interrupted = interrupted_at(line, lambda: write(target))
        assert [path.name for path in tmp_path.iterdir()] == ["target"], f"interrupted at line {line}"
        assert content.read_text() in ("old", "new")
        if not interrupted:
            break
        line += 1
    assert line > 40
    assert content.read_text() == "new"
