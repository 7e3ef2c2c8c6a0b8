"""Splits a stream of server-sent events into their data, whatever pieces it arrives in."""

from __future__ import annotations

import re

#: Most bytes of one line; a server that sends more without an end is not one that can be measured.
LONGEST_LINE = 16 * 2**20

_LINE_END = re.compile(rb"\r\n|\n|\r")


class EventReader:
    """Reads server-sent events; only their data matters here."""

    def __init__(self) -> None:
        self._open = b""
        """The line that has begun."""
        self._data: list[bytes] = []
        """Lines of data of the event that has begun."""

    def feed(self, piece: bytes) -> list[bytes]:
        """Take a piece of the stream; return the data of the events that it completes.

        Lines end as the standard has it, not where Unicode has line separators: JSON may contain those.

        Raises:
            ValueError: a line has no end.
        """
        text = self._open + piece
        held = b"\r" if text.endswith(b"\r") else b""  # may be half of a line's end
        *lines, rest = _LINE_END.split(text.removesuffix(held))
        self._open = rest + held
        if len(self._open) > LONGEST_LINE:
            raise ValueError(f"found a line of more than {LONGEST_LINE} bytes")
        found = []
        for line in lines:
            if line:
                name, _, value = line.partition(b":")
                if name == b"data":
                    self._data.append(value.removeprefix(b" "))
            elif self._data:
                found.append(b"\n".join(self._data))
                self._data = []
        return found
