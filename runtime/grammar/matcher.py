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
        self._kind, self._source, self._forces = kind, source, forces
        self._inner = new_matcher(kind, source)
        self._read: list[int] = []
        """Those of them that are bytes, as byte values; EOS and what follows it are not."""
        self._mask: Mask | None = None

    @property
    def ended(self) -> bool:
        """Return whether EOS has been read."""
        return len(self._read) < self.length

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
                raise GrammarError(f"{self._kind}: found no byte that may follow {len(self._read)} bytes of the text")
        else:
            mask[EOS_ID] = True
        return mask

    def advance(self, token: int) -> bool:
        """Read a token; return False, and read nothing, where it may not follow.

        Raises:
            GrammarError: the step costs more than it may; `rewind` makes the matcher usable again.
        """
        if token >= BYTE_OFFSET and not self.ended:
            if not self._inner.try_consume_tokens([token - BYTE_OFFSET]):
                check(self._inner, self._kind)
                return False
            self._read.append(token - BYTE_OFFSET)
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
        gone = max(0, len(self._read) - length)
        del self._read[len(self._read) - gone :]
        if self._inner.is_error() or (gone and not self._inner.rollback(gone)):
            self._read_again()
        if length < self.length:
            self._mask = None
        self.length = length

    def _read_again(self) -> None:
        """Take a new matcher to where this one is: what has met a bound once can do nothing more."""
        self._inner = new_matcher(self._kind, self._source)
        self._inner.try_consume_tokens(self._read)
        check(self._inner, self._kind)

    def forced(self, most: int) -> list[int]:
        """Return the tokens that must follow, as far as each is the only one that may, at most ``most``.

        Where finding them costs more than it may, there are none.
        """
        if not self._forces or self.ended or most <= 0:
            return []
        found = self._inner.compute_ff_bytes()[:most]
        if self._inner.is_error():
            self._read_again()
            return []
        return [BYTE_OFFSET + byte for byte in found]
