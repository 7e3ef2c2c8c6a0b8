"""Walks a grammar along a text, byte by byte and back again."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from fastblt.models.tokens import BYTE_OFFSET, EOS_ID, VOCAB_SIZE
from fastblt.runtime.grammar.error import GrammarError
from fastblt.runtime.grammar.library import Kind, check, new_matcher

Mask = NDArray[np.bool_]


class Matcher:
    """Knows what may follow the tokens it has read, none at first; one text has one of its own.

    EOS may follow where the grammar accepts; after it, only EOS may. No other special token may come at all.

    Args:
        kind: what the source is written in.
        source: of the grammar.
        forces: whether `forced` is to find anything.

    Raises:
        GrammarError: see `new_matcher`.
    """

    def __init__(self, kind: Kind, source: str, *, forces: bool = True) -> None:
        self.length = 0
        """Tokens that have been read."""
        self._kind, self._forces = kind, forces
        self._inner = new_matcher(kind, source)
        self._bytes = 0
        """How many of them are bytes; EOS and what follows it are not."""
        self._mask: Mask | None = None

    @property
    def ended(self) -> bool:
        """Return whether EOS has been read."""
        return self._bytes < self.length

    def mask(self) -> Mask:
        """Return which tokens may follow, bool [`VOCAB_SIZE`]; at least one may. It is valid until the next move.

        Raises:
            GrammarError: the step costs more than it may.
        """
        if self._mask is None:
            self._mask = self._find_mask()
        return self._mask

    def _find_mask(self) -> Mask:
        mask = np.zeros(VOCAB_SIZE, dtype=np.bool_)
        if not self.ended:
            bits = np.frombuffer(self._inner.compute_bitmask(), dtype=np.uint8, count=32)
            check(self._inner, self._kind)
            mask[BYTE_OFFSET:] = np.unpackbits(bits, bitorder="little")
            mask[EOS_ID] = self._inner.is_accepting()
            if not mask.any():
                raise GrammarError(f"{self._kind}: found no byte that may follow {self._bytes} bytes of the text")
        else:
            mask[EOS_ID] = True
        return mask

    def advance(self, token: int) -> bool:
        """Read a token; return False, and read nothing, where it may not follow."""
        if token >= BYTE_OFFSET and not self.ended:
            if not self._inner.try_consume_tokens([token - BYTE_OFFSET]):
                check(self._inner, self._kind)
                return False
            self._bytes += 1
        elif token != EOS_ID or not (self.ended or self._inner.is_accepting()):
            return False
        self.length += 1
        self._mask = None
        return True

    def rewind(self, length: int) -> None:
        """Forget all but the first ``length`` tokens.

        Raises:
            ValueError: ``length`` is not in 0..current length.
        """
        if not 0 <= length <= self.length:
            raise ValueError(f"rewind: found length {length}, expected 0..{self.length}")
        if length == self.length:
            return
        if (gone := self._bytes - min(self._bytes, length)) > 0:
            self._inner.rollback(gone)
            check(self._inner, self._kind)
        self._bytes -= gone
        self.length = length
        self._mask = None

    def forced(self, most: int) -> list[int]:
        """Return the tokens that must follow, as far as each is the only one that may, at most ``most``."""
        if not self._forces or self.ended or most <= 0:
            return []
        found = self._inner.compute_ff_bytes()[:most]
        check(self._inner, self._kind)
        return [BYTE_OFFSET + byte for byte in found]
