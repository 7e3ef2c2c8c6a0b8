"""Binds one graph to its memory: caches, blocks that cross the bus, and what other graphs read, at fixed addresses.

The number of rows of a call is rounded up to a power of two, so that few *shape classes* occur; for each, everything
is bound once, and an executor may record its run as a CUDA graph. Rows that pad a call come after the others: their
keys and values land in slots that the next call overwrites, and nobody reads their results.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastblt.models.config import StackConfig
from fastblt.runtime.backends.controls import Controls
from fastblt.runtime.backends.gpu.cuda import DeviceMemory, PinnedMemory, Stream, UploadBlocks, Views, aligned
from fastblt.runtime.backends.gpu.executor import Bound, Executor, Launch
from fastblt.runtime.backends.gpu.sliding import CALL_ROWS, REWIND, RewindError, SlidingBuffer
from fastblt.runtime.backends.gpu.tensor_table import Binding, Block, shape_of, size_names, tensors_bound_as
from fastblt.runtime.backends.live_rows import first_visible
from fastblt.runtime.bundle.dtypes import numpy_dtype


def padded(count: int) -> int:
    """Return the next power of two."""
    return 1 << (count - 1).bit_length()


class Inputs:
    """Holds what the host writes before a call: arrays in page-locked memory.

    Args:
        arrays: by tensor, with the batch's axis.
    """

    __slots__ = ("arrays", "controls")

    def __init__(self, arrays: Views) -> None:
        self.arrays = arrays
        positions, start, end = (arrays[name][0] for name in ("positions", "visible_start", "visible_end"))
        self.controls = Controls(positions, start, end, arrays["write_index"])
        """Those that place the rows, without the batch's axis."""


class ShapeClass:
    """Holds what is fixed for one choice of sizes: the layout of the blocks, and the bound graph.

    Args:
        stream: carries uploads.
        upload: layout of what the host sends.
        download: layout of what the host reads.
        launch: runs the graph on the memory bound to it.
        pinned: where results arrive on the host, uint8.
    """

    def __init__(
        self, stream: Stream, upload: Block, download: Block, launch: Launch, pinned: NDArray[np.uint8]
    ) -> None:
        self.upload = upload
        self.download = download
        self.launch = launch
        self.blocks = UploadBlocks(stream, upload.bytes, lambda memory: Inputs(upload.views(memory)))
        self.results = download.views(pinned)


