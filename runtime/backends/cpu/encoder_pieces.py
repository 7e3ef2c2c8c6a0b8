"""Divides calls of a quantized encoder, so that each patch is encoded alone.

Where a patch is in the pool changes the last bit of its embedding, and rounding to 8 bits amplifies it.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from fastblt.runtime.backends.protocol import Ids


class EncoderPiece(NamedTuple):
    """Holds what one call of the graph encodes; see `fastblt.runtime.backends.protocol.BackendSequence.run_encoder`."""

    position: int
    ids: Ids
    starts: Ids
    ends: Ids
    visible_from: int | Ids | None
    """One position for all rows, or one for each; None: 0."""
    first_patch: int = 0
    """Which of the patches that are pooled together is the first of these."""


def by_patch(whole: EncoderPiece, before: int) -> list[EncoderPiece]:
    """Return a piece for each patch, in order.

    Args:
        whole: to divide.
        before: number of tokens before the rows.
    """
    position, ids, starts, ends, visible_from, _ = whole
    pieces, end = [], position + len(ids) - before
    for patch in range(len(starts)):
        first = max(position, int(starts[patch]))
        last = int(ends[patch]) if patch + 1 < len(starts) else end
        rows, one = slice(first - position, last - position), slice(patch, patch + 1)
        seen = visible_from[rows] if isinstance(visible_from, np.ndarray) else visible_from
        pieces.append(EncoderPiece(first, ids[rows.start : rows.stop + before], starts[one], ends[one], seen, patch))
    return pieces
