"""Makes what a batch consists of: lanes for every stack, the parts over them, and their memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from fastblt.models.config import BltConfig
from fastblt.runtime.backends.batching import (
    SHARED_ROWS,
    Answer,
    DecoderCall,
    DraftCall,
    EncoderCall,
    GlobalCall,
    PartCall,
    PatcherCall,
)
from fastblt.runtime.backends.cpu.batched_graph import BatchedGraph, Sizes, memory_elements, packed_tensors
from fastblt.runtime.backends.cpu.buffers import BINDING_BYTES, BINDINGS_KEPT, Buffer, capacity_of
from fastblt.runtime.backends.cpu.decoder_batch import DecoderBatch
from fastblt.runtime.backends.cpu.draft_batch import DraftBatch
from fastblt.runtime.backends.cpu.encoder_batch import POOL_SLOTS, EncoderBatch
from fastblt.runtime.backends.cpu.global_batch import GlobalBatch
from fastblt.runtime.backends.cpu.lane_classes import LaneClasses
from fastblt.runtime.backends.cpu.lane_memory import committed_slots
from fastblt.runtime.backends.cpu.lanes import Lanes
from fastblt.runtime.backends.cpu.latent_store import LATENTS, LatentStore
from fastblt.runtime.backends.cpu.part_batch import Seated
from fastblt.runtime.backends.cpu.patcher_batch import PatcherBatch
from fastblt.runtime.backends.cpu.sequence import QUANTIZED_ROWS, OnnxRuntimeSequence
from fastblt.runtime.backends.protocol import decoder_of
from fastblt.runtime.bundle.dtypes import numpy_dtype
from fastblt.runtime.bundle.manifest import BATCH, GraphSpec

if TYPE_CHECKING:
    from fastblt.runtime.backends.cpu.backend import OnnxRuntimeBackend


class BatchParts:
    """Runs every part of a model for the sequences of a batch.

    Args:
        backend: of the sequences.
        size: most of them.
    """

    def __init__(self, backend: OnnxRuntimeBackend, size: int) -> None:
        config, quantized = backend.config, backend.manifest.quantized_parts
        self._config = config
        self.lanes = {
            part: Lanes(*_caches(graph.spec), size=size, classes=lane_classes(backend, part))
            for part, graph in backend.graphs.items()
            if part != "draft"
        }
        """By part; the draft decoder's are the decoder's."""
        row_shape = config.decoder.layers, 2, config.cross_attn_k * config.decoder.dim
        self.store = LatentStore(row_shape, backend.activations, size)
        shared: Mapping[str, Buffer] = {"latent_kv": self.store.memory}
        graphs = {
            part: BatchedGraph(
                graph,
                self.lanes["decoder" if part == "draft" else part],
                most_sizes(config, part, size),
                shared if part in ("decoder", "draft") else {},
            )
            for part, graph in backend.graphs.items()
        }
        least = {part: QUANTIZED_ROWS if part in quantized else 1 for part in graphs}
        self._patcher = PatcherBatch("patcher", graphs["patcher"], least["patcher"]) if "patcher" in graphs else None
        self._encoder = EncoderBatch(config, graphs["encoder"], least["encoder"], backend.tables)
        self._global = GlobalBatch(graphs["global"], least["global"], self.store)
        decoders = [part for part in graphs if part in ("decoder", "draft")]
        self._decoders = {part: DecoderBatch(part, graphs[part], least[part], self.store) for part in decoders}
        self.packed_bytes = sum(graph.packed_bytes for graph in graphs.values()) + self.store.memory.bytes
        """Bytes of all that is packed for calls, at most."""
        encoder = self._encoder if config.decoder_reads_states else None
        self._draft = DraftBatch(self._decoders["decoder"], encoder, config.vocab_size)

    def run(self, seated: Sequence[Seated], calls: Sequence[PartCall]) -> list[Answer]:
        """Return the answers to calls, which are all of one kind."""
        first = calls[0]
        if isinstance(first, DecoderCall):
            decoder = self._decoders[decoder_of(self._config, first.block)]
            return decoder.run(seated, cast("Sequence[DecoderCall]", calls))
        if isinstance(first, DraftCall):
            return self._draft.run(seated, cast("Sequence[DraftCall]", calls))
        if isinstance(first, EncoderCall):
            return self._encoder.run(seated, cast("Sequence[EncoderCall]", calls))
        if isinstance(first, GlobalCall):
            return self._global.run(seated, cast("Sequence[GlobalCall]", calls))
        assert self._patcher is not None, "not called where the model has no patcher"
        return self._patcher.run(seated, cast("Sequence[PatcherCall]", calls))

    def leave(self, seat: int, sequence: OnnxRuntimeSequence) -> None:
        """Copy what a sequence has computed to its own caches, and let go of its lanes."""
        for part, lanes in self.lanes.items():
            lanes.leave(seat, sequence.graphs[part].caches)
        self.store.forget(seat)

    def leave_part(self, part: str, seat: int, sequence: OnnxRuntimeSequence) -> None:
        """Copy what a sequence has computed in one part to its own caches, and let go of its lane there."""
        stack = "decoder" if part == "draft" else part
        self.lanes[stack].leave(seat, sequence.graphs[stack].caches)
        if stack == "global":
            self.store.forget(seat)

    def drop(self, seat: int) -> None:
        """Let go of a seat's lanes."""
        for lanes in self.lanes.values():
            lanes.drop(seat)
        self.store.forget(seat)

    def copy(self, seat: int, to: int) -> None:
        """Let another seat have the same lanes as a seat."""
        for lanes in self.lanes.values():
            lanes.copy(seat, to)
        self.store.forget(to)


