"""Reads the forms of text that ship with the package: schemas and expressions (source: ``schemas/README.md``)."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path
from typing import Any, TypeVar

from fastblt.models.reading import read_json
from fastblt.models.shown import shown

_Form = TypeVar("_Form")


def load_schemas() -> dict[str, dict[str, Any]]:
    """Return the shipped JSON schemas by name: 48 from SchemaStore, none of which the value `{}` fits.

    Raises:
        ValueError: the shipped file is missing or malformed.
    """
    return _load("schemas.json", dict)


def load_expressions() -> dict[str, str]:
    """Return the shipped regular expressions by name: 20 of bounded length, in the syntax of Rust's ``regex``.

    Raises:
        ValueError: the shipped file is missing or malformed.
    """
    return _load("expressions.json", str)


def _load(name: str, kind: type[_Form]) -> dict[str, _Form]:
    path = Path(str(files("fastblt.calibration") / "schemas" / name))
    expected = f"an object of names and values of type {kind.__name__}"
    rows = read_json(path, ValueError, expected)
    if not isinstance(rows, dict):
        raise ValueError(f"{path}: found {shown(rows)}, expected {expected}")
    for key, value in rows.items():
        if not isinstance(value, kind):
            raise ValueError(f"{path}: {key}: found {shown(value)}, expected a value of type {kind.__name__}")
    return rows
