"""Computes the device memory that one sequence takes, before anything is allocated; tests compare it with the backend.

What all sequences share comes on top: weights, and the activations of engines, whose size only the engines know. So do
recorded graphs and the contexts of engines, whose size only the libraries know, and page-locked memory of the host.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

from fastblt.models.config import BltConfig, StackConfig
from fastblt.runtime.backends.gpu.cuda import ALIGNMENT, aligned
from fastblt.runtime.backends.gpu.sliding import CALL_ROWS, cache_slots, pool_slots, position_count, whole_steps
from fastblt.runtime.backends.gpu.tensor_table import Binding, binding_of, shape_of
from fastblt.runtime.bundle.dtypes import BUNDLE_TYPES, numpy_dtype
from fastblt.runtime.bundle.engines import EngineSpec
from fastblt.runtime.bundle.manifest import BATCH, GraphSpec

#: Nothing fixes a number of slots.
NO_SLOTS: Mapping[str, int] = {}


def device_buffers(
    config: BltConfig,
    dtype: str,
    max_bytes: int,
    max_patch_bytes: int | None = None,
    fixed: Mapping[str, int] = NO_SLOTS,
) -> dict[str, int]:
    """Return the bytes on the device, by part, of key/value caches and of what passes from graph to graph.

    Caches that slide have a second buffer of the same size, through which their contents move; the pool's has room for
    the usual patches.

    Args:
        config: the model's.
        dtype: of the bundle: ``fp32``, ``fp16`` or ``bf16``; the patcher's caches are fp32.
        max_bytes: longest prompt plus new bytes.
        max_patch_bytes: longest open patch, if the model sets no limit; None: `DEFAULT_PATCH_BYTES`.
        fixed: slots of each cache, by part, and of the ``pool``, where engines fix them.
    """
    item, positions = BUNDLE_TYPES[dtype].item_bytes, position_count(max_bytes)
    rows = whole_steps(positions)

    def caches(part: str, stack: StackConfig) -> int:
        slots, size = fixed.get(part, cache_slots(stack, max_bytes)), 4 if part == "patcher" else item
        return 2 * stack.layers * stack.dim * slots * size * (2 if slots < positions else 1)

    found = {part: caches(part, stack) for part, stack in config.stacks.items()}
    pooled = pool_slots(config, max_bytes, max_patch_bytes) + pool_slots(config, max_bytes)
    pool = 3 * config.encoder.dim * (2 * fixed["pool"] if "pool" in fixed else pooled)
    states = rows * config.decoder.dim if config.decoder_reads_states else 0
    found["encoder"] += item * (pool + states + rows * config.patch_dim)
    found["global"] += item * rows * config.latent_kv_dim
    return found


def call_buffers(
    config: BltConfig, graphs: Mapping[str, GraphSpec], together: int = 1, rows: int = CALL_ROWS
) -> dict[str, int]:
    """Return the bytes on the device, by part, of what a graph reads and writes in its largest call.

    Args:
        config: the model's.
        graphs: inputs and outputs by part; of engines, see `compiled_spec`.
        together: sequences in the call.
        rows: of each sequence.
    """
    sizes = dict.fromkeys(("rows", "patches"), rows)
    sizes |= {BATCH: together, "latents": together * rows, "context_rows": rows + config.hash.context - 1}
    return {part: _call_bytes(spec, sizes) for part, spec in graphs.items()}


def _call_bytes(graph: GraphSpec, sizes: Mapping[str, int]) -> int:
    found = 0
    # Even a graph that uploads or returns nothing has memory for that.
    blocks = {Binding.UPLOAD: 0, Binding.DOWNLOAD: 0}
    for spec in (*graph.inputs, *graph.outputs):
        binding = binding_of(spec, graph)
        # Latents are read where all of them are kept. Engines of earlier versions, which do not, have a copy of those
        # of a call: some KiB that are not counted.
        if binding is Binding.CACHE or (spec.role == "latent_kv" and spec in graph.inputs):
            continue
        size = math.prod(shape_of(spec, sizes)) * numpy_dtype(spec.dtype).itemsize
        if binding in blocks:
            blocks[binding] += aligned(size)
        else:
            found += aligned(size) if binding is Binding.APPENDED else size
    return found + sum(max(size, ALIGNMENT) for size in blocks.values())


def fixed_slots(engines: Iterable[EngineSpec]) -> dict[str, int]:
    """Return the slots of caches of one size by part, and of the pool, for `device_buffers`."""
    parts = list(engines)
    fixed = {engine.part: engine.slots for engine in parts if not engine.any_slots}
    pools = [engine.pool_slots for engine in parts if engine.pool_slots]
    return fixed | ({"pool": max(pools)} if pools else {})
