"""Holds the tokens of one sequence, and how far back each of them may see where documents are masked."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from fastblt.models.config import BltConfig
from fastblt.models.tokens import BOS_ID
from fastblt.runtime.backends.protocol import DRAFT_SLACK, CapacityError, Ids
from fastblt.runtime.sequence.documents import Documents


class TokenBuffer:
    """Holds tokens in an array with room for those that the hash n-grams of the first one reach back to.

    Args:
        config: the model's.
        max_bytes: most bytes of the sequence; a draft may exceed them by `DRAFT_SLACK`.
    """

    def __init__(self, config: BltConfig, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.capacity = max_bytes + 1 + DRAFT_SLACK
        self.length = 0
        """Tokens."""
        self._history = config.hash.context - 1
        self._ids = np.zeros(self._history + self.capacity, dtype=np.int64)
        self.documents = Documents(self.capacity) if config.document_masks else None
        """None: every token may see all tokens before it."""

    def between(self, first: int, end: int) -> Ids:
        """Return the tokens from position ``first`` to ``end`` (exclusive); a view."""
        return self._ids[self._history + first : self._history + end]

    def with_history(self, first: int, end: int) -> Ids:
        """Return the tokens that the n-grams of the first one reach back to, then those of `between`; a view."""
        return self._ids[first : self._history + end]

    def before(self, position: int) -> int:
        """Return the token before a position; BOS where there is none."""
        return int(self._ids[self._history + position - 1]) if position else BOS_ID

    def append(self, tokens: Sequence[int] | Ids) -> None:
        """Put tokens at the end.

        Raises:
            CapacityError: they do not fit.
        """
        first, end = self.length, self.length + len(tokens)
        if end > self.capacity:
            raise CapacityError(f"session: found {end - 1} bytes, expected at most max_bytes={self.max_bytes}")
        self.between(first, end)[:] = tokens
        if self.documents is not None:
            self.documents.extend(first, tokens)
        self.length = end

    def visible_from(self, first: int, end: int, block: int = 0) -> Ids | None:
        """Return the first position that each row may see, int64 [end - first + block]; None: all see everything.

        Args:
            first: position of the first row.
            end: position after the last token among the rows.
            block: rows after them, which see what a token at position ``end`` would.
        """
        return None if self.documents is None else self.documents.bytes_seen(first, end, block)
