"""Keeps how far back each position and each patch of a sequence may see, where documents are masked.

An EOS token ends the document that it belongs to; a patch with one in it ends a document of patches. Bounds are kept
per position, so rewinding needs no work: what is appended next overwrites them. `fastblt.models.documents` computes the
same for whole sequences.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from fastblt.models.tokens import EOS_ID
from fastblt.runtime.backends.protocol import Ids


class Documents:
    """Holds the first visible position of every position, and the first visible patch of every patch.

    Args:
        capacity: most positions, and most patches.
    """

    def __init__(self, capacity: int) -> None:
        self.first_byte: Ids = np.zeros(capacity + 1, dtype=np.int64)
        self.first_patch: Ids = np.zeros(capacity + 1, dtype=np.int64)

    def extend(self, position: int, tokens: Sequence[int] | Ids) -> None:
        """Read the tokens from ``position`` on."""
        begin = int(self.first_byte[position])
        for after, token in enumerate(tokens, position + 1):
            if token == EOS_ID:
                begin = after
            self.first_byte[after] = begin

    def close_patch(self, patch: int, start: int, end: int) -> None:
        """Close a patch that has the positions from ``start`` to ``end`` (exclusive)."""
        has_eos = self.first_byte[end] > start
        self.first_patch[patch + 1] = patch + 1 if has_eos else self.first_patch[patch]

    def bytes_seen(self, first: int, end: int, block: int = 0) -> Ids | None:
        """Return the first visible positions of those from ``first`` to ``end``, and of ``block`` rows like ``end``.

        Returns:
            int64 [end - first + block]; None: all see everything.
        """
        if self.first_byte[end] == 0:
            return None
        seen: Ids = np.empty(end - first + block, dtype=np.int64)
        seen[: end - first] = self.first_byte[first:end]
        seen[end - first :] = self.first_byte[end]
        return seen

    def patches_seen(self, first: int, count: int) -> Ids | None:
        """Return the first visible patch of ``count`` patches from ``first`` on, int64 [count]; None: all see all."""
        seen = self.first_patch[first : first + count]
        return seen if count and seen[-1] else None
