"""Writes reports as JSON files."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fastblt.models.atomic_file import write_file


def write_json(path: Path, report: Mapping[str, Any]) -> None:
    """Write a report as JSON, atomically: the file is replaced as a whole or stays as it was.

    Raises:
        ValueError: the report contains NaN or an infinity, which JSON does not have.
        OSError: the file cannot be written.
    """
    text = json.dumps(report, indent=1, allow_nan=False) + "\n"
    write_file(path, text)
