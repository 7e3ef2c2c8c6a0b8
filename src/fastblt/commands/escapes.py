"""Makes text from files visible: a terminal must not obey what a bundle, a checkpoint or a file's name contains."""

from __future__ import annotations

#: Characters that override the direction of text, and so the order in which it is read.
_DIRECTIONS = (*range(0x202A, 0x202F), *range(0x2066, 0x206A))
_SEPARATORS = (0x2028, 0x2029)
#: Bytes of a file's name that are not UTF-8, as Python represents them.
_BYTES = range(0xDC80, 0xDD00)

_ESCAPES = {code: f"\\x{code:02x}" for code in (*range(32), *range(127, 160))}
_ESCAPES |= {code: f"\\u{code:04x}" for code in (*_DIRECTIONS, *_SEPARATORS, *range(0xD800, 0xE000))}
_ESCAPES |= {code: f"\\x{code - 0xDC00:02x}" for code in _BYTES}
_ESCAPES |= {ord(char): escape for char, escape in (("\n", "\\n"), ("\r", "\\r"), ("\t", "\\t"))}
_BUT_LINES = {code: escape for code, escape in _ESCAPES.items() if chr(code) not in "\n\t"}


def visible(text: str) -> str:
    """Return text in one line; control characters, line ends and changes of direction become escapes."""
    return text.translate(_ESCAPES)


def visible_lines(text: str) -> str:
    """Return text with its line ends and tabs; all else that `visible` escapes becomes an escape."""
    return text.translate(_BUT_LINES)
