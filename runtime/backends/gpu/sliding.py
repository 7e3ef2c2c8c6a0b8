"""Memory of fixed size that follows a sequence: slot = position - base, and the base moves on from time to time.

An engine's caches have one size and one address. A stack with a window never looks further back than that window, so
its cache need not hold the whole sequence: when the end is reached, what is still needed is copied to the front.
"""

from __future__ import annotations

from fastblt.models.config import BltConfig, StackConfig
from fastblt.runtime.backends.gpu.cuda import DeviceMemory, Stream
from fastblt.runtime.backends.protocol import DRAFT_SLACK, WHOLE_PATCH_LIMIT, CapacityError

#: Caches and pools have a multiple of this many slots; engines that are compiled already do.
SLOT_STEP = 64
#: Rows of one call, at most; longer runs are cut. More is padding: classes are powers of two.
CALL_ROWS = 64
#: Positions before those that a call needs that are kept as well: a rewind of so many is exact.
REWIND = DRAFT_SLACK + WHOLE_PATCH_LIMIT
#: Longest open patch where the model sets no limit, unless the engines are compiled for another.
DEFAULT_PATCH_BYTES = 512


class RewindError(ValueError):
    """Positions are needed again that a cache holds no longer."""


def _whole_steps(slots: int) -> int:
    return -(-slots // SLOT_STEP) * SLOT_STEP


def cache_slots(stack: StackConfig, max_bytes: int) -> int:
    """Slots of each cache of a stack: all positions, or, for a window, what one call may see and a rewind may need."""
    everything = _whole_steps(max_bytes + 1 + DRAFT_SLACK + CALL_ROWS)
    if stack.window is None:
        return everything
    return min(everything, _whole_steps(stack.window + CALL_ROWS + REWIND))


def longest_patch(config: BltConfig, max_patch_bytes: int | None = None) -> int:
    """Longest patch that the pool is made for: the model's own limit, else ``max_patch_bytes`` or 512."""
    return config.patching.max_patch_length or max_patch_bytes or DEFAULT_PATCH_BYTES


def pool_slots(config: BltConfig, max_bytes: int, max_patch_bytes: int | None = None) -> int:
    """Slots of the encoder's pool: the open patch, a draft after it, and the rows of one call."""
    everything = _whole_steps(max_bytes + 1 + DRAFT_SLACK + CALL_ROWS)
    return min(everything, _whole_steps(longest_patch(config, max_patch_bytes) + DRAFT_SLACK + CALL_ROWS))


class SlidingBuffer:
    """``lanes`` equal buffers of ``slots`` rows, one after the other; they slide together.

    Args:
        stream: carries the copies.
        lanes: buffers, e.g. keys and values of every layer.
        slots: rows of each.
        row_bytes: size of a row.
        keep: rows before the first needed one that are kept where there is room.
        slides: whether it may have to; if so, there is memory to slide by way of.
    """

    def __init__(self, stream: Stream, lanes: int, slots: int, row_bytes: int, keep: int, *, slides: bool) -> None:
        self.slots = slots
        self.lanes = lanes
        self.row_bytes = row_bytes
        self.base = 0
        """Position of the first slot."""
        self._keep = keep
        self._stream = stream
        self._memory = DeviceMemory(stream.cuda, lanes * slots * row_bytes)
        self._scratch = DeviceMemory(stream.cuda, self._memory.size) if slides else None

    @property
    def lane_bytes(self) -> int:
        """Size of one buffer."""
        return self.slots * self.row_bytes

    def address(self, lane: int, slot: int = 0) -> int:
        """Of a slot."""
        return self._memory.address + lane * self.lane_bytes + slot * self.row_bytes

    def place(self, needed: int, position: int, rows: int) -> int:
        """Make room for rows at ``position`` that look back to the position ``needed``; the slot of the first one.

        Raises:
            RewindError: positions from ``needed`` on have been given up.
            CapacityError: they do not fit.
        """
        if needed >= position and not self.base <= needed <= self.base + self.slots:
            # Nothing that is there already is needed: the rows may stand anywhere.
            self.base = needed
        if needed < self.base:
            raise RewindError(f"cache: found a rewind to position {needed}, expected at least {self.base}")
        if position + rows > self.base + self.slots:
            self._slide(needed, position, rows)
        return position - self.base

    def _slide(self, needed: int, position: int, rows: int) -> None:
        if position + rows - needed > self.slots:
            raise CapacityError(f"cache: found {position + rows - needed} rows to hold, expected at most {self.slots}")
        base = max(self.base, min(needed, max(needed - self._keep, position + rows - self.slots)))
        count, moved = position - base, base - self.base
        if count > 0:
            self._move(moved, count)
        self.base = base

    def _move(self, moved: int, count: int) -> None:
        """Copy ``count`` rows from slot ``moved`` to slot 0, by way of other memory: the two may overlap."""
        assert self._scratch is not None, "a buffer for all positions does not slide"
        width, lane = count * self.row_bytes, self.lane_bytes
        self._stream.copy_rows(self._scratch.address, width, self.address(0, moved), lane, width, self.lanes)
        self._stream.copy_rows(self.address(0), lane, self._scratch.address, width, width, self.lanes)
