"""Writes messages that are a call of a function: its name, then its arguments as they come."""

from __future__ import annotations

import re
import secrets
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from fastblt.runtime.serving.answers import merged_pieces
from fastblt.runtime.serving.chat import ChatWriter
from fastblt.runtime.serving.pieces import Piece
from fastblt.runtime.serving.requests import TextFields

#: What `fastblt.runtime.grammar.tool_calls` puts before the arguments.
_HEAD = re.compile(r'\{"name":"([^"]*)","arguments":')


class CallReader:
    """Reads a call in pieces."""

    def __init__(self) -> None:
        self.id = f"call_{secrets.token_hex(12)}"
        self.name: str | None = None
        """Of the function; None: not known yet."""
        self.complete = False
        """Whether nothing but the end of the text can follow the arguments."""
        self._head = ""
        self._depth = 0
        self._quoted = self._escaped = False

    def read(self, text: str) -> str:
        """Return what some text adds to the arguments."""
        if self.name is None:
            self._head += text
            found = _HEAD.match(self._head)
            if found is None:
                return ""
            self.name, text = found[1], self._head[found.end() :]
        return "" if self.complete else self._arguments(text)

    def _arguments(self, text: str) -> str:
        """Return the text up to the end of the arguments: an object ends with the brace that its first one opened."""
        for index, character in enumerate(text):
            if self._escaped:
                self._escaped = False
            elif self._quoted:
                self._escaped = character == "\\"
                self._quoted = character != '"'
            elif character == '"':
                self._quoted = True
            elif character in "{}":
                self._depth += 1 if character == "{" else -1
                if self._depth == 0:
                    self.complete = True
                    return text[: index + 1]
        return text

    def finish(self, finish: str) -> str:
        """Return why the message ended, given why the text did."""
        return "tool_calls" if self.complete else finish


class ToolCallWriter(ChatWriter):
    """Writes messages that call a function; a message that is cut before its arguments has no call."""

    def __init__(self, model: str, body: TextFields) -> None:
        super().__init__(model, body)
        self._calls: defaultdict[int, CallReader] = defaultdict(CallReader)

    def first_choice(self, index: int, echo: Piece | None) -> dict[str, Any] | None:
        """Return who speaks."""
        return self.delta(index, {"role": "assistant", "content": None}, [], None)

    def part_choice(self, index: int, piece: Piece) -> dict[str, Any]:
        """Return a piece of the call."""
        delta = {**self._added(index, piece.text), **self.bytes_of(piece)}
        return {**self.delta(index, delta, piece.logprobs, None), **self.extras(piece)}

    def last_choice(self, index: int, rest: str, finish: str) -> dict[str, Any]:
        """Return why the call ended."""
        added = self._added(index, rest)
        return self.delta(index, added, [], self._calls[index].finish(finish))

    def whole_choice(self, index: int, pieces: Sequence[Piece], rest: str, finish: str) -> dict[str, Any]:
        """Return a whole message."""
        piece = merged_pieces(pieces)
        call = self._calls[index]
        arguments = call.read(piece.text + rest)
        calls = {} if call.name is None else {"tool_calls": [_called(call, arguments)]}
        message = {"role": "assistant", "content": None, "refusal": None, **calls, **self.bytes_of(piece)}
        return self.whole_message(index, message, piece, call.finish(finish))

    def _added(self, index: int, text: str) -> dict[str, Any]:
        """Return what some text adds to the message."""
        call = self._calls[index]
        known = call.name is not None
        arguments = call.read(text)
        if call.name is None or (known and not arguments):
            return {}
        added = {"function": {"arguments": arguments}} if known else _called(call, arguments)
        return {"tool_calls": [{"index": 0, **added}]}


def _called(call: CallReader, arguments: str) -> dict[str, Any]:
    return {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": arguments}}
