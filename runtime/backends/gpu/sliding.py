"""Holds the latest rows of a sequence in memory of fixed size: slot = position - base, and the base increases.

An engine's caches have one size and one address. A stack with a window never looks further back than that window, so
its cache need not hold the whole sequence: when its end is reached, what is still needed is copied to the front.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from fastblt.models.config import BltConfig, StackConfig
from fastblt.runtime.backends.gpu.buffer_array import BufferArray
from fastblt.runtime.backends.gpu.cuda import DeviceMemory, Stream
from fastblt.runtime.backends.protocol import DRAFT_SLACK, WHOLE_PATCH_LIMIT, CapacityError

#: Caches and pools have a multiple of this many slots. Engines are compiled for such sizes: do not change it.
SLOT_STEP = 64
#: Most rows of one call; longer ranges are cut. Shape classes are powers of two, so larger ones would pad more.
CALL_ROWS = 64
#: Positions that are kept in addition to those that a call sees, so that a rewind by that many can be continued.
REWIND = DRAFT_SLACK + WHOLE_PATCH_LIMIT
#: Longest open patch where the model sets no limit, unless the engines are compiled for another.
DEFAULT_PATCH_BYTES = 512
#: Fewest slots of a cache that are bound where there are as many; more are bound in powers of two.
_LEAST_SLOTS = 256


class RewindError(ValueError):
    """Reports that positions are needed again that a cache no longer holds."""


def whole_steps(slots: int) -> int:
    """Return ``slots`` rounded up to a multiple of `SLOT_STEP`."""
    return -(-slots // SLOT_STEP) * SLOT_STEP


def position_count(max_bytes: int) -> int:
    """Return how many positions a sequence may use: text, BOS, a draft after it, and the rows of one call."""
    return max_bytes + 1 + DRAFT_SLACK + CALL_ROWS


def cache_slots(stack: StackConfig, max_bytes: int) -> int:
    """Return the slots of each cache of a stack.

    That is one for every position, or, with a window, as many as one call may see and a rewind may need.

    Args:
        stack: geometry of the transformer stack.
        max_bytes: longest prompt plus new bytes.
    """
    everything = whole_steps(position_count(max_bytes))
    if stack.window is None:
        return everything
    return min(everything, whole_steps(stack.window + CALL_ROWS + REWIND))


def visible_slots(live: int, slots: int) -> int:
    """Return how many of a cache's ``slots`` to bind so that rows see the first ``live`` ones: a power of two."""
    return min(slots, max(_LEAST_SLOTS, 1 << (live - 1).bit_length()))


def longest_patch(config: BltConfig, max_patch_bytes: int | None = None) -> int:
    """Return the longest patch that the pool has room for: the model's own limit, else ``max_patch_bytes`` or 512."""
    return config.patching.max_patch_length or max_patch_bytes or DEFAULT_PATCH_BYTES


def pool_slots(config: BltConfig, max_bytes: int, max_patch_bytes: int | None = None) -> int:
    """Return the slots of the encoder's pool: for the open patch, a draft after it, and the rows of one call."""
    everything = whole_steps(position_count(max_bytes))
    return min(everything, whole_steps(longest_patch(config, max_patch_bytes) + DRAFT_SLACK + CALL_ROWS))


