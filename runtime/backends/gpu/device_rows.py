"""Keeps what passes from graph to graph, for a whole sequence, on the device."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastblt.runtime.backends.gpu.bound_graph import BoundGraph
from fastblt.runtime.backends.gpu.buffer_array import SharedMemory
from fastblt.runtime.backends.gpu.cuda import Stream
from fastblt.runtime.backends.gpu.executor import Bound
from fastblt.runtime.backends.gpu.sliding import whole_steps
from fastblt.runtime.bundle.dtypes import numpy_dtype
from fastblt.runtime.bundle.manifest import TensorSpec

#: Most elements of a tensor that graphs read by index: ONNX Runtime's kernels count them with 32 bits.
MOST_ELEMENTS = 2**31 - 1


class DeviceRows:
    """Holds every row of one tensor that passes from graph to graph: patch embeddings, byte states or latents.

    A graph writes such a tensor at one fixed address that has room for the rows of one call, and they are copied from
    there to here. A graph that reads it has all rows bound (`whole`), or those of a call copied to an address of its
    own.

    Args:
        stream: carries the copies.
        rows: most rows of a sequence.
        spec: the tensor; its last dimensions are those of a row.
        memory: of all slots.
        place: index of the slot.
    """

    def __init__(self, stream: Stream, rows: int, spec: TensorSpec, memory: SharedMemory, place: int) -> None:
        self.name = spec.name
        # The batch of one and the sizes that calls choose come before those of a row.
        self.row_shape = tuple(size for size in spec.shape[1:] if isinstance(size, int))
        self.dtype = numpy_dtype(spec.dtype)
        self.row_bytes = math.prod(self.row_shape) * self.dtype.itemsize
        self._rows, self._stream = rows, stream
        # In whole steps, so that the rows of every slot begin where graphs can be bound to them.
        self.array, self.place = memory.array(spec.name, 1, whole_steps(rows), self.row_bytes), place
        self.end = 0
        """Row after the last one that is in use."""

    @property
    def elements(self) -> int:
        """Return the number of elements of a slot's place."""
        return self.array.rows * math.prod(self.row_shape)

    @property
    def whole(self) -> Bound:
        """Return shape and address of all rows, for a graph that reads any of them."""
        return Bound((self._rows, *self.row_shape), self.array.address(self.place))

    def stores(self, together: int) -> list[Bound]:
        """Return shape and address of the rows of all slots, in pieces of ``together`` slots."""
        pieces = [(place, min(together, self.array.places - place)) for place in range(0, self.array.places, together)]
        rows = self.array.rows
        return [Bound((count * rows, *self.row_shape), self.array.address(place)) for place, count in pieces]

    def first(self, together: int) -> int:
        """Return the index of this slot's row 0 in its piece of `stores`."""
        return self.place % together * self.array.rows

    def clear(self) -> None:
        """Fill all rows with zeros, behind whatever is queued."""
        self.end = 0
        self.array.clear(self.place)

    def check(self, row: int, count: int) -> None:
        """Raise ValueError unless there is a row with ``count - 1`` others behind it."""
        if not 0 <= row <= self._rows - count:
            raise ValueError(f"{self.name}: found rows {row} to {row + count}, expected at most {self._rows}")

    def _address(self, row: int, count: int) -> int:
        """Return the device address of a row with ``count - 1`` others behind it."""
        self.check(row, count)
        return self.array.address(self.place, 0, row)

    def copy_from(self, graph: BoundGraph, row: int, count: int, at: int = 0) -> None:
        """Queue the copy of ``count`` rows that a graph has just made, from its row ``at`` on; they become ``row``."""
        self.end = row + count
        made = graph.links[self.name].address + at * self.row_bytes
        self._stream.copy(self._address(row, count), made, count * self.row_bytes)

    def copy_to(self, graph: BoundGraph, row: int, count: int, at: int = 0) -> None:
        """Queue the copy of ``count`` rows from ``row`` on to where a graph reads them, from its row ``at`` on."""
        read = graph.links[self.name].address + at * self.row_bytes
        self._stream.copy(read, self._address(row, count), count * self.row_bytes)

    def read(self, row: int, count: int) -> NDArray[Any]:
        """Return a copy of rows, [count, *row_shape], after waiting for the stream."""
        if count == 0:
            return np.empty((0, *self.row_shape), dtype=self.dtype)
        raw = self._stream.read((self._address(row, count), count * self.row_bytes))
        return raw.view(self.dtype).reshape(count, *self.row_shape)

    def write(self, row: int, values: NDArray[Any]) -> None:
        """Overwrite rows from ``row`` on with ``values``, [count, *row_shape], and wait for the stream."""
        if len(values) == 0:
            return
        self.end = row + len(values)
        data = np.ascontiguousarray(values, dtype=self.dtype)
        self._stream.write(data.reshape(-1).view(np.uint8), (self._address(row, len(values)), data.nbytes))
