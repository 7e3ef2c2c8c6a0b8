"""Decides how many slots the lanes of a stack have: a sequence has a lane of the smallest class that it fits."""

from __future__ import annotations

from bisect import bisect_left

from fastblt.runtime.backends.batching import SHARED_ROWS
from fastblt.runtime.backends.cpu.buffers import VIEW_SLOTS
from fastblt.runtime.backends.live_rows import first_visible

#: A lane begins at a multiple of this many positions: the kernels of attention add up groups of 8 numbers, and compute
#: the same sums to the bit when the groups stay together.
_STEP = 8


class LaneClasses:
    """Holds the classes of one stack.

    Args:
        window: of the stack; None: rows see all positions.
        capacity: positions of the longest sequence.
        exact: lanes begin where the view of a sequence that runs alone does. Products over more slots than 16384
            divided by the width of a head (256 where it is 64) are sums of parts; their last bit depends on where the
            parts begin, and quantized graphs amplify it.
    """

    def __init__(self, window: int | None, capacity: int, *, exact: bool) -> None:
        self.window = window
        self.exact = exact
        self._step = VIEW_SLOTS if exact else _STEP
        most = capacity + SHARED_ROWS
        if window is not None:
            most = min(most, window - 1 + self._step - 1 + SHARED_ROWS)
        last = -(-most // VIEW_SLOTS) * VIEW_SLOTS
        self.slots = [*_smaller(last), last]
        """Slots of a lane, by class; the last holds a window and some rows more, or the whole sequence."""

    def base(self, position: int) -> int:
        """Return the position of slot 0 in a lane that is filled for rows from ``position`` on."""
        return first_visible(position, self.window) // self._step * self._step

    def fits(self, base: int, position: int) -> bool:
        """Return whether rows from ``position`` on may run in a lane that begins at position ``base``."""
        wanted = self.base(position)
        return base == wanted if self.exact else base <= wanted

    def least(self, slots: int) -> int:
        """Return the first class whose lanes have so many slots."""
        return bisect_left(self.slots, slots)


def _smaller(last: int) -> list[int]:
    """Return the classes before the last: each has 64 slots more than the one before it, or a quarter of them."""
    found, slots = [], VIEW_SLOTS
    while slots < last:
        found.append(slots)
        slots += max(1, slots // 4 // VIEW_SLOTS) * VIEW_SLOTS
    return found
