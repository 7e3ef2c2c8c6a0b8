"""Decodes a row alone and asks the patcher about the byte that it finds most likely, as one piece of work."""

from __future__ import annotations

import numpy as np

from fastblt.runtime.backends.controls import write_controls
from fastblt.runtime.backends.gpu.bound_graph import Inputs
from fastblt.runtime.backends.gpu.cuda import PinnedMemory, Stream, Views
from fastblt.runtime.backends.gpu.draft_chain import ID_BYTES
from fastblt.runtime.backends.gpu.graph import DeviceGraph
from fastblt.runtime.backends.gpu.recorded_work import RecordedWork, RunGraph
from fastblt.runtime.backends.protocol import Floats, Ids


class RowChain:
    """Holds the memory of such a row.

    Args:
        stream: carries the work.
        decoder: its graph.
        patcher: its graph.
    """

    def __init__(self, stream: Stream, decoder: DeviceGraph, patcher: DeviceGraph) -> None:
        self._stream, self._graphs = stream, (decoder, patcher)
        self._rows = decoder.padded(1)
        """Of each call, padding included."""
        layouts = [graph.choose(self._rows, self._rows).upload for graph in self._graphs]
        self._memory = [PinnedMemory(stream.cuda, layout.bytes) for layout in layouts]
        for memory in self._memory:
            memory.bytes[:] = 0
        views = [layout.views(memory.bytes) for layout, memory in zip(layouts, self._memory, strict=True)]
        self._decoder, self._patcher = (Inputs(arrays) for arrays in views)
        self._slots = (0, 0)
        self._results: Views = {}
        self._entropies: Floats = np.empty(0, dtype=np.float32)
        self._work = RecordedWork(stream, self._graphs)

    def run(self, position: int, ids: Ids | None, latent_index: int, visible_from: int | None) -> tuple[Views, Floats]:
        """Decode a row and wait.

        Args:
            position: of the row.
            ids: int64 [1], its token; None where the decoder reads a byte state, which must be there.
            latent_index: of the latent that it reads.
            visible_from: first position that it, and the byte after it in the patcher, may see; None: 0.

        Returns:
            The decoder's results, and the entropy after the most likely byte, float32 [1]; views.
        """
        self._work.settle()
        self._slots = (
            self._place(self._graphs[0], self._decoder, position, visible_from),
            self._place(self._graphs[1], self._patcher, position + 1, visible_from),
        )
        self._decoder.arrays["latent_index"][0, 0] = latent_index
        if ids is not None:
            self._decoder.arrays["ids"][0, :1] = ids
        self._work.queue(self._queue)
        self._stream.synchronize()
        return self._results, self._entropies

    def _place(self, graph: DeviceGraph, inputs: Inputs, position: int, visible_from: int | None) -> int:
        """Choose the class of a call of one row, write what places it, and return its slot."""
        slot = graph.make_room(position, self._rows)
        graph.caches.end = position + 1
        graph.choose(self._rows, slot + self._rows)
        write_controls(inputs.controls, position, 1, position - slot, graph.window, 0, visible_from, self._rows)
        return slot

    def _queue(self, run: RunGraph) -> None:
        decoder, patcher = self._graphs
        self._send(0, run)
        self._results = decoder.fetch()
        self._send(1, run)
        self._entropies = patcher.fetch()["entropy"][0, :1]

    def _send(self, index: int, run: RunGraph) -> None:
        """Queue the inputs of the decoder or the patcher, and the graph."""
        graph, memory = self._graphs[index], self._memory[index]
        self._stream.upload(graph.uploads, memory.address, memory.size)
        if index == 1:
            best = self._graphs[0].result_address("best")
            self._stream.copy(graph.upload_address("ids"), best, ID_BYTES)
        run(graph)
        graph.append_rows(self._rows, self._slots[index])
