"""Binds one graph to the memory of one slot.

The number of rows of a call is rounded up to a power of two, so that few *shape classes* occur; for each, everything
is bound once, and an executor may record its run as a CUDA graph. Rows that pad a call come after the others: their
keys and values land in slots that the next call overwrites, and nobody reads their results.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from numpy.typing import NDArray

from fastblt.models.config import StackConfig
from fastblt.runtime.backends.gpu.bound_graph import BoundGraph, Inputs, ShapeClass
from fastblt.runtime.backends.gpu.buffer_array import SharedMemory
from fastblt.runtime.backends.gpu.cuda import Stream, aligned
from fastblt.runtime.backends.gpu.executor import Bound, Executor
from fastblt.runtime.backends.gpu.sliding import CALL_ROWS, REWIND, RewindError, SlidingBuffer
from fastblt.runtime.backends.gpu.tensor_table import size_names
from fastblt.runtime.backends.live_rows import first_visible
from fastblt.runtime.bundle.dtypes import numpy_dtype
from fastblt.runtime.bundle.manifest import BATCH


def padded(count: int) -> int:
    """Return the next power of two."""
    return 1 << (count - 1).bit_length()


class DeviceGraph(BoundGraph):
    """Holds a graph, its memory and its shape classes.

    Args:
        executor: runs the graph.
        stack: geometry of its transformer stack.
        stream: carries the work.
        history: tokens before the rows, where the graph reads ids with history.
        memory: of the caches of all slots.
        slides: whether the caches hold fewer than all positions.
        whole: memory of inputs that is bound in every class, instead of memory for the rows of a call.
        row_floor: fewest rows of a class, a power of two.
        most_rows: of a call; `shape_classes` lists no larger ones.
        caches: those of a graph with the same stack, whose keys and values this one reads and overwrites; None: it has
            caches of its own.
    """

    def __init__(
        self,
        executor: Executor,
        stack: StackConfig,
        stream: Stream,
        history: int,
        memory: SharedMemory,
        *,
        slides: bool,
        whole: Mapping[str, Bound] = MappingProxyType({}),
        row_floor: int = 1,
        most_rows: int = CALL_ROWS,
        caches: SlidingBuffer | None = None,
    ) -> None:
        self.window, self.row_floor, self.history = stack.window, row_floor, history
        self._most_rows = most_rows
        lanes = [t for t in executor.spec.inputs if t.role == "cache"]
        row_bytes = stack.dim * numpy_dtype(lanes[0].dtype).itemsize
        sizes = _named_sizes(executor, whole, CALL_ROWS, history, executor.slots, executor.pool_slots)
        super().__init__(executor, stream, sizes, row_bytes, whole)
        self.owns_caches = caches is None
        self.caches = caches or self._make_caches(len(lanes), memory, slides=slides)
        self.pool = self._make_pool(memory)

    def _make_caches(self, lanes: int, memory: SharedMemory, *, slides: bool) -> SlidingBuffer:
        slots = self._executor.slots
        array = memory.array(self.spec.file, lanes, slots, self.row_bytes, self._fewest_slots(slots))
        return SlidingBuffer(self._stream, lanes, slots, self.row_bytes, REWIND, slides=slides, array=array)

    def _make_pool(self, memory: SharedMemory) -> SlidingBuffer | None:
        """Allocate the pool of the encoder's states; None for the other graphs."""
        pool = next((t for t in self.spec.inputs if t.role == "pool"), None)
        if pool is None:
            return None
        row_bytes = int(pool.shape[-1]) * numpy_dtype(pool.dtype).itemsize
        slots, usual = self._executor.pool_slots, self._executor.usual_pool_slots
        array = memory.array("pool", 1, slots, row_bytes, usual)
        return SlidingBuffer(self._stream, 1, slots, row_bytes, REWIND, slides=True, usual=usual, array=array)

    def _fewest_slots(self, slots: int) -> int:
        return slots if self.window is not None else self._executor.visible_slots(1)

    def padded(self, rows: int) -> int:
        """Return the rows of the shape class that a call of ``rows`` belongs to."""
        return max(self.row_floor, padded(rows))

    def shape_classes(self) -> list[tuple[int, int]]:
        """Return rows and slots of every class that calls can have, except those of patches longer than usual."""
        powers = [1 << shift for shift in range(self.caches.slots.bit_length())]
        slots = sorted({self.visible_slots(live) for live in (*powers, self.caches.slots)})
        most = self.padded(self._most_rows)
        return [(rows, live) for rows in powers if self.row_floor <= rows <= most for live in slots]

    def run_nothing(self, rows: int, slots: int) -> None:
        """Queue a class once, on zeros; its rows see the first slot."""
        self.caches.array.make_room(slots)
        self.choose(rows, slots)
        self.queue_nothing()

    def run_moved_classes(self) -> None:
        """Queue the classes that are bound elsewhere since the slots have moved closer, once, on zeros."""
        array = self.caches.array
        if array.stride < array.rows:
            for rows, slots in self.shape_classes():
                if slots <= array.stride:
                    self.run_nothing(rows, slots)

    def clear(self) -> None:
        """Empty the caches, and what padding rows may read, behind whatever is queued."""
        if self.owns_caches:
            self.caches.clear()
        if self.pool is not None:
            self.pool.clear()
        self.clear_links()

    def reset(self) -> None:
        """Let the next rows begin at position 0; what is in the caches is overwritten before anything reads it."""
        self.caches.reset()
        if self.pool is not None:
            self.pool.reset()

    def make_room(self, position: int, rows: int) -> int:
        """Make room in the caches for rows, padding included, and return the slot of the first one."""
        return self.caches.make_room(first_visible(position, self.window), position, rows)

    def choose(self, rows: int, live: int, pool_live: int = 0) -> ShapeClass:
        """Make the shape class of a call the current one, and return it.

        Args:
            rows: of the class, from `DeviceGraph.padded`.
            live: number of slots, from the first on, that rows may see or are written to.
            pool_live: the same for the pool.
        """
        bound, pooled = self.visible_slots(live), self.visible_pool_slots(pool_live)
        # Slots of the backend move apart where a batch needs it.
        key = (rows, self.caches.address(0), self.pool and self.pool.address(0), bound, pooled)
        return self._choose(key, lambda: self.sizes(rows, bound, pooled), self.cache_address)

    def sizes(self, rows: int, slots: int, pool_slots: int, together: int = 1) -> dict[str, int]:
        """Return the sizes that the graph's tensors name, in a call of one sequence or of several."""
        return _named_sizes(self._executor, self.whole, rows, self.history, slots, pool_slots, together)

    def begin(self, rows: int, live: int, pool_live: int = 0) -> Inputs:
        """Choose the shape class of a call, see `choose`, and return what the host writes; `send` sends it."""
        self.choose(rows, live, pool_live)
        return self.take_inputs()

    def cache_address(self, name: str) -> int:
        """Return the device address of a cache, or of the pool."""
        if name == "pool":
            assert self.pool is not None
            return self.pool.address(0)
        return self.caches.address(self.cache_names.index(name))

    def visible_slots(self, live: int) -> int:
        """Return how many slots to bind: all where there is a window, since a text soon fills it."""
        return self.caches.slots if self.window is not None else self._executor.visible_slots(live)

    def visible_pool_slots(self, live: int) -> int:
        """Return how many slots of the pool to bind: those of usual patches, else a power of two."""
        usual, most = self._executor.usual_pool_slots, self._executor.pool_slots
        return usual if live <= usual else min(most, padded(live))

    def append_rows(self, rows: int, slot: int, pool_slot: int = 0) -> None:
        """Queue the copy of new rows into the caches, where the graph does not write them there itself.

        Args:
            rows: of the shape class.
            slot: of the first row in the caches.
            pool_slot: of the first row in the pool.
        """
        if self._rows_area is None:
            return
        width, lane = rows * self.row_bytes, self.caches.lane_bytes
        target, pitch = self.caches.address(0, slot), aligned(width)
        self._stream.copy_rows(target, lane, self._rows_area.address, pitch, width, len(self.cache_names))
        if self.pool is not None:
            source = self._rows_area.address + len(self.cache_names) * pitch
            self._stream.copy(self.pool.address(0, pool_slot), source, rows * self.pool.row_bytes)

    def moved_bytes(self, position: int, rows: int) -> int:
        """Return the weight and cache bytes that a call of ``rows`` at ``position`` reads; padding counts as rows."""
        live = min(position + self.padded(rows), self.caches.slots)
        return self.spec.weight_bytes + self.caches.lanes * self.visible_slots(live) * self.row_bytes

    def read_cache(self, name: str, position: int, count: int) -> NDArray[Any]:
        """Return a copy of a cache's rows, [count, dim], after waiting for the stream.

        Args:
            name: of the cache's input, e.g. ``key_0``.
            position: of the first row.
            count: number of rows.

        Raises:
            RewindError: the cache no longer holds the first position.
        """
        spec = self.spec.input(name)
        assert spec is not None, f"{self.spec.file} has no {name}"
        slot = position - self.caches.base
        if slot < 0:
            raise RewindError(
                f"{self.spec.file}: {name}: found position {position}, expected at least {self.caches.base}"
            )
        address = self.caches.address(self.cache_names.index(name), slot)
        raw = self._stream.read((address, count * self.row_bytes))
        return raw.view(numpy_dtype(spec.dtype)).reshape(count, int(spec.shape[-1]))


def _named_sizes(
    executor: Executor,
    whole: Mapping[str, Bound],
    rows: int,
    history: int,
    slots: int,
    pool_slots: int,
    together: int = 1,
) -> dict[str, int]:
    """Return the sizes that a graph's tensors name, for a call of ``rows`` rows of each of ``together`` sequences.

    Rows close no more patches than there are rows, and read no more latents.
    """
    named = {
        BATCH: together,
        "rows": rows,
        "context_rows": rows + history,
        "patches": rows,
        "latents": rows * together,
        "slots": slots,
        "pool_slots": pool_slots,
    }
    spec = executor.spec
    for tensor in spec.inputs:
        if tensor.name in whole:
            shape = zip(tensor.shape, whole[tensor.name].shape, strict=True)
            named |= {size: number for size, number in shape if isinstance(size, str)}
    used = size_names((*spec.inputs, *spec.outputs))
    return {name: size for name, size in named.items() if name in used}
