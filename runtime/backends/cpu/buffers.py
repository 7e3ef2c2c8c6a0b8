"""Memory that graphs are bound to: allocated once, addressed by pointer, on the host."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

#: Bound views of caches begin and end at multiples of this many slots, so that a view serves many steps.
VIEW_SLOTS = 64
#: Views of the encoder's pool end at multiples of this many slots, which bounds the number of shapes.
POOL_STEP = 8


class Buffer:
    """Zeroed memory of ``rows`` equal rows on the host.

    It is reserved, and the system commits it page by page as a sequence reaches it. Zeros matter: a slot that the mask
    hides still meets a softmax weight of 0, and 0 * NaN would be NaN.

    Attributes:
        array: the contents, [rows, *row_shape].
        address: of the first row.
        row_bytes: size of a row.
    """

    def __init__(self, rows: int, row_shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
        self.row_shape = row_shape
        self.row_bytes = int(np.prod(row_shape, dtype=np.int64)) * dtype.itemsize
        self.array: NDArray[Any] = np.zeros((rows, *row_shape), dtype=dtype)
        self.address = int(self.array.ctypes.data)

    def at(self, row: int) -> int:
        """Address of a row."""
        return self.address + row * self.row_bytes


class View(NamedTuple):
    """A run of cache slots that a call sees."""

    start: int
    end: int

    @property
    def slots(self) -> int:
        """Number of slots."""
        return self.end - self.start


class KvBuffers:
    """The caches of one graph; slot = position, so rewinding is a smaller position and nothing is ever moved."""

    def __init__(self, names: list[str], capacity: int, dim: int, dtype: np.dtype[Any], window: int | None) -> None:
        slots = -(-capacity // VIEW_SLOTS) * VIEW_SLOTS
        self.buffers = {name: Buffer(slots, (dim,), dtype) for name in names}
        self.dim = dim
        self.slots = slots
        self.window = window
        self.slot_bytes = len(names) * dim * dtype.itemsize

    def view(self, position: int, rows: int) -> View:
        """The slots that rows at ``position`` may see, widened to multiples of `VIEW_SLOTS`."""
        first = 0 if self.window is None else max(0, position - self.window + 1)
        return View(first // VIEW_SLOTS * VIEW_SLOTS, -(-(position + rows) // VIEW_SLOTS) * VIEW_SLOTS)

    def moved_bytes(self, position: int, rows: int) -> int:
        """Bytes that a call reads of all caches."""
        return self.view(position, rows).slots * self.slot_bytes
