"""Reads the entries of an untrusted JSON object with a bound on every number, name and list."""

from __future__ import annotations

import math
from collections.abc import Collection
from pathlib import Path
from typing import Any, NoReturn

from fastblt.models.limits import NAME_CHARACTERS
from fastblt.models.shown import shown


class JsonEntries:
    """Holds one object of a JSON file; whatever is wrong with an entry is one error that names file and entry.

    Args:
        path: of the file, for messages.
        data: the object, as `json` reads it.
        error: class of the errors to raise.
        where: name of the object inside the file, ``graphs.decoder`` for example; empty for the file's own.

    Raises:
        error: ``data`` is no object.
    """

    def __init__(self, path: Path, data: object, error: type[ValueError], where: str = "") -> None:
        self.path, self.where, self._error = path, where, error
        if not isinstance(data, dict):
            raise error(f"{path}: {f'entry {where!r}: ' if where else ''}found {shown(data)}, expected an object")
        self.data: dict[str, Any] = data

    def refuse(self, name: str, expected: str, found: object = None) -> NoReturn:
        """Raise the error about an entry; ``found`` defaults to what is there."""
        value = self.data.get(name) if found is None else found
        raise self._error(f"{self.path}: entry {self._full(name)!r}: found {shown(value)}, expected {expected}")

    def expect(self, condition: bool, name: str, expected: str, found: object = None) -> None:
        """Raise the error about an entry unless a condition holds."""
        if not condition:
            self.refuse(name, expected, found)

    def _full(self, name: str) -> str:
        return f"{self.where}.{name}" if self.where else name

    def integer(self, name: str, least: int, most: int) -> int:
        """Return an integer from ``least`` to ``most``."""
        value = self.data.get(name)
        if not is_integer(value, least, most):
            self.refuse(name, f"an integer from {least} to {most}")
        assert isinstance(value, int)
        return value

    def number(self, name: str) -> float:
        """Return a finite number."""
        value = self.data.get(name)
        fits = is_integer(value, -(2**63), 2**63) or (isinstance(value, float) and math.isfinite(value))
        self.expect(fits, name, "a number")
        assert isinstance(value, int | float)
        return float(value)

    def text(self, name: str) -> str:
        """Return a printable string of 1 to `NAME_CHARACTERS` characters."""
        value = self.data.get(name)
        self.expect(isinstance(value, str), name, "a string")
        self.expect(is_name(value), name, f"1 to {NAME_CHARACTERS} printable characters")
        assert isinstance(value, str)
        return value

    def one_of(self, name: str, values: Collection[str]) -> str:
        """Return one of these strings."""
        value = self.data.get(name)
        self.expect(isinstance(value, str), name, "a string")
        self.expect(value in values, name, f"one of {', '.join(values)}")
        assert isinstance(value, str)
        return value

    def flag(self, name: str) -> bool:
        """Return true or false."""
        value = self.data.get(name)
        self.expect(isinstance(value, bool), name, "true or false")
        return bool(value)

    def items(self, name: str, most: int) -> list[Any]:
        """Return a list of at most ``most`` items."""
        value = self.data.get(name)
        self.expect(isinstance(value, list), name, "a list")
        assert isinstance(value, list)
        self.expect(len(value) <= most, name, f"at most {most} items", len(value))
        return value

    def objects(self, name: str, most: int) -> list[JsonEntries]:
        """Return the objects of a list of at most ``most``."""
        found = enumerate(self.items(name, most))
        return [JsonEntries(self.path, item, self._error, f"{self._full(name)}[{index}]") for index, item in found]

    def object(self, name: str, most: int | None = None) -> JsonEntries:
        """Return an object; all its keys are names, at most ``most`` of them where that is given."""
        value = self.data.get(name)
        self.expect(isinstance(value, dict), name, "an object")
        assert isinstance(value, dict)
        self.expect(most is None or len(value) <= most, name, f"at most {most} entries", len(value))
        for key in value:
            self.expect(is_name(key), name, f"keys of 1 to {NAME_CHARACTERS} printable characters", key)
        return JsonEntries(self.path, value, self._error, self._full(name))


def is_integer(value: object, least: int, most: int) -> bool:
    """Return whether a JSON value is an integer of this range."""
    return isinstance(value, int) and not isinstance(value, bool) and least <= value <= most


def is_name(value: object) -> bool:
    """Return whether a JSON value is a string that may be shown: printable, neither empty nor long."""
    return isinstance(value, str) and 0 < len(value) <= NAME_CHARACTERS and value.isprintable()


def is_file_name(name: str) -> bool:
    """Return whether a name is a plain one: it names a file of a folder, and not a path."""
    return name != ".." and Path(name).name == name