def _caches(spec: GraphSpec) -> tuple[list[str], int, np.dtype[Any]]:
    """Return the names of a graph's caches, the width of a slot, and their type."""
    tensors = [tensor for tensor in spec.inputs if tensor.role == "cache"]
    return [tensor.name for tensor in tensors], int(tensors[0].shape[3]), numpy_dtype(tensors[0].dtype)


def lane_classes(backend: OnnxRuntimeBackend, part: str) -> LaneClasses:
    """Return the classes of a stack's lanes."""
    quantized = backend.manifest.quantized_parts
    exact = part in quantized or (part == "decoder" and "draft" in quantized)
    return LaneClasses(backend.config.stacks[part].window, capacity_of(backend.max_bytes), exact=exact)


def most_sizes(config: BltConfig, part: str, size: int) -> Sizes:
    """Return the largest sizes of the symbolic axes of a graph, in the order of every call's."""
    if part == "encoder":
        before = config.hash.context - 1
        pool = POOL_SLOTS + SHARED_ROWS
        sizes = {"rows": SHARED_ROWS, "patches": SHARED_ROWS, "pool_slots": pool}
        sizes["context_rows"] = SHARED_ROWS + before
    elif part == "global":
        sizes = {"patches": SHARED_ROWS, "latents": size * SHARED_ROWS}
    elif part == "patcher":
        sizes = {"rows": SHARED_ROWS}
    else:
        sizes = {"rows": SHARED_ROWS, "latents": 1 + size * LATENTS}
    return {BATCH: size, **sizes}


def batch_bytes(backend: OnnxRuntimeBackend, size: int) -> int:
    """Return the bytes that a batch takes at most: lanes, what is packed for calls, and bindings."""
    total = len(backend.graphs) * BINDINGS_KEPT * BINDING_BYTES
    for part, graph in backend.graphs.items():
        names, dim, kind = _caches(graph.spec)
        if part != "draft":
            total += committed_slots(lane_classes(backend, part).slots, size) * len(names) * dim * kind.itemsize
        sizes = most_sizes(backend.config, part, size)
        # The decoders share their latents, and a pool is updated in place.
        total += sum(
            memory_elements(tensor, sizes) * numpy_dtype(tensor.dtype).itemsize
            for tensor in packed_tensors(graph.spec)
            if tensor.role != "pool_update" and not (part == "draft" and tensor.role == "latent_kv")
        )
    return total
