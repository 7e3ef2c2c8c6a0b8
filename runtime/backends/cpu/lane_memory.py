"""Reserves the memory of lanes, and gives that of a lane back to the system when nobody has it any more."""

from __future__ import annotations

import mmap
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np

from fastblt.runtime.backends.cpu.buffers import Buffer
from fastblt.runtime.backends.protocol import CapacityError

_GIVES_BACK = sys.platform == "linux"


class LaneMemory(Buffer):
    """Holds one cache of every lane of a class, ``array`` [lanes, slots, dim], zeroed and committed when used.

    Raises:
        CapacityError: there is no memory for it.
    """

    def __init__(self, lanes: int, slots: int, dim: int, dtype: np.dtype[Any]) -> None:
        try:
            self._reserve(lanes, slots, dim, dtype)
        except (OSError, MemoryError) as error:
            size = lanes * slots * dim * dtype.itemsize
            raise CapacityError(f"lanes: found no memory ({error}), expected {size:,} bytes for {lanes}") from error

    def _reserve(self, lanes: int, slots: int, dim: int, dtype: np.dtype[Any]) -> None:
        if not _GIVES_BACK:
            super().__init__(lanes, (slots, dim), dtype)
            return
        self.row_shape = slots, dim
        self.row_bytes = slots * dim * dtype.itemsize
        self.bytes = lanes * self.row_bytes
        self._map = mmap.mmap(-1, self.bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        self.array = np.frombuffer(self._map, dtype=dtype).reshape(lanes, slots, dim)
        self.address = int(self.array.ctypes.data)

    def clear(self, lane: int) -> None:
        """Zero a lane; the pages that are all its own are given back."""
        if not _GIVES_BACK:
            self.array[lane] = 0
            return
        begin, end = lane * self.row_bytes, (lane + 1) * self.row_bytes
        first, last = -(-begin // mmap.PAGESIZE) * mmap.PAGESIZE, end // mmap.PAGESIZE * mmap.PAGESIZE
        if first >= last:
            self.array[lane] = 0
            return
        self._map.madvise(mmap.MADV_DONTNEED, first, last - first)
        flat = self.array[lane].reshape(-1)
        item = flat.itemsize
        flat[: (first - begin) // item] = 0
        flat[(last - begin) // item :] = 0


def committed_slots(classes: Sequence[int], size: int) -> int:
    """Return the slots of the lanes of a stack that are in memory at once, at most.

    Args:
        classes: slots of a lane, by class, rising.
        size: number of sequences, each of which has one lane; one of them has two while it is copied.
    """
    return (size + 1) * classes[-1] if _GIVES_BACK else size * sum(classes)
