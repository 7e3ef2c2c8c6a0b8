"""Reads the configuration files of other projects: fields with defaults, checked types, errors that name them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastblt.models import reading
from fastblt.models.config import ConfigError
from fastblt.models.limits import NAME_CHARACTERS
from fastblt.models.shown import abridged

#: Any integer and any number that is read; what a field may be is bounded by `fastblt.models.config`, after arithmetic.
LARGEST_INTEGER = 2**31 - 1
LARGEST_NUMBER = 1e12

_KINDS: dict[type, tuple[tuple[type, ...], str]] = {
    int: ((int,), "an integer"),
    float: ((int, float), "a number"),
    bool: ((bool,), "true or false"),
    str: ((str,), "a string"),
}


def read_json(path: Path) -> dict[str, Any]:
    """Return the object in a JSON file.

    Raises:
        ConfigError: the file is missing or contains something else.
    """
    # Other software writes NaN and infinities into fields that nobody reads here.
    data = reading.read_json(path, ConfigError, "a configuration", constants=True)
    if not isinstance(data, dict):
        raise ConfigError(f"{path}: found {type(data).__name__}, expected an object")
    return data


def model_name(folder: Path) -> str:
    """Return the name of a model that is stored without one: its folder's, of which every character is printable."""
    return "".join(c if c.isprintable() else "_" for c in folder.absolute().name)[:NAME_CHARACTERS]


@contextmanager
def naming(where: str) -> Iterator[None]:
    """Prefix the message of a `ConfigError` with the file and the path of the object in it."""
    try:
        yield
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from None


@dataclass(frozen=True)
class Fields:
    """Holds an object of a configuration file; unknown fields are ignored, they belong to other software."""

    data: Mapping[str, Any]
    where: str
    """File and path of the object, for messages."""

    def inside(self, name: str) -> Fields:
        """Return an object in the object; an empty one if there is none."""
        value = self.data.get(name)
        self.expect(value is None or isinstance(value, dict), name, "an object")
        return Fields(value or {}, f"{self.where}: {name}")

    def integer(self, name: str, default: int | None = None) -> int:
        """Return an integer; ``default`` if it is missing or null."""
        value: int = self._value(name, int, default)
        self.expect(abs(value) <= LARGEST_INTEGER, name, f"an integer up to {LARGEST_INTEGER}")
        return value

    def number(self, name: str, default: float | None = None) -> float:
        """Return a finite number; ``default`` if it is missing or null."""
        value = self._value(name, float, default)
        self.expect(abs(value) <= LARGEST_NUMBER, name, f"a finite number up to {LARGEST_NUMBER:g}")
        return float(value)

    def flag(self, name: str, default: bool) -> bool:
        """Return a truth value; ``default`` if it is missing or null."""
        value: bool = self._value(name, bool, default)
        return value

    def text(self, name: str, default: str) -> str:
        """Return a string; ``default`` if it is missing or null."""
        value: str = self._value(name, str, default)
        return value

    def optional_integer(self, name: str, missing: int | None = None) -> int | None:
        """Return an integer or None for null; ``missing`` if there is no such field."""
        if name not in self.data:
            return missing
        return None if self.data[name] is None else self.integer(name)

    def require(self, name: str, *allowed: object) -> None:
        """Raise `ConfigError` unless the field is missing or has one of these values: others are not supported."""
        wanted = " or ".join(json.dumps(value) for value in allowed)
        self.expect(name not in self.data or self.data[name] in allowed, name, f"{wanted} (others are not supported)")

    def expect(self, condition: bool, name: str, expected: str) -> None:
        """Raise `ConfigError` that names the field unless ``condition`` holds."""
        if not condition:
            found = json.dumps(abridged(self.data[name])) if name in self.data else "nothing"
            raise ConfigError(f"{self.where}: {name}: found {found}, expected {expected}")

    def _value(self, name: str, kind: type, default: Any) -> Any:
        value = self.data.get(name)
        if value is None:
            self.expect(default is not None, name, _KINDS[kind][1])
            return default
        types, expected = _KINDS[kind]
        self.expect(isinstance(value, types) and (kind is bool or not isinstance(value, bool)), name, expected)
        return value
