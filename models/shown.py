"""Shows what was found in a file, in messages of one line: short, and without control characters."""

from __future__ import annotations

from itertools import islice
from typing import Any

_CHARACTERS = 80
_LINE = 200
_ITEMS = 8
_LEVELS = 3
_DIGITS = 40
_JSON = (str, int, float, list, tuple, dict)


def shown(value: object) -> str:
    """Return the ``repr`` of a value, abridged; long, deep and unprintable values are safe."""
    text = repr(abridged(value))
    if text.isprintable() and (value is None or isinstance(value, _JSON)):
        return text
    # What is not of JSON shows what it likes: an array has several lines, bytes may be long.
    return text.encode("unicode_escape").decode()[:_CHARACTERS]


def abridged(value: object, levels: int = _LEVELS) -> Any:
    """Return a JSON value with everything cut that is too long or too deep for a message."""
    if isinstance(value, str):
        return value if len(value) <= _CHARACTERS else f"{value[:_CHARACTERS]}... ({len(value)} characters)"
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) >= 10**_DIGITS:
        return f"an integer of {value.bit_length()} bits"
    if isinstance(value, list | tuple):
        if levels == 0:
            return "..."
        more = [f"... ({len(value)} items)"] if len(value) > _ITEMS else []
        items = [abridged(item, levels - 1) for item in value[:_ITEMS]] + more
        return items if isinstance(value, list) else tuple(items)
    if isinstance(value, dict):
        if levels == 0:
            return "..."
        fields = {abridged(key): abridged(value[key], levels - 1) for key in islice(value, _ITEMS)}
        return fields if len(value) <= _ITEMS else {**fields, "...": f"{len(value)} fields"}
    return value


def shown_text(text: str) -> str:
    """Return what a library says in one line without control characters: it may quote a file."""
    line = " ".join(text.split())[:_LINE]
    return line if line.isprintable() else shown(line)
