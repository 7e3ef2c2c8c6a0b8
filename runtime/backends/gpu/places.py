"""Exchanges what two slots hold, so that the sequences of a batch lie closer together in the memory of all slots.

Recorded work belongs to addresses: it stays where it is, and the contents of the slots' memory change places.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

from fastblt.runtime.backends.gpu.buffer_array import BufferArray, SharedMemory
from fastblt.runtime.backends.gpu.cuda import DeviceMemory
from fastblt.runtime.backends.gpu.slot import Slot

if TYPE_CHECKING:
    from fastblt.runtime.backends.gpu.backend import DeviceBackend

#: Bytes that are copied at once.
_PIECE_BYTES = 2**20


def exchange_bytes(memory: SharedMemory) -> int:
    """Return the size of the memory that an `Exchange` takes: a piece, and at least one row of every buffer."""
    return max(_PIECE_BYTES, *(array.lanes * array.row_bytes for array in memory.arrays.values()))


def block_of(size: int, count: int, start: int, taken: Iterable[range | frozenset[int]]) -> range | None:
    """Return the places that ``size`` sequences of a batch should have: a range that one call can take.

    Args:
        size: number of sequences.
        count: number of places.
        start: where the range begins if that can be; a multiple of the power of two that holds ``size``.
        taken: places of other batches; a range that has any of them is not returned.

    Returns:
        The range; None where every one has places of other batches.
    """
    room, others = 1 << (size - 1).bit_length(), frozenset().union(*taken)
    for first in (start, *range(0, count, room)):
        places = range(first, min(first + room, count))
        if len(places) >= size and others.isdisjoint(places):
            return places
    return None


class Exchange:
    """Holds the memory through which contents are exchanged.

    Args:
        backend: whose slots they are.
    """

    def __init__(self, backend: DeviceBackend) -> None:
        self._backend = backend
        self._memory = DeviceMemory(backend.stream.cuda, exchange_bytes(backend.memory))

    def gather(self, slots: Sequence[Slot], places: range) -> None:
        """Queue copies so that these slots are in a range of places, which has room for all of them."""
        taken = {slot.place for slot in slots}
        free = iter([place for place in places if place not in taken])
        for slot in slots:
            if slot.place not in places:
                self.swap(slot, self._backend.slots[next(free)])

    def swap(self, one: Slot, other: Slot) -> None:
        """Queue copies so that two slots have each other's place."""
        for array, count in _used(one, other):
            self._swap_rows(array, one.place, other.place, count)
        one.exchange_places(other)
        for graph in (*one.graphs.values(), *other.graphs.values()):
            graph.clear_links()
        for batch in self._backend.batches:
            batch.clear()
        self._backend.slots[one.place], self._backend.slots[other.place] = one, other

    def _swap_rows(self, array: BufferArray, one: int, other: int, count: int) -> None:
        """Queue the exchange of the first ``count`` rows of two places."""
        stream, pitch = self._backend.stream, array.pitch
        size = max(1, self._memory.size // (array.lanes * array.row_bytes))
        for first in range(0, count, size):
            width = min(size, count - first) * array.row_bytes
            here, there = (array.address(place, 0, first) for place in (one, other))
            stream.copy_rows(self._memory.address, width, here, pitch, width, array.lanes)
            stream.copy_rows(here, pitch, there, pitch, width, array.lanes)
            stream.copy_rows(there, pitch, self._memory.address, width, width, array.lanes)


def _used(one: Slot, other: Slot) -> Iterator[tuple[BufferArray, int]]:
    """Return every array with the number of rows to exchange, from the first one of a place on.

    Of caches those are all: where one has left a NaN, even behind its end, it must not stay under another text.
    """
    for graph in one.graphs.values():
        if graph.owns_caches:
            yield graph.caches.array, graph.caches.array.stride
        if graph.pool is not None:
            yield graph.pool.array, graph.pool.array.stride
    for name, rows in one.rows.items():
        yield rows.array, max(rows.end, other.rows[name].end)
