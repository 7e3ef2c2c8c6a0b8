"""Runs the four graphs of a bundle with ONNX Runtime on the CPU, over buffers that are allocated once."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastblt.models.config import BltConfig
from fastblt.models.machine_memory import host_memory
from fastblt.runtime.backends.cpu.bound_graph import Binding, BoundGraph
from fastblt.runtime.backends.cpu.buffers import POOL_STEP, Buffer, CallBuffers, buffer_bytes, capacity_of
from fastblt.runtime.backends.cpu.sessions import session_options
from fastblt.runtime.backends.host_embeddings import HostEmbeddings
from fastblt.runtime.backends.memory import check_fits
from fastblt.runtime.backends.protocol import (
    DecoderRows,
    Drafted,
    Floats,
    Ids,
    Pick,
)
from fastblt.runtime.bundle.bundle import Bundle
from fastblt.runtime.bundle.dtypes import numpy_dtype

#: Fewest rows in a call of a quantized graph. A single row is multiplied by another kernel (in attention a product of a
#: vector and a matrix), whose last bit differs; inputs that are rounded to 8 bits turn that into some 1e-2. With a
#: second row, which nobody reads, a row is the same to the bit in calls of any size, and verified drafts are exact.
QUANTIZED_ROWS = 2


class OnnxRuntimeBackend:
    """Implements `fastblt.runtime.backends.protocol.Backend`; `load` is the constructor for users.

    Args:
        bundle: an opened bundle.
        max_bytes: longest prompt plus new bytes.
        options: of the sessions, an ``onnxruntime.SessionOptions``.

    Raises:
        BundleError: a graph cannot be loaded, or is not the one that the manifest describes.
        CapacityError: the machine has too little memory.
    """

    name = "onnxruntime"
    device = "cpu"

    def __init__(self, bundle: Bundle, max_bytes: int, options: Any) -> None:
        self.config: BltConfig = bundle.config
        self.manifest = bundle.manifest
        self.max_bytes = max_bytes
        self.owner: object = None
        capacity, kind = capacity_of(max_bytes), numpy_dtype(bundle.activations)
        needed = partial(buffer_bytes, self.config, kind.itemsize)
        check_fits(self.manifest.weight_bytes, needed, max_bytes, host_memory(), "this machine")
        stacks, quantized = self.config.stacks, self.manifest.quantized_parts
        self.graphs = {
            part: BoundGraph(bundle.graph(part), spec, stacks[part], capacity, options)
            for part, spec in self.manifest.graphs.items()
        }
        self._least_rows = {part: QUANTIZED_ROWS if part in quantized else 1 for part in self.graphs}
        self._encoder, self._global, self._decoder = (self.graphs[part] for part in ("encoder", "global", "decoder"))
        tables, width = bundle.embeddings, self.config.encoder.dim
        self._tables = None if tables is None else HostEmbeddings(tables, self.config.hash, width)
        self._reads_states = self.config.decoder_input == "encoder"
        self._buffers = CallBuffers(self.config, kind, capacity)

    @classmethod
    def load(cls, bundle: Path, max_bytes: int, threads: int | None, options: Any = None) -> OnnxRuntimeBackend:
        """Load a bundle.

        Args:
            bundle: its folder.
            max_bytes: longest prompt plus new bytes.
            threads: of one operator; None: as many as suit the model.
            options: an ``onnxruntime.SessionOptions`` that replaces ours and ``threads``; None: ours.

        Raises:
            BundleError: a file is missing or damaged, or a graph cannot be loaded.
            ConfigError: the configuration is invalid.
        """
        opened = Bundle.open(bundle)
        if options is None:
            options = session_options(opened.manifest, threads)
        return cls(opened, max_bytes, options)

    @property
    def providers(self) -> list[str]:
        """Return the execution providers that ONNX Runtime reports for the decoder's session, the fallback included."""
        return list(self._decoder.session.get_providers())

    def run_patcher(self, position: int, ids: Ids, visible_from: Ids | None = None) -> Floats:
        """Implement `Backend.run_patcher`; the result is a view that the next call overwrites."""
        rows, graph = max(len(ids), self._least_rows["patcher"]), self.graphs["patcher"]
        binding = graph.prepare(position, rows, (), visible_from=visible_from)
        if binding.fresh:
            binding.point("ids", (1, rows), self._buffers.ids.buffer)
            binding.point("entropy", (1, rows), self._buffers.entropies)
            binding.fresh = False
        self._buffers.ids.values[:rows] = ids
        graph.run(binding)
        entropies: Floats = self._buffers.entropies.array[: len(ids)]
        return entropies

    def run_encoder(
        self, position: int, ids: Ids, starts: Ids, ends: Ids, visible_from: int | Ids | None = None
    ) -> None:
        """Implement `Backend.run_encoder`; ``visible_from`` may be one position for all rows."""
        if self._least_rows["encoder"] == 1 or len(starts) == 1:
            self._encode(position, ids, starts, ends, visible_from)
            return
        # Where a patch is in the pool changes the last bit of its embedding: each patch has a call of its own.
        before, end = self.config.hash.context - 1, position + len(ids) - (self.config.hash.context - 1)
        for patch in range(len(starts)):
            first = max(position, int(starts[patch]))
            last = int(ends[patch]) if patch + 1 < len(starts) else end
            rows = slice(first - position, last - position)
            seen = visible_from[rows] if isinstance(visible_from, np.ndarray) else visible_from
            one = slice(patch, patch + 1)
            self._encode(first, ids[rows.start : rows.stop + before], starts[one], ends[one], seen, patch)

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
        rows, patches, origin = len(ids) - (self.config.hash.context - 1), len(starts), int(starts[0])
        rows = max(rows, self._least_rows["encoder"])
        slots = -(-(position + rows - origin) // POOL_STEP) * POOL_STEP
        graph = self._encoder
        binding = graph.prepare(position, rows, (patches, slots), visible_from=visible_from)
        self._embed(binding, ids, rows + self.config.hash.context - 1)
        dim = self.config.encoder.dim
        if binding.fresh:
            binding.point("patch_start", (1, patches), self._buffers.patch_start.buffer)
            binding.point("patch_end", (1, patches), self._buffers.patch_end.buffer)
            binding.point("pool_index", (1,), self._buffers.pool_index.buffer)
            binding.fresh = False
        binding.point(
            "patch_embeddings", (1, patches, self.config.patch_dim), self._buffers.patch_embeddings, first_patch
        )
        binding.point("pool", (1, 1, slots, 3 * dim), self._buffers.pool, origin)
        if self.manifest.operators == "lowered":
            binding.point("pool_rows", (1, 1, rows, 3 * dim), self._buffers.pool, position)
        else:
            binding.point("pool_out", (1, 1, slots, 3 * dim), self._buffers.pool, origin)
        if self._reads_states:
            binding.point("states", (1, rows, dim), self._buffers.states, position)
        self._buffers.patch_start.values[:patches] = starts - origin
        self._buffers.patch_end.values[:patches] = ends - origin
        self._buffers.pool_index.values[0] = position - origin
        graph.run(binding)

    def _embed(self, binding: Binding, ids: Ids, count: int) -> None:
        """Bind and write the rows' embeddings, or ``count`` ids that include those before the rows."""
        before = self.config.hash.context - 1
        if self._tables is None:
            binding.point("ids", (1, count), self._buffers.context_ids)
            self._buffers.context_ids.array[0, : len(ids)] = ids
        else:
            binding.point("embedded", (1, count - before, self.config.encoder.dim), self._buffers.embedded)
            self._tables.sum_rows(ids, self._buffers.embedded.array[: len(ids) - before])

    def run_global(self, first_patch: int, count: int, visible_from: Ids | None = None) -> None:
        """Implement `Backend.run_global`."""
        graph, config = self._global, self.config
        count = max(count, self._least_rows["global"])
        binding = graph.prepare(first_patch, count, (), visible_from=visible_from)
        if binding.fresh:
            binding.point("patch_embeddings", (1, count, config.patch_dim), self._buffers.patch_embeddings)
            binding.point("latents", (1, count, config.global_transformer.dim), self._buffers.latents)
            binding.fresh = False
        binding.point("latent_kv", (count, *self._buffers.latent_kv.row_shape), self._buffers.latent_kv, first_patch)
        graph.run(binding)

    def run_decoder(
        self, position: int, ids: Ids, latents: Ids, block: int = 0, visible_from: Ids | None = None
    ) -> DecoderRows:
        """Implement `Backend.run_decoder`; the result is views that the next call overwrites."""
        rows, first = max(len(ids), self._least_rows["decoder"]), int(latents[0])
        binding = self._decoder_binding(position, rows, first, int(latents[-1]) + 1 - first, block, visible_from)
        self._buffers.ids.values[:rows] = ids
        np.subtract(latents, first, out=self._buffers.latent_index.values[:rows])
        self._decoder.run(binding)
        return self._rows(len(ids))

    def _rows(self, count: int) -> DecoderRows:
        return DecoderRows(
            self._buffers.best.values[:count],
            self._buffers.probability.array[:count],
            self._buffers.entropy.array[:count],
            self._buffers.logits.array[:count],
        )

    def _decoder_binding(
        self,
        position: int,
        rows: int,
        first_latent: int,
        latents: int,
        block: int = 0,
        visible_from: int | Ids | None = None,
    ) -> Binding:
        binding = self._decoder.prepare(position, rows, (latents,), block, visible_from)
        if binding.fresh:
            if not self._reads_states:
                binding.point("ids", (1, rows), self._buffers.ids.buffer)
            binding.point("latent_index", (1, rows), self._buffers.latent_index.buffer)
            binding.point("best", (1, rows), self._buffers.best.buffer)
            binding.point("probability", (1, rows), self._buffers.probability)
            binding.point("entropy", (1, rows), self._buffers.entropy)
            binding.point("logits", (1, rows, self.config.vocab_size), self._buffers.logits)
            binding.fresh = False
        if self._reads_states:
            binding.point("states", (1, rows, self.config.decoder.dim), self._buffers.states, position)
        binding.point("latent_kv", (latents, *self._buffers.latent_kv.row_shape), self._buffers.latent_kv, first_latent)
        return binding

    def draft(
        self, position: int, ids: Ids, latent: int, count: int, pick: Pick | None = None, visible_from: int = 0
    ) -> Drafted:
        """Implement `Backend.draft`."""
        tokens = np.empty(count, dtype=np.int64)
        probabilities = np.empty(count, dtype=np.float32)
        context = ids.copy()
        best, probability, current = (
            self._buffers.best.values,
            self._buffers.probability.array,
            self._buffers.ids.values,
        )
        rows = self._least_rows["decoder"]
        self._buffers.latent_index.values[:rows] = 0
        token, row, more = int(ids[-1]), self._rows(1), True
        seen, encoder_seconds = visible_from or None, 0.0
        for step in range(count):
            if self._reads_states:
                began = perf_counter()
                at = np.array([position + step], dtype=np.int64)
                self.run_encoder(position + step, context, at, at + 1, seen)
                context[:-1] = context[1:]
                encoder_seconds += perf_counter() - began
            binding = self._decoder_binding(position + step, rows, latent, 1, visible_from=seen)
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
        if name in ("patch_embeddings", "latent_kv", "states"):
            found: Buffer = getattr(self._buffers, name)
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
        """Return True: the caches hold every position."""
        return True

    def moved_bytes(self, part: str, position: int, rows: int) -> int:
        """Implement `Backend.moved_bytes`."""
        return self.graphs[part].moved_bytes(position, rows)
