"""Runs a text through the graphs of a bundle on the CPU, over buffers of its own that are allocated once."""

from __future__ import annotations

from time import perf_counter
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from fastblt.models.config import BltConfig
from fastblt.runtime.backends.batching import PartCall
from fastblt.runtime.backends.cpu.bound_graph import Binding, BoundGraph
from fastblt.runtime.backends.cpu.buffers import POOL_STEP, Buffer, CallBuffers, capacity_of
from fastblt.runtime.backends.cpu.encoder_pieces import EncoderPiece, by_patch
from fastblt.runtime.backends.live_rows import cache_ranges, check_state, latent_range, open_patch_range
from fastblt.runtime.backends.protocol import DecoderRows, Drafted, Floats, Ids, Pick, Progress, State, decoder_of

if TYPE_CHECKING:
    from fastblt.runtime.backends.cpu.backend import OnnxRuntimeBackend
    from fastblt.runtime.backends.cpu.batch import OnnxRuntimeBatch

#: Fewest rows, and patches, in a call of a quantized graph. A single row is multiplied by another kernel (in attention
#: a product of a vector and a matrix), whose last bit differs; inputs that are rounded to 8 bits turn that into some
#: 1e-2. With a second row, which nobody reads, a row is the same to the bit in calls of any size, and verified drafts
#: are exact.
QUANTIZED_ROWS = 2


