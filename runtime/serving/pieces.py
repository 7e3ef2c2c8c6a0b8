"""Turns the chunks of a text into what a client is sent: whole characters, log-probabilities, details."""

from __future__ import annotations

import base64
import codecs
from collections.abc import Iterable, Sequence
from itertools import chain
from typing import Any, NamedTuple

from fastblt.runtime.generation import Chunk

#: Least log-probability that is reported, as OpenAI has it: JSON has no infinity.
LEAST_LOGPROB = -9999.0


class ByteLogprob(NamedTuple):
    """Holds the log-probability of a byte."""

    byte: int
    logprob: float
    offset: int
    """Index, in the text, of the character that the byte belongs to."""

    @property
    def token(self) -> str:
        """Return the byte as OpenAI writes tokens that are no text by themselves."""
        return chr(self.byte) if self.byte < 0x80 else f"bytes:\\x{self.byte:02x}"


class Piece(NamedTuple):
    """Holds a piece of a text."""

    text: str
    data: bytes
    logprobs: list[ByteLogprob]
    chunk: Chunk
    """What is known of the bytes; of no bytes where the piece is (part of) the prompt."""


class PieceReader:
    """Turns the chunks of one text into pieces. A character is never split; bytes that are no UTF-8 become U+FFFD."""

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._characters = 0

    def echo(self, prompt: bytes) -> Piece:
        """Return the prompt, as if it had been generated."""
        return Piece(self._decode(prompt), prompt, [], merged(()))

    def read(self, chunks: Sequence[Chunk]) -> Piece:
        """Return what some chunks add to the text."""
        chunk = merged(chunks)
        if not chunk.logprobs:
            return Piece(self._decode(chunk.data), chunk.data, [], chunk)
        text = ""
        logprobs = []
        for byte, logprob in zip(chunk.data, chunk.logprobs, strict=True):
            text += self._decode(bytes([byte]))
            inside = len(self._decoder.getstate()[0]) > 0  # of a character that is not complete
            offset = self._characters - (0 if inside else 1)
            logprobs.append(ByteLogprob(byte, max(logprob, LEAST_LOGPROB), offset))
        return Piece(text, chunk.data, logprobs, chunk)

    def finish(self) -> str:
        """Return what is left when nothing follows: U+FFFD for a character that is not complete."""
        return self._decoder.decode(b"", final=True)

    def _decode(self, data: bytes) -> str:
        text = self._decoder.decode(data)
        self._characters += len(text)
        return text


def merged(chunks: Iterable[Chunk]) -> Chunk:
    """Return one chunk with all that some have."""
    found = list(chunks)
    if len(found) == 1:
        return found[0]
    return Chunk(
        b"".join(chunk.data for chunk in found),
        tuple(chain.from_iterable(chunk.origins for chunk in found)),
        b"".join(chunk.rejected for chunk in found),
        tuple(chain.from_iterable(chunk.boundaries for chunk in found)),
        tuple(chain.from_iterable(chunk.logprobs for chunk in found)),
    )


def details(chunk: Chunk) -> dict[str, Any]:
    """Return what is known of new bytes, in JSON types."""
    return {
        "bytes": in_base64(chunk.data),
        "origins": list(chunk.origins),
        "boundaries": list(chunk.boundaries),
        "rejected": in_base64(chunk.rejected),
    }


def in_base64(data: bytes) -> str:
    """Return bytes in base64."""
    return base64.b64encode(data).decode("ascii")