class DeviceGraph:
    """Holds a graph, its memory and its shape classes.

    Args:
        executor: runs the graph.
        stack: geometry of its transformer stack.
        stream: carries the work.
        history: tokens before the rows, where the graph reads ids with history.
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
        *,
        slides: bool,
        whole: Mapping[str, Bound] = MappingProxyType({}),
        row_floor: int = 1,
        most_rows: int = CALL_ROWS,
        caches: SlidingBuffer | None = None,
    ) -> None:
        self.spec = executor.spec
        self.window = stack.window
        self._executor, self._stream, self._history = executor, stream, history
        lanes = [t for t in self.spec.inputs if t.role == "cache"]
        self.cache_names = [t.name for t in lanes]
        self.row_bytes = stack.dim * numpy_dtype(lanes[0].dtype).itemsize
        self.owns_caches = caches is None
        self.caches = caches or SlidingBuffer(stream, len(lanes), executor.slots, self.row_bytes, REWIND, slides=slides)
        self.pool = self._make_pool()
        self.whole, self._row_floor, self._most_rows = whole, row_floor, most_rows
        self._largest = largest = self._sizes(CALL_ROWS, executor.slots, executor.pool_slots)
        upload, download = (self._block(binding, largest) for binding in (Binding.UPLOAD, Binding.DOWNLOAD))
        self._upload, self._download = (DeviceMemory(stream.cuda, b.bytes) for b in (upload, download))
        self._pinned = PinnedMemory(stream.cuda, max(download.bytes, 1))
        self.links = self._make_links(largest)
        self._rows_area = self._make_rows_area(largest)
        self._classes: dict[tuple[int, int, int], ShapeClass] = {}
        self._current: ShapeClass | None = None
        self._source = 0

    def _make_pool(self) -> SlidingBuffer | None:
        """Allocate the pool of the encoder's states; None for the other graphs."""
        pool = next((t for t in self.spec.inputs if t.role == "pool"), None)
        if pool is None:
            return None
        row_bytes = int(pool.shape[-1]) * numpy_dtype(pool.dtype).itemsize
        slots, usual = self._executor.pool_slots, self._executor.usual_pool_slots
        return SlidingBuffer(self._stream, 1, slots, row_bytes, REWIND, slides=True, usual=usual)

    def _make_links(self, largest: dict[str, int]) -> dict[str, DeviceMemory]:
        """Allocate tensors that pass from graph to graph, and those that nobody reads."""
        return {
            spec.name: DeviceMemory(self._stream.cuda, _bytes(shape_of(spec, largest), spec.dtype))
            for spec in tensors_bound_as(self.spec, Binding.LINK, Binding.UNREAD)
            if spec.name not in self.whole
        }

    def _make_rows_area(self, largest: dict[str, int]) -> DeviceMemory | None:
        """Allocate the caches' new rows, cache after cache, and the pool's after them; None without such outputs."""
        specs = tensors_bound_as(self.spec, Binding.APPENDED)
        size = sum(aligned(_bytes(shape_of(spec, largest), spec.dtype)) for spec in specs)
        return DeviceMemory(self._stream.cuda, size) if specs else None

    def _sizes(self, rows: int, slots: int, pool_slots: int) -> dict[str, int]:
        """Return the sizes that the graph's tensors name.

        Rows close no more patches than there are rows, and read no more latents.
        """
        named = {
            "rows": rows,
            "context_rows": rows + self._history,
            "patches": rows,
            "latents": rows,
            "slots": slots,
            "pool_slots": pool_slots,
        }
        for spec in self.spec.inputs:
            if spec.name in self.whole:
                shape = zip(spec.shape, self.whole[spec.name].shape, strict=True)
                named |= {size: number for size, number in shape if isinstance(size, str)}
        used = size_names((*self.spec.inputs, *self.spec.outputs))
        return {name: size for name, size in named.items() if name in used}

    def _block(self, binding: Binding, sizes: dict[str, int]) -> Block:
        return Block(tensors_bound_as(self.spec, binding), sizes)

    def padded(self, rows: int) -> int:
        """Return the rows of the shape class that a call of ``rows`` belongs to."""
        return max(self._row_floor, padded(rows))

    def shape_classes(self) -> list[tuple[int, int]]:
        """Return rows and slots of every class that calls can have, except those of patches longer than usual."""
        powers = [1 << shift for shift in range(self.caches.slots.bit_length())]
        slots = sorted({self._visible_slots(live) for live in (*powers, self.caches.slots)})
        most = self.padded(self._most_rows)
        return [(rows, live) for rows in powers if self._row_floor <= rows <= most for live in slots]

    def run_nothing(self, rows: int, slots: int) -> None:
        """Queue a class once, on zeros; its rows see the first slot."""
        inputs = self.begin(rows, slots)
        for spec in tensors_bound_as(self.spec, Binding.UPLOAD):
            # A row that sees no slot, or an empty patch, would become NaN.
            inputs.arrays[spec.name][:] = spec.role in ("visible_end", "patch_end")
        self.send()
        self.launch()

    def clear(self) -> None:
        """Empty the caches, and what padding rows may read, once everything that is queued is done."""
        if self.owns_caches:
            self.caches.clear()
        if self.pool is not None:
            self.pool.clear()
        for memory in self.links.values():
            memory.clear()

    def reset(self) -> None:
        """Let the next rows begin at position 0; what is in the caches is overwritten before anything reads it."""
        self.caches.base = 0
        if self.pool is not None:
            self.pool.base = 0

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
        key = (rows, self._visible_slots(live), self._visible_pool_slots(pool_live))
        found = self._classes.get(key)
        if found is None:
            found = self._classes[key] = self._bind(self._sizes(*key))
        self._current = found
        return found

    @property
    def current(self) -> ShapeClass:
        """Return the current class, see `choose`."""
        assert self._current is not None
        return self._current

    def begin(self, rows: int, live: int, pool_live: int = 0) -> Inputs:
        """Choose the shape class of a call, see `choose`, and return what the host writes; `send` sends it."""
        self._source, inputs = self.choose(rows, live, pool_live).blocks.take()
        return inputs

    def _visible_slots(self, live: int) -> int:
        """Return how many slots to bind: all where there is a window, since a text soon fills it."""
        return self.caches.slots if self.window is not None else self._executor.visible_slots(live)

    def _visible_pool_slots(self, live: int) -> int:
        """Return how many slots of the pool to bind: those of usual patches, else a power of two."""
        usual, most = self._executor.usual_pool_slots, self._executor.pool_slots
        return usual if live <= usual else min(most, padded(live))

    def _bind(self, sizes: dict[str, int]) -> ShapeClass:
        """Bind every tensor for a choice of sizes, all of which its memory has room for."""
        for name, size in sizes.items():
            if size > self._largest[name]:
                raise ValueError(f"{self.spec.file}: found {size} {name}, expected at most {self._largest[name]}")
        upload, download = self._block(Binding.UPLOAD, sizes), self._block(Binding.DOWNLOAD, sizes)
        tensors: dict[str, Bound] = {}
        for block, memory in ((upload, self._upload), (download, self._download)):
            for name, field in block.fields.items():
                tensors[name] = Bound(field.shape, memory.address + field.offset)
        for spec in tensors_bound_as(self.spec, Binding.LINK, Binding.UNREAD):
            found = self.whole.get(spec.name)
            tensors[spec.name] = found or Bound(shape_of(spec, sizes), self.links[spec.name].address)
        for spec in tensors_bound_as(self.spec, Binding.CACHE):
            tensors[spec.name] = Bound(shape_of(spec, sizes), self._cache_address(spec.name.removesuffix("_out")))
        for spec in tensors_bound_as(self.spec, Binding.APPENDED):
            tensors[spec.name] = Bound(shape_of(spec, sizes), self._rows_address(spec.name, sizes))
        return ShapeClass(self._stream, upload, download, self._executor.bind(tensors), self._pinned.bytes)

    def _cache_address(self, name: str) -> int:
        """Return the address of a cache, or of the pool."""
        if name == "pool":
            assert self.pool is not None
            return self.pool.address(0)
        return self.caches.address(self.cache_names.index(name))

    def _rows_address(self, name: str, sizes: dict[str, int]) -> int:
        """Return the address of a cache's new rows; the pool's come after all others."""
        assert self._rows_area is not None
        rows = sizes.get("rows", sizes.get("patches", 0))
        caches = [f"{cache}_rows" for cache in self.cache_names]
        lane = caches.index(name) if name in caches else len(caches)
        return self._rows_area.address + lane * aligned(rows * self.row_bytes)

    def send(self) -> None:
        """Queue the copy of what the host wrote since `begin`."""
        assert self._current is not None
        self._stream.upload(self._upload.address, self._source, self._current.upload.bytes)

    def launch(self) -> None:
        """Queue the graph."""
        assert self._current is not None
        self._current.launch.run()

    @property
    def recordable(self) -> bool:
        """Return whether a call of the current class can become part of a CUDA graph, whatever its position.

        New rows that are copied into the caches have addresses that depend on the position.
        """
        assert self._current is not None
        return self._rows_area is None and self._current.launch.recordable()

    def record(self) -> None:
        """Queue the graph while the stream is captured."""
        assert self._current is not None
        self._current.launch.record()

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

    def result_address(self, name: str) -> int:
        """Return the device address of a result of the current class."""
        assert self._current is not None
        return self._download.address + self._current.download.fields[name].offset

    @property
    def uploads(self) -> int:
        """Return the device address of what the host sends."""
        return self._upload.address

    def upload_address(self, name: str) -> int:
        """Return the device address of an uploaded input of the current class."""
        assert self._current is not None
        return self._upload.address + self._current.upload.fields[name].offset

    def moved_bytes(self, position: int, rows: int) -> int:
        """Return the weight and cache bytes that a call of ``rows`` at ``position`` reads; padding counts as rows."""
        live = min(position + self.padded(rows), self.caches.slots)
        return self.spec.weight_bytes + self.caches.lanes * self._visible_slots(live) * self.row_bytes

    def fetch(self) -> Views:
        """Queue the copy of the results to the host; they may be read after a wait and before the next call."""
        assert self._current is not None
        self._stream.download(self._pinned.address, self._download.address, self._current.download.bytes)
        return self._current.results

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


def _bytes(shape: tuple[int, ...], dtype: str) -> int:
    return math.prod(shape) * numpy_dtype(dtype).itemsize
