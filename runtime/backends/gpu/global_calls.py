"""Runs the global transformer: patch embeddings become latents."""

from __future__ import annotations

from fastblt.runtime.backends.gpu.call import Call, pieces
from fastblt.runtime.backends.gpu.device_rows import DeviceRows
from fastblt.runtime.backends.gpu.graph import DeviceGraph
from fastblt.runtime.backends.protocol import Ids


class GlobalCalls:
    """Runs the graph of the global transformer, whose positions are patches.

    Args:
        graph: the global transformer's.
        patch_embeddings: of the patches that the encoder pooled last.
        latents: receives the latents, as the decoder's keys and values.
    """

    def __init__(self, graph: DeviceGraph, patch_embeddings: DeviceRows, latents: DeviceRows) -> None:
        self._graph = graph
        self._patch_embeddings = patch_embeddings
        self._latents = latents

    def run(self, first_patch: int, count: int, visible_from: Ids | None = None) -> None:
        """Implement `BackendSequence.run_global`."""
        for first, end in pieces(count):
            rows, position = end - first, first_patch + first
            seen = None if visible_from is None else visible_from[first:end]
            call = Call(self._graph, position, rows, visible_from=seen)
            self._patch_embeddings.copy_to(self._graph, first, rows)
            call.run()
            self._latents.copy_from(self._graph, position, rows)