class OnnxRuntimeSequence:
    """Implements `fastblt.runtime.backends.protocol.BackendSequence`.

    Args:
        backend: whose sessions it runs.
    """

    batch: OnnxRuntimeBatch | None = None
    """In which it runs at the moment: what it has computed last is there."""

    def __init__(self, backend: OnnxRuntimeBackend) -> None:
        self.backend = backend
        self.config: BltConfig = backend.config
        self.manifest = backend.manifest
        capacity, quantized = capacity_of(backend.max_bytes), backend.manifest.quantized_parts
        self.graphs = {part: BoundGraph(graph, capacity) for part, graph in backend.graphs.items() if part != "draft"}
        if self.config.has_draft:
            self.graphs["draft"] = BoundGraph(backend.graphs["draft"], capacity, self.graphs["decoder"].caches)
        self._least_rows = {part: QUANTIZED_ROWS if part in quantized else 1 for part in self.graphs}
        self._encoder, self._global, self._decoder = (self.graphs[part] for part in ("encoder", "global", "decoder"))
        self._tables = backend.tables
        self._reads_states = self.config.decoder_reads_states
        self.buffers = CallBuffers(self.config, backend.activations, capacity)
        self._restored = Progress()
        """Of the text that was restored: what came before the rows that it can read is not here."""

    @property
    def closed(self) -> bool:
        """Return whether it has let go of its caches."""
        return "graphs" not in vars(self)

    def leave_batch(self) -> None:
        """Take back what it has computed in a batch, if it is in one."""
        if self.batch is not None:
            self.batch.leave(self)

    def run_in_place(self, call: PartCall) -> Any:
        """Make a call without leaving the batch, which has written back what the caches of the part lack."""
        batch, self.batch = self.batch, None
        try:
            return call.run(self)
        finally:
            self.batch = batch

    def run_patcher(self, position: int, ids: Ids, visible_from: Ids | None = None) -> Floats:
        """Implement `BackendSequence.run_patcher`; the result is a view that the next call overwrites."""
        if self.batch is not None:
            self.leave_batch()
        rows, graph = max(len(ids), self._least_rows["patcher"]), self.graphs["patcher"]
        binding = graph.prepare(position, rows, (), visible_from=visible_from)
        if binding.fresh:
            binding.point("ids", (1, rows), self.buffers.ids.buffer)
            binding.point("entropy", (1, rows), self.buffers.entropies)
            binding.fresh = False
        self.buffers.ids.values[:rows] = ids
        graph.run(binding)
        entropies: Floats = self.buffers.entropies.array[: len(ids)]
        return entropies

    def run_encoder(
        self, position: int, ids: Ids, starts: Ids, ends: Ids, visible_from: int | Ids | None = None
    ) -> None:
        """Implement `BackendSequence.run_encoder`; ``visible_from`` may be one position for all rows."""
        if self.batch is not None:
            self.leave_batch()
        if self._least_rows["encoder"] == 1 or len(starts) == 1:
            self._encode(position, ids, starts, ends, visible_from)
            return
        whole = EncoderPiece(position, ids, starts, ends, visible_from)
        for piece in by_patch(whole, self.config.hash.context - 1):
            self._encode(*piece)

    def _encode(
        self,
        position: int,
        ids: Ids,
        starts: Ids,
        ends: Ids,
        visible_from: int | Ids | None,
        first_patch: int = 0,
    ) -> None:
        """Run the encoder once; the patch embeddings go to the buffer's rows from ``first_patch`` on."""
        least, count, origin = self._least_rows["encoder"], len(starts), int(starts[0])
        rows, patches = max(len(ids) - (self.config.hash.context - 1), least), max(count, least)
        slots = -(-(position + rows - origin) // POOL_STEP) * POOL_STEP
        graph = self._encoder
        binding = graph.prepare(position, rows, (patches, slots), visible_from=visible_from)
        self._embed(binding, ids, rows + self.config.hash.context - 1)
        dim = self.config.encoder.dim
        if binding.fresh:
            binding.point("patch_start", (1, patches), self.buffers.patch_start.buffer)
            binding.point("patch_end", (1, patches), self.buffers.patch_end.buffer)
            binding.point("pool_index", (1,), self.buffers.pool_index.buffer)
            binding.fresh = False
        binding.point(
            "patch_embeddings", (1, patches, self.config.patch_dim), self.buffers.patch_embeddings, first_patch
        )
        binding.point("pool", (1, 1, slots, 3 * dim), self.buffers.pool, origin)
        if self.manifest.operators == "lowered":
            binding.point("pool_rows", (1, 1, rows, 3 * dim), self.buffers.pool, position)
        else:
            binding.point("pool_out", (1, 1, slots, 3 * dim), self.buffers.pool, origin)
        if self._reads_states:
            binding.point("states", (1, rows, dim), self.buffers.states, position)
        if patches > count:
            self.buffers.patch_start.values[count:patches] = 0
            self.buffers.patch_end.values[count:patches] = 1
        self.buffers.patch_start.values[:count] = starts - origin
        self.buffers.patch_end.values[:count] = ends - origin
        self.buffers.pool_index.values[0] = position - origin
        graph.run(binding)

    def _embed(self, binding: Binding, ids: Ids, count: int) -> None:
        """Bind and write the rows' embeddings, or ``count`` ids that include those before the rows."""
        before = self.config.hash.context - 1
        if self._tables is None:
            binding.point("ids", (1, count), self.buffers.context_ids)
            self.buffers.context_ids.array[0, : len(ids)] = ids
        else:
            binding.point("embedded", (1, count - before, self.config.encoder.dim), self.buffers.embedded)
            self._tables.sum_rows(ids, self.buffers.embedded.array[: len(ids) - before])

    def run_global(self, first_patch: int, count: int, visible_from: Ids | None = None) -> None:
        """Implement `BackendSequence.run_global`."""
        if self.batch is not None:
            self.leave_batch()
        graph, config = self._global, self.config
        count = max(count, self._least_rows["global"])
        binding = graph.prepare(first_patch, count, (), visible_from=visible_from)
        if binding.fresh:
            binding.point("patch_embeddings", (1, count, config.patch_dim), self.buffers.patch_embeddings)
            binding.point("latents", (1, count, config.global_transformer.dim), self.buffers.latents)
            binding.fresh = False
        binding.point("latent_kv", (count, *self.buffers.latent_kv.row_shape), self.buffers.latent_kv, first_patch)
        graph.run(binding)

    def run_decoder(
        self, position: int, ids: Ids, latents: Ids, block: int = 0, visible_from: Ids | None = None
    ) -> DecoderRows:
        """Implement `BackendSequence.run_decoder`; the result is views that the next call overwrites."""
        if self.batch is not None:
            self.leave_batch()
        part = decoder_of(self.config, block)
        rows, first = max(len(ids), self._least_rows[part]), int(latents[0])
        graph = self.graphs[part]
        binding = self._decoder_binding(graph, position, rows, first, int(latents[-1]) + 1 - first, block, visible_from)
        self.buffers.ids.values[:rows] = ids
        np.subtract(latents, first, out=self.buffers.latent_index.values[:rows])
        graph.run(binding)
        return self._rows(len(ids))

    def _rows(self, count: int) -> DecoderRows:
        return DecoderRows(
            self.buffers.best.values[:count],
            self.buffers.probability.array[:count],
            self.buffers.entropy.array[:count],
            self.buffers.logits.array[:count],
        )

    def _decoder_binding(
        self,
        graph: BoundGraph,
        position: int,
        rows: int,
        first_latent: int,
        latents: int,
        block: int = 0,
        visible_from: int | Ids | None = None,
    ) -> Binding:
        binding = graph.prepare(position, rows, (latents,), block, visible_from)
        reads_states = self._reads_states and graph is self._decoder
        if binding.fresh:
            if not reads_states:
                binding.point("ids", (1, rows), self.buffers.ids.buffer)
            binding.point("latent_index", (1, rows), self.buffers.latent_index.buffer)
            binding.point("best", (1, rows), self.buffers.best.buffer)
            binding.point("probability", (1, rows), self.buffers.probability)
            binding.point("entropy", (1, rows), self.buffers.entropy)
            binding.point("logits", (1, rows, self.config.vocab_size), self.buffers.logits)
            binding.fresh = False
        if reads_states:
            binding.point("states", (1, rows, self.config.decoder.dim), self.buffers.states, position)
        binding.point("latent_kv", (latents, *self.buffers.latent_kv.row_shape), self.buffers.latent_kv, first_latent)
        return binding

    def draft(
        self, position: int, ids: Ids, latent: int, count: int, pick: Pick | None = None, visible_from: int = 0
    ) -> Drafted:
        """Implement `BackendSequence.draft`."""
        if self.batch is not None:
            self.leave_batch()
        tokens = np.empty(count, dtype=np.int64)
        probabilities = np.empty(count, dtype=np.float32)
        context = ids.copy()
        best, probability, current = (
            self.buffers.best.values,
            self.buffers.probability.array,
            self.buffers.ids.values,
        )
        rows = self._least_rows["decoder"]
        self.buffers.latent_index.values[:rows] = 0
        token, row, more = int(ids[-1]), self._rows(1), True
        seen, encoder_seconds = visible_from or None, 0.0
        for step in range(count):
            if self._reads_states:
                began = perf_counter()
                at = np.array([position + step], dtype=np.int64)
                self.run_encoder(position + step, context, at, at + 1, seen)
                context[:-1] = context[1:]
                encoder_seconds += perf_counter() - began
            binding = self._decoder_binding(self._decoder, position + step, rows, latent, 1, visible_from=seen)
            current[:rows] = token
            self._decoder.run(binding)
            token = int(best[0])
            if pick is not None:
                token, more = pick(row)
            context[-1] = tokens[step] = token
            probabilities[step] = probability[0]
            if not more:
                return Drafted(tokens[: step + 1], probabilities[: step + 1], encoder_seconds)
        return Drafted(tokens, probabilities, encoder_seconds)

    def _buffer(self, name: str) -> Buffer:
        """Return a buffer that passes from graph to graph, or a cache, by the name that `tensor` takes."""
        if self.batch is not None:
            self.leave_batch()
        if name in ("patch_embeddings", "latent_kv", "states"):
            found: Buffer = getattr(self.buffers, name)
            return found
        part, _, cache = name.partition(".")
        return self.graphs[part].caches.buffers[cache]

    def tensor(self, name: str, first: int, count: int) -> NDArray[Any]:
        """Return a copy of rows of a buffer or cache.

        Args:
            name: ``patch_embeddings``, ``latent_kv``, ``states``, or a cache: ``decoder.key_0``.
            first: first row.
            count: number of rows.
        """
        return self._buffer(name).array[first : first + count].copy()

    def set_tensor(self, name: str, first: int, values: NDArray[Any]) -> None:
        """Overwrite rows of a buffer or cache, from ``first`` on; names as in `tensor`."""
        self._buffer(name).array[first : first + len(values)] = values

    def can_resume_from(self, position: int, open_patch: int) -> bool:
        """Implement `BackendSequence.can_resume_from`: the caches hold every position since what was restored."""
        return position >= self._restored.tokens and open_patch >= self._restored.open_patch

    def state(self, progress: Progress) -> dict[str, NDArray[Any]]:
        """Implement `BackendSequence.state`."""
        if self.batch is not None:
            self.leave_batch()
        return {name: place.copy() for name, place in self._places(progress).items()}

    def restore(self, state: State, progress: Progress) -> None:
        """Implement `BackendSequence.restore`."""
        if self.batch is not None:
            self.leave_batch()
        places = self._places(progress)
        check_state(state, places)
        for name, place in places.items():
            place[...] = state[name]
        self._restored = progress

    def _places(self, progress: Progress) -> dict[str, NDArray[Any]]:
        """Return views of the rows that the rest of a text can read, by name."""
        places = {
            f"{part}.{name}": buffer.array[rows]
            for part, rows in cache_ranges(self.config, progress).items()
            for name, buffer in self.graphs[part].caches.buffers.items()
        }
        places["pool"] = self.buffers.pool.array[open_patch_range(self.config, progress)]
        places["latent_kv"] = self.buffers.latent_kv.array[latent_range(progress)]
        return places

    def reset(self) -> None:
        """Implement `BackendSequence.reset`."""
        if self.batch is not None:
            self.leave_batch()
        self._restored = Progress()

    def close(self) -> None:
        """Implement `BackendSequence.close`."""
        if self.batch is not None:
            self.batch.drop(self)
        self.backend.open_sequences.close(self)

    def moved_bytes(self, part: str, position: int, rows: int) -> int:
        """Implement `BackendSequence.moved_bytes`."""
        return self.graphs[part].moved_bytes(position, rows)
