"""Writes reports as JSON files."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def write_json(path: Path, report: Mapping[str, Any]) -> None:
    """Write a report as JSON, atomically: the file is replaced as a whole or stays as it was.

    Raises:
        ValueError: the report contains NaN or an infinity, which JSON does not have.
        OSError: the file cannot be written.
    """
    text = json.dumps(report, indent=1, allow_nan=False) + "\n"
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        partial.write_text(text, encoding="utf-8")
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
