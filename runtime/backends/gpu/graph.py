"""One graph with its memory: caches, blocks that cross the bus, and what other graphs read. All addresses are fixed.

The number of rows of a call is rounded up to a power of two, so that few *shape classes* occur; for each, everything
is bound once, and an executor may record its run as a CUDA graph. Rows that pad a call stand behind the others: their
keys and values land in slots that the next call overwrites, and nobody reads what comes out of them.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from fastblt.models.config import StackConfig
from fastblt.runtime.backends.gpu.cuda import DeviceMemory, PinnedMemory, Stream, UploadBlocks, Views, aligned
from fastblt.runtime.backends.gpu.executor import Bound, Executor, Launch
from fastblt.runtime.backends.gpu.sliding import CALL_ROWS, REWIND, SlidingBuffer
from fastblt.runtime.backends.gpu.tensor_table import Binding, Block, shape_of, size_names, tensors_bound_as
from fastblt.runtime.backends.protocol import Ids
from fastblt.runtime.bundle.dtypes import numpy_dtype


def padded(rows: int) -> int:
    """Rows of the shape class that a call of ``rows`` belongs to: the next power of two."""
    return 1 << (rows - 1).bit_length()


class ShapeClass:
    """What is fixed for one choice of sizes: where tensors lie in the blocks, and the bound graph.

    Args:
        stream: carries uploads.
        upload: what the host sends.
        download: what it reads.
        launch: the graph.
        pinned: where results arrive, uint8.
    """

    def __init__(
        self, stream: Stream, upload: Block, download: Block, launch: Launch, pinned: NDArray[np.uint8]
    ) -> None:
        self.upload = upload
        self.download = download
        self.launch = launch
        self.blocks = UploadBlocks(stream, upload.bytes, upload.views)
        self.results = download.views(pinned)


class DeviceGraph:
    """A graph, its memory and its shape classes.

    Args:
        executor: runs it.
        stack: geometry of its transformer stack.
        stream: carries the work.
        history: tokens before the rows, where the graph reads ids with history.
        slides: whether its caches hold less than all positions.
    """

    def __init__(self, executor: Executor, stack: StackConfig, stream: Stream, history: int, *, slides: bool) -> None:
        self.spec = executor.spec
        self.window = stack.window
        self._executor, self._stream, self._history = executor, stream, history
        caches = [t for t in self.spec.inputs if t.role == "cache"]
        self.cache_names = [t.name for t in caches]
        self.row_bytes = stack.dim * numpy_dtype(caches[0].dtype).itemsize
        self.caches = SlidingBuffer(stream, len(caches), executor.slots, self.row_bytes, REWIND, slides=slides)
        self.pool = self._make_pool()
        largest = self._sizes(CALL_ROWS, CALL_ROWS, CALL_ROWS, executor.slots)
        upload, download = (self._block(place, largest) for place in (Binding.UPLOAD, Binding.DOWNLOAD))
        self._upload, self._download = (DeviceMemory(stream.cuda, b.bytes) for b in (upload, download))
        self._pinned = PinnedMemory(stream.cuda, max(download.bytes, 1))
        self.links = self._make_links(largest)
        self._rows_area = self._make_rows_area(largest)
        self._classes: dict[tuple[int, ...], ShapeClass] = {}
        self._current: ShapeClass | None = None
        self._source = 0

    def _make_pool(self) -> SlidingBuffer | None:
        pool = next((t for t in self.spec.inputs if t.role == "pool"), None)
        if pool is None:
            return None
        row_bytes = int(pool.shape[-1]) * numpy_dtype(pool.dtype).itemsize
        return SlidingBuffer(self._stream, 1, self._executor.pool_slots, row_bytes, REWIND, slides=True)

    def _make_links(self, largest: dict[str, int]) -> dict[str, DeviceMemory]:
        """Memory of tensors that pass from graph to graph, and of those that nobody reads."""
        return {
            spec.name: DeviceMemory(self._stream.cuda, _bytes(shape_of(spec, largest), spec.dtype))
            for spec in tensors_bound_as(self.spec, Binding.LINK, Binding.UNREAD)
        }

    def _make_rows_area(self, largest: dict[str, int]) -> DeviceMemory | None:
        """Memory of the caches' new rows, cache after cache, and of the pool's behind them."""
        specs = tensors_bound_as(self.spec, Binding.APPENDED)
        size = sum(aligned(_bytes(shape_of(spec, largest), spec.dtype)) for spec in specs)
        return DeviceMemory(self._stream.cuda, size) if specs else None

    def _sizes(self, rows: int, patches: int, latents: int, slots: int) -> dict[str, int]:
        named = {
            "rows": rows,
            "context_rows": rows + self._history,
            "patches": patches,
            "latents": latents,
            "slots": slots,
            "pool_slots": self._executor.pool_slots,
        }
        used = size_names((*self.spec.inputs, *self.spec.outputs))
        return {name: size for name, size in named.items() if name in used}

    def _block(self, place: Binding, sizes: dict[str, int]) -> Block:
        return Block(tensors_bound_as(self.spec, place), sizes)

    def begin(self, rows: int, live: int, patches: int = 1, latents: int = 1) -> Views:
        """Choose the shape class of a call: arrays for the host to write, by tensor. `run` sends them.

        Args:
            rows: of the class, as `padded` gives it.
            live: slots that rows may see, and are written to.
            patches: of the class.
            latents: of the class.
        """
        slots = self._executor.visible_slots(live)
        key = (rows, patches, latents, slots)
        found = self._classes.get(key)
        if found is None:
            found = self._classes[key] = self._bind(self._sizes(*key))
        self._current = found
        self._source, arrays = found.blocks.take()
        return arrays

    def _bind(self, sizes: dict[str, int]) -> ShapeClass:
        upload, download = self._block(Binding.UPLOAD, sizes), self._block(Binding.DOWNLOAD, sizes)
        tensors: dict[str, Bound] = {}
        for block, memory in ((upload, self._upload), (download, self._download)):
            for name, field in block.fields.items():
                tensors[name] = Bound(field.shape, memory.address + field.offset)
        for spec in tensors_bound_as(self.spec, Binding.LINK, Binding.UNREAD):
            tensors[spec.name] = Bound(shape_of(spec, sizes), self.links[spec.name].address)
        for spec in tensors_bound_as(self.spec, Binding.CACHE):
            tensors[spec.name] = Bound(shape_of(spec, sizes), self._cache_address(spec.name.removesuffix("_out")))
        for spec in tensors_bound_as(self.spec, Binding.APPENDED):
            tensors[spec.name] = Bound(shape_of(spec, sizes), self._rows_address(spec.name, sizes))
        return ShapeClass(self._stream, upload, download, self._executor.bind(tensors), self._pinned.bytes)

    def _cache_address(self, name: str) -> int:
        if name == "pool":
            assert self.pool is not None
            return self.pool.address(0)
        return self.caches.address(self.cache_names.index(name))

    def _rows_address(self, name: str, sizes: dict[str, int]) -> int:
        """Of a cache's new rows; the pool's stand behind all others."""
        assert self._rows_area is not None
        rows = sizes.get("rows", sizes.get("patches", 0))
        caches = [f"{cache}_rows" for cache in self.cache_names]
        lane = caches.index(name) if name in caches else len(caches)
        return self._rows_area.address + lane * aligned(rows * self.row_bytes)

    def run(self) -> None:
        """Send what the host wrote and queue the graph."""
        self.send()
        self.launch()

    def send(self) -> None:
        """Queue the copy of what the host wrote; some of it may be overwritten on the device before `launch`."""
        assert self._current is not None
        self._stream.upload(self._upload.address, self._source, self._current.upload.bytes)

    def launch(self) -> None:
        """Queue the graph."""
        assert self._current is not None
        self._current.launch.run()

    def append_rows(self, rows: int, slot: int, pool_slot: int = 0) -> None:
        """Copy a class's new rows into the caches, where the graph does not write them there itself."""
        if self._rows_area is None:
            return
        width, lane = rows * self.row_bytes, self.caches.lane_bytes
        target, pitch = self.caches.address(0, slot), aligned(width)
        self._stream.copy_rows(target, lane, self._rows_area.address, pitch, width, len(self.cache_names))
        if self.pool is not None:
            source = self._rows_area.address + len(self.cache_names) * pitch
            self._stream.copy(self.pool.address(0, pool_slot), source, rows * self.pool.row_bytes)

    def result_address(self, name: str) -> int:
        """Where a result of the current class is on the device."""
        assert self._current is not None
        return self._download.address + self._current.download.fields[name].offset

    def upload_address(self, name: str) -> int:
        """Where the device reads an input of the current class."""
        assert self._current is not None
        return self._upload.address + self._current.upload.fields[name].offset

    def moved_bytes(self, position: int, rows: int) -> int:
        """Weight and cache bytes that a call of a class reads."""
        live = min(position + rows, self.caches.slots)
        return self.spec.weight_bytes + self.caches.lanes * self._executor.visible_slots(live) * self.row_bytes

    @property
    def result_bytes(self) -> int:
        """Size of the current class's results."""
        assert self._current is not None
        return self._current.download.bytes

    @property
    def results(self) -> int:
        """Address of the results on the device."""
        return self._download.address

    def fetch(self) -> Views:
        """Queue the copy of the results to the host; read them after a wait, and before the next call."""
        assert self._current is not None
        self._stream.download(self._pinned.address, self._download.address, self._current.download.bytes)
        return self._current.results

    def result_views(self, memory: NDArray[np.uint8]) -> Views:
        """Results of the current class that were copied elsewhere."""
        assert self._current is not None
        return self._current.download.views(memory)


def write_controls(
    arrays: Views, position: int, rows: int, slot: int, window: int | None, block: int, visible_from: Ids | int | None
) -> None:
    """Write what places rows: positions, the slot of the first one, and the slots that each may see.

    Args:
        arrays: of `DeviceGraph.begin`; positions int64 [1, padded rows].
        position: of the first row.
        rows: that are meant; the others pad, and see themselves at least.
        slot: of the first row.
        window: of the stack.
        block: the last ``block`` rows see each other; the others are causal.
        visible_from: first position that each row may see; None: 0.
    """
    base = position - slot
    at = np.arange(position, position + arrays["positions"].shape[1])
    arrays["positions"][0] = at
    arrays["write_index"][0] = slot
    start, end = arrays["visible_start"][0], arrays["visible_end"][0]
    end[:] = at + (1 - base)
    end[rows - block : rows] = position + rows - base
    start[:] = 0 if window is None else np.maximum(at - (window - 1), 0) - base
    if visible_from is not None:
        np.maximum(start[:rows], np.subtract(visible_from, base), out=start[:rows])
    np.maximum(start, 0, out=start)


def _bytes(shape: tuple[int, ...], dtype: str) -> int:
    return math.prod(shape) * numpy_dtype(dtype).itemsize
