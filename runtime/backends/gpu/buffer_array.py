"""Holds equal buffers of all slots of a backend side by side, so that a call may take those of several slots as one.

A buffer of a cache is an array [slots of the backend, rows, row] in device memory. How many rows the places of two
slots are apart, the *stride*, is the buffers' size, unless a batch wants to bind fewer rows than there is room for: a
graph's tensor [batch, 1, rows, row] has no gaps. Then the contents move to another stride, which takes no more memory.
"""

from __future__ import annotations

from typing import Protocol

from fastblt.runtime.backends.gpu.cuda import DeviceMemory, Stream


class Held(Protocol):
    """Knows how much one slot holds in its place."""

    @property
    def live(self) -> int:
        """Return the number of rows, from the first one of the place on, that are in use."""
        ...


class BufferArray:
    """Holds ``lanes`` arrays of buffers, of ``rows`` rows each, one buffer for every slot of a backend.

    Args:
        stream: carries the copies.
        places: number of slots.
        lanes: number of arrays, e.g. one for the keys and one for the values of every layer.
        rows: of each buffer.
        row_bytes: size of a row.
        least: fewest rows that places are apart; None: always ``rows``.
    """

    def __init__(
        self, stream: Stream, places: int, lanes: int, rows: int, row_bytes: int, least: int | None = None
    ) -> None:
        self.least = least or rows
        self.places, self.lanes, self.rows, self.row_bytes = places, lanes, rows, row_bytes
        self.stride = rows
        self.memory = DeviceMemory(stream.cuda, lanes * places * rows * row_bytes)
        self.held: list[Held] = []
        """What is in each place, in order."""
        self._stream = stream

    @property
    def pitch(self) -> int:
        """Return how many bytes the arrays are apart."""
        return self.places * self.rows * self.row_bytes

    def address(self, place: int, lane: int = 0, row: int = 0) -> int:
        """Return the device address of a row."""
        return self.memory.address + lane * self.pitch + (place * self.stride + row) * self.row_bytes

    def clear(self, place: int) -> None:
        """Queue that a slot's place becomes zero, behind whatever is queued: another slot may still move from there."""
        if self.places == 1:
            self._stream.clear(self.memory)
        else:
            self._stream.zero_rows(self.address(place), self.pitch, self.stride * self.row_bytes, self.lanes)

    def make_room(self, rows: int) -> None:
        """Move the places apart until each has room for ``rows`` rows."""
        if rows > self.stride:
            self.set_stride(self.stride_for(rows))

    def stride_for(self, rows: int) -> int:
        """Return the rows that places are apart so that each has room for ``rows``: the least, or a power of two."""
        return self.least if rows <= self.least else min(self.rows, 1 << (rows - 1).bit_length())

    def fit(self) -> None:
        """Move the places as close as what they hold allows."""
        self.set_stride(self.stride_for(max((held.live for held in self.held), default=0)))

    def set_stride(self, stride: int) -> None:
        """Queue the move of what is held to another stride; what is not in use becomes zero.

        Zero, since it may have been the place of another text, and a hidden NaN spreads.
        """
        old, self.stride = self.stride, stride
        if old == stride:
            return
        apart = stride - old
        for place in reversed(range(1, self.places)) if apart > 0 else range(1, self.places):
            self._move(place, old, self.held[place].live)
        for place, held in enumerate(self.held):
            width = (stride - held.live) * self.row_bytes
            if width:
                self._stream.zero_rows(self.address(place, 0, held.live), self.pitch, width, self.lanes)

    def _move(self, place: int, old: int, live: int) -> None:
        """Queue the copy of a place's rows from where they are with another stride.

        It ends where other places begin that have moved, or will: the last one moves first where places move apart. In
        pieces, for a place may overlap what it was.
        """
        moved = place * (self.stride - old)
        size = abs(moved)
        pieces = [(first, min(size, live - first)) for first in range(0, live, size)]
        for first, count in reversed(pieces) if moved > 0 else pieces:
            target = self.address(place, 0, first)
            self._stream.copy_rows(
                target, self.pitch, target - moved * self.row_bytes, self.pitch, count * self.row_bytes, self.lanes
            )


class SharedMemory:
    """Holds the arrays of a backend, by name.

    Args:
        stream: carries the copies.
        places: number of slots.
    """

    def __init__(self, stream: Stream, places: int) -> None:
        self.places = places
        self.arrays: dict[str, BufferArray] = {}
        self._stream = stream

    def array(self, name: str, lanes: int, rows: int, row_bytes: int, least: int | None = None) -> BufferArray:
        """Return an array, see `BufferArray`: the first slot that asks for it has it allocated, the others share it."""
        found = self.arrays.get(name)
        if found is None:
            found = self.arrays[name] = BufferArray(self._stream, self.places, lanes, rows, row_bytes, least)
        return found
