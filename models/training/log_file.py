"""Writes the evaluations of a run, one JSON object a line."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from fastblt.models.atomic_file import write_file


def append_record(path: Path, record: Mapping[str, object]) -> None:
    """Write one more line."""
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(record) + "\n")


def drop_broken_record(path: Path) -> None:
    """Cut the log after its last whole line: a killed run may have left half a record."""
    if path.exists():
        text = path.read_bytes()
        whole = text[: text.rfind(b"\n") + 1]
        if whole != text:
            write_file(path, whole)
