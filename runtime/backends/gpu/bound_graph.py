"""Binds one graph to memory: blocks that cross the bus, what other graphs read, and caches, at fixed addresses.

For every choice of sizes, everything is bound once, and an executor may record its run as a CUDA graph.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Mapping
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from fastblt.runtime.backends.controls import Controls
from fastblt.runtime.backends.gpu.cuda import DeviceMemory, PinnedMemory, Stream, UploadBlocks, Views, aligned
from fastblt.runtime.backends.gpu.executor import Bound, Executor, Launch
from fastblt.runtime.backends.gpu.tensor_table import Binding, Block, shape_of, tensors_bound_as
from fastblt.runtime.bundle.dtypes import numpy_dtype
from fastblt.runtime.bundle.manifest import BATCH


class Inputs:
    """Holds what the host writes before a call: arrays in page-locked memory.

    Args:
        arrays: by tensor, with the batch's axis.
    """

    __slots__ = ("arrays", "controls", "each")

    def __init__(self, arrays: Views) -> None:
        self.arrays = arrays
        placed = (arrays[name] for name in ("positions", "visible_start", "visible_end"))
        self.each = [Controls(*one) for one in zip(*placed, arrays["write_index"][:, None], strict=True)]
        """Those that place the rows of each sequence, without the batch's axis."""
        self.controls = self.each[0]


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


