"""Spreads the chances of a replay evenly: which drafts agree, where patches end, how many steps a block takes.

Texts are short, so chances are not drawn: the n-th draft takes the quantile n times the golden ratio (without the
integer part), so that means are soon right. Patches do the same with another irrational number. Streams begin at
different points, a third irrational number apart.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fastblt.models.tokens import BYTE_OFFSET, VOCAB_SIZE
from fastblt.runtime.backends.protocol import Ids

_DRAFT_TURN = (math.sqrt(5) - 1) / 2
_PATCH_TURN = math.sqrt(2) - 1
_STREAM_TURN = math.sqrt(3) - 1
_TEXT_SEED = 2605


@dataclass
class ReplayCounts:
    """Counts what a replay really showed."""

    blocks: int = 0
    steps: int = 0
    """Decoder calls of these blocks."""
    patches: int = 0
    """Patches that closed, BOS's left out."""
    patch_bytes: int = 0
    """Bytes in them."""

    def add(self, other: ReplayCounts) -> None:
        """Add the counts of another text."""
        self.blocks += other.blocks
        self.steps += other.steps
        self.patches += other.patches
        self.patch_bytes += other.patch_bytes


class Draws:
    """Holds how far a stream has come in the sequences of chances.

    Args:
        stream: its index.
    """

    def __init__(self, stream: int = 0) -> None:
        self._shift = stream * _STREAM_TURN % 1.0
        self._drafts = self._blocks = 0

    def agreeing(self, rate: float) -> int:
        """Return how many bytes of another draft agree: each quantile of the geometric distribution in its turn."""
        self._drafts += 1
        return _quantile(self._drafts * _DRAFT_TURN + self._shift, rate)

    def steps(self, mean: float) -> int:
        """Return the steps of another block."""
        self._blocks += 1
        return math.floor(self._blocks * mean + self._shift) - math.floor((self._blocks - 1) * mean + self._shift)

    def patch_ends(self, length: int, rate: float) -> NDArray[np.float32]:
        """Return whether each position closes its patch, float32 0 or 1 [length]; the session also closes the longest.

        Every byte closes its patch with the same chance, so what is left of one that is too long is a patch like
        others.
        """
        closes = np.zeros(length, dtype=np.float32)
        position, turn = 0, 0
        while position < length:
            closes[position] = 1.0
            turn += 1
            position += 1 + _quantile(turn * _PATCH_TURN + self._shift, rate)
        return closes


def replay_text(length: int, stream: int = 0) -> Ids:
    """Return the text of a stream's replays, tokens int64 [length]: pseudo-random bytes, never a special token."""
    return np.random.default_rng(_TEXT_SEED + stream).integers(BYTE_OFFSET, VOCAB_SIZE, length)


def another_byte(token: int) -> int:
    """Return a byte that is not this one."""
    return BYTE_OFFSET + (token - BYTE_OFFSET + 1) % 256


def _quantile(turn: float, rate: float) -> int:
    """Return the successes before the first failure at a rate: the quantile that is the turn's fractional part."""
    if rate >= 1.0:
        return 1 << 30
    if rate <= 0.0:
        return 0
    return int(math.log(1.0 - turn % 1.0) / math.log(rate))
