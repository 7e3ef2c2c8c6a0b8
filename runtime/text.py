"""Decodes bytes that arrive in pieces into text, without splitting a character."""

from __future__ import annotations

import codecs


class TextDecoder:
    """Decodes UTF-8 that arrives in pieces; whatever is not UTF-8 becomes U+FFFD, as in ``bytes.decode``.

    The bytes of an unfinished character wait for the next piece.
    """

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def decode(self, data: bytes) -> str:
        """Return the characters that a piece completes; may be empty."""
        return self._decoder.decode(data)

    def finish(self) -> str:
        """Return what is left when no piece follows: U+FFFD for an unfinished character, else nothing."""
        return self._decoder.decode(b"", final=True)
