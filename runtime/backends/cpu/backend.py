"""The ONNX Runtime backend: the four graphs of a bundle over buffers that are allocated once."""

from __future__ import annotations

from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from fastblt.models.config import BltConfig
from fastblt.runtime.backends.cpu.bound_graph import Binding, BoundGraph, ControlInput
from fastblt.runtime.backends.cpu.buffers import POOL_STEP, Buffer
from fastblt.runtime.backends.host_embeddings import HostEmbeddings
from fastblt.runtime.backends.protocol import (
    DRAFT_SLACK,
    ROW_CAPACITY,
    DecoderRows,
    Drafted,
    Floats,
    Ids,
    Pick,
)
from fastblt.runtime.bundle.bundle import Bundle
from fastblt.runtime.bundle.dtypes import numpy_dtype
from fastblt.runtime.bundle.manifest import BundleError, Manifest
from fastblt.runtime.machine import default_threads

#: Rows of a call of a quantised graph, at least. One row alone is multiplied by another kernel (in attention a product
#: of a vector and a matrix), whose last bit differs; inputs that are rounded to 8 bits make some 1e-2 of that. With a
#: second row, which nobody reads, a row is the same to the bit in calls of any size, and verified drafts are exact.
QUANTIZED_ROWS = 2


class OnnxRuntimeBackend:
    """See `fastblt.runtime.backends.protocol.Backend`; `load` is the constructor for users."""

    name = "onnxruntime"
    device = "cpu"

    def __init__(self, bundle: Bundle, max_bytes: int, options: Any) -> None:
        self.config: BltConfig = bundle.config
        self.manifest = bundle.manifest
        self.max_bytes = max_bytes
        self.owner: object = None
        capacity = max_bytes + 1 + DRAFT_SLACK
        stacks, quantized = self.config.stacks, self.manifest.quantized_parts
        self.graphs = {
            part: BoundGraph(bundle.graph(part), spec, stacks[part], capacity, options)
            for part, spec in self.manifest.graphs.items()
        }
        self._least_rows = {part: QUANTIZED_ROWS if part in quantized else 1 for part in self.graphs}
        self._encoder, self._global, self._decoder = (self.graphs[part] for part in ("encoder", "global", "decoder"))
        self._tables = None if bundle.embeddings is None else HostEmbeddings(bundle.embeddings, self.config.hash)
        self._reads_states = self.config.decoder_input == "encoder"
        self._check_config(bundle)
        self._allocate(capacity)

    @classmethod
    def load(cls, bundle: Path, max_bytes: int, threads: int | None, options: Any = None) -> OnnxRuntimeBackend:
        """Load a bundle; arguments and errors as in `fastblt.runtime.blt_runtime.BltRuntime.from_pretrained`.

        ``options``, an ``onnxruntime.SessionOptions``, takes the place of ours and of ``threads``.
        """
        opened = Bundle.open(bundle)
        if options is None:
            options = session_options(opened.manifest, threads)
        return cls(opened, max_bytes, options)

    @property
    def providers(self) -> list[str]:
        """What ONNX Runtime says of the decoder's session, the fallback included."""
        return list(self._decoder.session.get_providers())

    def _check_config(self, bundle: Bundle) -> None:
        """Raise `BundleError` where the configuration means other tensors than the graphs have."""
        config = self.config
        kv_shape = ("latents", config.decoder.layers, 2, config.cross_attn_k * config.decoder.dim)
        first = "states" if self._reads_states else "ids"
        expected = {
            ("global", "patch_embeddings"): (1, "patches", config.patch_dim),
            ("decoder", "latent_kv"): kv_shape,
            ("decoder", first): (1, "rows", config.decoder.dim) if self._reads_states else (1, "rows"),
        }
        for (part, name), shape in expected.items():
            spec = self.manifest.graphs[part].input(name)
            found = spec.shape if spec else None
            if found != shape:
                raise BundleError(
                    f"{bundle.graph(part)}: input {name}: found shape {found}, expected {shape} (config.json)"
                )

    def _allocate(self, capacity: int) -> None:
        """Every buffer that is not a cache."""
        config = self.config
        dim, layers, k = config.decoder.dim, config.decoder.layers, config.cross_attn_k
        kind, floats = numpy_dtype(self._decoder.spec.inputs[-1].dtype), np.dtype(np.float32)
        self._ids, self._latent_index, self._best = ControlInput(), ControlInput(), ControlInput()
        self._patch_start, self._patch_end, self._pool_index = ControlInput(), ControlInput(), ControlInput()
        self._context_ids = Buffer(1, (ROW_CAPACITY + config.hash.context,), np.dtype(np.int64))
        self._embedded = Buffer(ROW_CAPACITY, (dim,), kind)
        self._entropies = Buffer(ROW_CAPACITY, (), floats)
        self._probability = Buffer(ROW_CAPACITY, (), floats)
        self._entropy = Buffer(ROW_CAPACITY, (), floats)
        self._logits = Buffer(ROW_CAPACITY, (config.vocab_size,), floats)
        self._states = Buffer(capacity if self._reads_states else 1, (dim,), kind)
        self._pool = Buffer(capacity + POOL_STEP, (3 * dim,), kind)
        self._patch_embeddings = Buffer(ROW_CAPACITY, (config.patch_dim,), kind)
        self._latents = Buffer(ROW_CAPACITY, (config.global_transformer.dim,), kind)
        self._latent_kv = Buffer(capacity, (layers, 2, k * dim), kind)

    def run_patcher(self, position: int, ids: Ids, visible_from: Ids | None = None) -> Floats:
        """See `Backend.run_patcher`."""
        rows, graph = max(len(ids), self._least_rows["patcher"]), self.graphs["patcher"]
        binding = graph.prepare(position, rows, (), visible_from=visible_from)
        if binding.fresh:
            binding.fresh = False
            binding.point("ids", (1, rows), self._ids.buffer)
            binding.point("entropy", (1, rows), self._entropies)
        self._ids.values[:rows] = ids
        graph.run(binding)
        entropies: Floats = self._entropies.array[: len(ids)]
        return entropies

    def run_encoder(
        self, position: int, ids: Ids, starts: Ids, ends: Ids, visible_from: int | Ids | None = None
    ) -> None:
        """See `Backend.run_encoder`."""
        if self._least_rows["encoder"] == 1 or len(starts) == 1:
            self._encode(position, ids, starts, ends, visible_from)
            return
        # A patch's place in the pool changes the last bit of what it is pooled to: each has a call of its own.
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
        """One call; the patch embeddings go to the buffer's rows from ``first_patch`` on."""
        rows, patches, origin = len(ids) - (self.config.hash.context - 1), len(starts), int(starts[0])
        rows = max(rows, self._least_rows["encoder"])
        slots = -(-(position + rows - origin) // POOL_STEP) * POOL_STEP
        graph = self._encoder
        binding = graph.prepare(position, rows, (patches, slots), visible_from=visible_from)
        self._embed(binding, ids, rows + self.config.hash.context - 1)
        dim = self.config.encoder.dim
        if binding.fresh:
            binding.fresh = False
            binding.point("patch_start", (1, patches), self._patch_start.buffer)
            binding.point("patch_end", (1, patches), self._patch_end.buffer)
            binding.point("pool_index", (1,), self._pool_index.buffer)
        binding.point("patch_embeddings", (1, patches, self.config.patch_dim), self._patch_embeddings, first_patch)
        binding.point("pool", (1, 1, slots, 3 * dim), self._pool, origin)
        if self.manifest.operators == "lowered":
            binding.point("pool_rows", (1, 1, rows, 3 * dim), self._pool, position)
        else:
            binding.point("pool_out", (1, 1, slots, 3 * dim), self._pool, origin)
        if self._reads_states:
            binding.point("states", (1, rows, dim), self._states, position)
        self._patch_start.values[:patches] = starts - origin
        self._patch_end.values[:patches] = ends - origin
        self._pool_index.values[0] = position - origin
        graph.run(binding)

    def _embed(self, binding: Binding, ids: Ids, count: int) -> None:
        """Hand over the embeddings of rows, or ``count`` ids, those before the rows included."""
        before = self.config.hash.context - 1
        if self._tables is None:
            binding.point("ids", (1, count), self._context_ids)
            self._context_ids.array[0, : len(ids)] = ids
        else:
            binding.point("embedded", (1, count - before, self.config.encoder.dim), self._embedded)
            self._tables.sum_rows(ids, self._embedded.array[: len(ids) - before])

    def run_global(self, first_patch: int, count: int, visible_from: Ids | None = None) -> None:
        """See `Backend.run_global`."""
        graph, config = self._global, self.config
        count = max(count, self._least_rows["global"])
        binding = graph.prepare(first_patch, count, (), visible_from=visible_from)
        if binding.fresh:
            binding.fresh = False
            binding.point("patch_embeddings", (1, count, config.patch_dim), self._patch_embeddings)
            binding.point("latents", (1, count, config.global_transformer.dim), self._latents)
        binding.point("latent_kv", (count, *self._latent_kv.row_shape), self._latent_kv, first_patch)
        graph.run(binding)

    def run_decoder(
        self, position: int, ids: Ids, latents: Ids, block: int = 0, visible_from: Ids | None = None
    ) -> DecoderRows:
        """See `Backend.run_decoder`."""
        rows, first = max(len(ids), self._least_rows["decoder"]), int(latents[0])
        binding = self._decoder_binding(position, rows, first, int(latents[-1]) + 1 - first, block, visible_from)
        self._ids.values[:rows] = ids
        np.subtract(latents, first, out=self._latent_index.values[:rows])
        self._decoder.run(binding)
        return self._rows(len(ids))

    def _rows(self, count: int) -> DecoderRows:
        return DecoderRows(
            self._best.values[:count],
            self._probability.array[:count],
            self._entropy.array[:count],
            self._logits.array[:count],
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
            binding.fresh = False
            if not self._reads_states:
                binding.point("ids", (1, rows), self._ids.buffer)
            binding.point("latent_index", (1, rows), self._latent_index.buffer)
            binding.point("best", (1, rows), self._best.buffer)
            binding.point("probability", (1, rows), self._probability)
            binding.point("entropy", (1, rows), self._entropy)
            binding.point("logits", (1, rows, self.config.vocab_size), self._logits)
        if self._reads_states:
            binding.point("states", (1, rows, self.config.decoder.dim), self._states, position)
        binding.point("latent_kv", (latents, *self._latent_kv.row_shape), self._latent_kv, first_latent)
        return binding

    def draft(
        self, position: int, ids: Ids, latent: int, count: int, pick: Pick | None = None, visible_from: int = 0
    ) -> Drafted:
        """Implement `Backend.draft`."""
        tokens = np.empty(count, dtype=np.int64)
        probabilities = np.empty(count, dtype=np.float32)
        context = ids.copy()
        best, probability, current = self._best.values, self._probability.array, self._ids.values
        rows = self._least_rows["decoder"]
        self._latent_index.values[:rows] = 0
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
        """A buffer that passes from graph to graph, or a cache, by the name that `tensor` takes."""
        if name in ("patch_embeddings", "latent_kv", "states"):
            found: Buffer = getattr(self, f"_{name}")
            return found
        part, _, cache = name.partition(".")
        return self.graphs[part].caches.buffers[cache]

    def tensor(self, name: str, first: int, count: int) -> NDArray[Any]:
        """See `fastblt.runtime.measure.verify.lockstep.Inspectable.tensor`."""
        return self._buffer(name).array[first : first + count].copy()

    def set_tensor(self, name: str, first: int, values: NDArray[Any]) -> None:
        """See `fastblt.runtime.measure.verify.lockstep.Inspectable.set_tensor`."""
        self._buffer(name).array[first : first + len(values)] = values

    def can_resume_from(self, position: int, open_patch: int) -> bool:
        """See `Backend.can_resume_from`: the caches hold every position."""
        return True

    def moved_bytes(self, part: str, position: int, rows: int) -> int:
        """See `Backend.moved_bytes`."""
        return self.graphs[part].moved_bytes(position, rows)


def session_options(manifest: Manifest, threads: int | None, *, exact: bool = False) -> Any:
    """Options of every session: quiet, one thread for small models, spinning only within a run.

    Args:
        manifest: of the bundle.
        threads: of one operator; None: as many as suit the model.
        exact: compute products with quantised weights in fp32, as their graph says. Else ONNX Runtime rounds their
            inputs to 8 bits, which is several times as fast.
    """
    if threads is None:
        weights = sum(spec.weight_bytes for spec in manifest.graphs.values())
        threads = default_threads(weights)
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = threads
    options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "1" if exact else "4")
    if "fp8" in manifest.precisions:
        # There is no product of E4M3 numbers on CPUs: as the graph says, in fp32 (the fused one refuses to load).
        options.add_session_config_entry("session.disable_quant_qdq", "1")
    options.inter_op_num_threads = 1
    # Threads wait for the next operator of a run awake, which is quicker than to be woken for each. Four sessions take
    # turns, so they must not go on when the run has ended.
    options.add_session_config_entry("session.intra_op.allow_spinning", "1")
    options.add_session_config_entry("session.force_spinning_stop", "1")
    return options