class BoundGraph:
    """Holds a graph, the memory of one call, and its shape classes.

    Args:
        executor: runs the graph.
        stream: carries the work.
        largest: number for every size that the graph's tensors name, for the largest call.
        row_bytes: size of a row of each cache.
        whole: memory of inputs that is bound in every class, instead of memory for the rows of a call.
    """

    def __init__(
        self,
        executor: Executor,
        stream: Stream,
        largest: Mapping[str, int],
        row_bytes: int,
        whole: Mapping[str, Bound] = MappingProxyType({}),
    ) -> None:
        self.spec, self.whole, self.row_bytes = executor.spec, whole, row_bytes
        self.cache_names = [t.name for t in self.spec.inputs if t.role == "cache"]
        self._executor, self._stream, self._largest = executor, stream, largest
        upload, download = (self._block(binding, largest) for binding in (Binding.UPLOAD, Binding.DOWNLOAD))
        self._upload, self._download = (DeviceMemory(stream.cuda, b.bytes) for b in (upload, download))
        self._pinned = PinnedMemory(stream.cuda, max(download.bytes, 1))
        self.links = self._make_links(largest)
        self._rows_area = self._make_rows_area(largest)
        self._classes: dict[Hashable, ShapeClass] = {}
        self._current: ShapeClass | None = None
        self._source = 0

    def _make_links(self, largest: Mapping[str, int]) -> dict[str, DeviceMemory]:
        """Allocate tensors that pass from graph to graph, and those that nobody reads."""
        return {
            spec.name: DeviceMemory(self._stream.cuda, _bytes(shape_of(spec, largest), spec.dtype))
            for spec in tensors_bound_as(self.spec, Binding.LINK, Binding.UNREAD)
            if spec.name not in self.whole
        }

    def _make_rows_area(self, largest: Mapping[str, int]) -> DeviceMemory | None:
        """Allocate the caches' new rows, cache after cache, and the pool's after them; None without such outputs."""
        specs = tensors_bound_as(self.spec, Binding.APPENDED)
        size = sum(aligned(_bytes(shape_of(spec, largest), spec.dtype)) for spec in specs)
        return DeviceMemory(self._stream.cuda, size) if specs else None

    def _block(self, binding: Binding, sizes: Mapping[str, int]) -> Block:
        return Block(tensors_bound_as(self.spec, binding), sizes)

    def _choose(
        self,
        key: Hashable,
        sizes: Callable[[], dict[str, int]],
        cache: Callable[[str], int],
        whole: Mapping[str, Bound] | None = None,
    ) -> ShapeClass:
        """Make a shape class the current one, and return it; it is bound when it occurs for the first time.

        Args:
            key: of the class.
            sizes: returns the numbers for the sizes that the graph's tensors name.
            cache: returns the device address of a cache, or of the pool.
            whole: memory of inputs that is bound in this class; None: the same as in the others.
        """
        found = self._classes.get(key)
        if found is None:
            found = self._classes[key] = self._bind(sizes(), cache, self.whole if whole is None else whole)
        self._current = found
        return found

    def _bind(self, sizes: dict[str, int], cache: Callable[[str], int], whole: Mapping[str, Bound]) -> ShapeClass:
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
            found = whole.get(spec.name)
            tensors[spec.name] = found or Bound(shape_of(spec, sizes), self.links[spec.name].address)
        for spec in tensors_bound_as(self.spec, Binding.CACHE):
            tensors[spec.name] = Bound(shape_of(spec, sizes), cache(spec.name.removesuffix("_out")))
        for spec in tensors_bound_as(self.spec, Binding.APPENDED):
            tensors[spec.name] = Bound(shape_of(spec, sizes), self._rows_address(spec.name, sizes))
        return ShapeClass(self._stream, upload, download, self._executor.bind(tensors), self._pinned.bytes)

    def _rows_address(self, name: str, sizes: Mapping[str, int]) -> int:
        """Return the address of a cache's new rows; the pool's come after all others."""
        assert self._rows_area is not None
        rows = sizes.get("rows", sizes.get("patches", 0)) * sizes.get(BATCH, 1)
        caches = [f"{cache}_rows" for cache in self.cache_names]
        lane = caches.index(name) if name in caches else len(caches)
        return self._rows_area.address + lane * aligned(rows * self.row_bytes)

    @property
    def current(self) -> ShapeClass:
        """Return the current class."""
        assert self._current is not None
        return self._current

    def take_inputs(self) -> Inputs:
        """Return what the host writes before a call of the current class; `send` sends it."""
        self._source, inputs = self.current.blocks.take()
        return inputs

    def send(self) -> None:
        """Queue the copy of what the host wrote since `take_inputs`."""
        self._stream.upload(self._upload.address, self._source, self.current.upload.bytes)

    def clear_links(self) -> None:
        """Empty what passes from graph to graph, behind whatever is queued: padding rows read what was left there."""
        for memory in self.links.values():
            self._stream.clear(memory)

    def launch(self) -> None:
        """Queue the graph."""
        self.current.launch.run()

    def queue_nothing(self) -> None:
        """Queue the current class once, on zeros; its rows see the first slot."""
        inputs = self.take_inputs()
        for spec in tensors_bound_as(self.spec, Binding.UPLOAD):
            # A row that sees no slot, or an empty patch, would become NaN.
            inputs.arrays[spec.name][:] = spec.role in ("visible_end", "patch_end")
        self.send()
        self.launch()

    @property
    def recordable(self) -> bool:
        """Return whether a call of the current class can become part of a CUDA graph, whatever its position.

        New rows that are copied into the caches have addresses that depend on the position.
        """
        return self._rows_area is None and self.current.launch.recordable()

    def record(self) -> None:
        """Queue the graph while the stream is captured."""
        self.current.launch.record()

    def result_address(self, name: str) -> int:
        """Return the device address of a result of the current class."""
        return self._download.address + self.current.download.fields[name].offset

    @property
    def uploads(self) -> int:
        """Return the device address of what the host sends."""
        return self._upload.address

    def upload_address(self, name: str) -> int:
        """Return the device address of an uploaded input of the current class."""
        return self._upload.address + self.current.upload.fields[name].offset

    def fetch(self) -> Views:
        """Queue the copy of the results to the host; they may be read after a wait and before the next call."""
        self._stream.download(self._pinned.address, self._download.address, self.current.download.bytes)
        return self.current.results


def _bytes(shape: tuple[int, ...], dtype: str) -> int:
    return math.prod(shape) * numpy_dtype(dtype).itemsize
