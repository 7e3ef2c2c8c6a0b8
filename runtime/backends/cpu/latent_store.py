"""Keeps the latents that rows of a batch read side by side, where one call of a decoder finds all of them."""

from __future__ import annotations

from typing import Any

import numpy as np

from fastblt.runtime.backends.batching import SHARED_ROWS
from fastblt.runtime.backends.cpu.buffers import Buffer

#: Latents of a sequence that its rows in one call can read: no row closes more than one patch.
LATENTS = SHARED_ROWS + 1


class LatentStore:
    """Holds consecutive latents of each seat; they are copied when rows first read them.

    Args:
        row_shape: of a latent.
        dtype: of latents.
        size: number of seats.

    Attributes:
        memory: the latents, `LATENTS` a seat, and zeros in front of them, which rows that nobody reads refer to.
    """

    def __init__(self, row_shape: tuple[int, ...], dtype: np.dtype[Any], size: int) -> None:
        self.memory = Buffer(1 + size * LATENTS, row_shape, dtype)
        self._first = [0] * size
        self._count = [0] * size

    def index(self, seat: int, own: Buffer, first: int, last: int) -> int:
        """Return what is added to a latent's index to find it in `memory`, for those from ``first`` to ``last``.

        Args:
            seat: of the sequence.
            own: all of the sequence's latents.
            first: the first that its rows read.
            last: the last one, fewer than `LATENTS` after it.
        """
        place, held = 1 + seat * LATENTS, self._first[seat]
        if not held <= first <= last < held + self._count[seat]:
            count = last + 1 - first
            self.memory.array[place : place + count] = own.array[first : last + 1]
            self._first[seat], self._count[seat] = first, count
        return place - self._first[seat]

    def forget(self, seat: int, first: int = 0) -> None:
        """Note that a seat's latents from ``first`` on have changed."""
        self._count[seat] = max(0, min(self._count[seat], first - self._first[seat]))