class SlidingBuffer:
    """Holds ``lanes`` equal buffers of ``slots`` rows, which slide together.

    Args:
        stream: carries the copies.
        lanes: number of buffers, e.g. one for the keys and one for the values of every layer.
        slots: rows of each buffer.
        row_bytes: size of a row.
        keep: number of rows before the first needed one that are kept where there is room.
        slides: whether the buffers may have to slide; if so, memory for the usual rows is allocated to copy through.
        usual: rows that are used as long as what is needed fits into them; None: all.
        array: memory, with those of other slots; None: of its own.
    """

    def __init__(
        self,
        stream: Stream,
        lanes: int,
        slots: int,
        row_bytes: int,
        keep: int,
        *,
        slides: bool,
        usual: int | None = None,
        array: BufferArray | None = None,
    ) -> None:
        self.slots = slots
        self.usual = usual or slots
        self.lanes = lanes
        self.row_bytes = row_bytes
        self.base = 0
        """Position of the first slot."""
        self.end = 0
        """Position after the last row that a call has left: what is from there on may be overwritten."""
        self._keep = keep
        self._stream = stream
        self.array = array or BufferArray(stream, 1, lanes, slots, row_bytes)
        self.place = len(self.array.held)
        """Index in the array."""
        self.array.held.append(self)
        self._scratch = DeviceMemory(stream.cuda, lanes * self.usual * row_bytes) if slides else None

    @property
    def lane_bytes(self) -> int:
        """Return how many bytes the buffers are apart."""
        return self.array.pitch

    @property
    def live(self) -> int:
        """Return the number of slots, from the first one on, that are in use."""
        return max(0, self.end - self.base)

    def address(self, lane: int, slot: int = 0) -> int:
        """Return the device address of a slot."""
        return self.array.address(self.place, lane, slot)

    def clear(self) -> None:
        """Begin again with zeros, behind whatever is queued."""
        self.reset()
        self.array.clear(self.place)

    def reset(self) -> None:
        """Begin again at position 0, with anything in the slots."""
        self.base = self.end = 0

    def read(self, position: int, count: int) -> NDArray[np.uint8]:
        """Return a copy of the rows from ``position`` on, uint8 [lanes, count * row_bytes], after waiting."""
        size, slot = count * self.row_bytes, position - self.base
        if size == 0:
            return np.empty((self.lanes, 0), dtype=np.uint8)
        pieces = [(self.address(lane, slot), size) for lane in range(self.lanes)]
        return self._stream.read(*pieces).reshape(self.lanes, size)

    def write(self, position: int, rows: NDArray[np.uint8]) -> None:
        """Hold these rows, uint8 [lanes, count * row_bytes], from ``position`` on and nothing else, and wait."""
        self.clear()
        self.base = position
        self.end = position + rows.shape[1] // self.row_bytes
        self.array.make_room(self.live)
        if rows.size:
            self._stream.write(rows.reshape(-1), *((self.address(lane), rows.shape[1]) for lane in range(self.lanes)))

    def make_room(self, needed: int, position: int, rows: int) -> int:
        """Make room for rows and return the slot of the first one.

        Args:
            needed: first position that the rows look back to.
            position: of the first row.
            rows: number of rows, padding included.

        Raises:
            RewindError: the buffers no longer hold the position ``needed``.
            CapacityError: the rows and what they look back to do not fit.
        """
        if needed >= position and not self.base <= needed <= self.base + self.slots:
            # Nothing that the buffers hold is needed: the rows may go anywhere.
            self.base = needed
        if needed < self.base:
            raise RewindError(f"cache: found a rewind to position {needed}, expected at least {self.base}")
        if position + rows > self.base + self.usual:
            self._slide(needed, position, rows)
        slot = position - self.base
        self.array.make_room(slot + rows)
        return slot

    def _slide(self, needed: int, position: int, rows: int) -> None:
        """Move the base so that the rows fit, and the rows that are kept with it."""
        if position + rows - needed > self.slots:
            raise CapacityError(f"cache: found {position + rows - needed} rows to hold, expected at most {self.slots}")
        base = max(self.base, min(needed, max(needed - self._keep, position + rows - self.usual)))
        moved = base - self.base
        if moved > 0:
            # In pieces that fit the other memory: each one ends before the next one begins.
            for first in range(0, position - base, self.usual):
                self._move(moved, first, min(self.usual, position - base - first))
        self.base = base

    def _move(self, moved: int, first: int, count: int) -> None:
        """Copy rows of every lane to slot ``first`` from ``moved`` slots behind it, through other memory."""
        assert self._scratch is not None, "a buffer for all positions does not slide"
        width, lane = count * self.row_bytes, self.lane_bytes
        self._stream.copy_rows(self._scratch.address, width, self.address(0, first + moved), lane, width, self.lanes)
        self._stream.copy_rows(self.address(0, first), lane, self._scratch.address, width, width, self.lanes)
