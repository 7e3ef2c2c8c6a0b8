"""Builds ``encoder.onnx``: byte states of new rows, and the patch embeddings of patches that end among them.

======  ================  =======  ===============  ======================================================
in      embedded          dtype    [b, n, d]        sum of byte and hash n-gram embeddings (tables on host), or
in      ids               int64    [b, c - 1 + n]   tokens: those before the rows, then the rows (tables inside)
in      patch_start       int64    [b, p]           first pool slot of each patch
in      patch_end         int64    [b, p]           pool slot after its last byte
in      pool_index        int64    [b]              pool slot of the first row
in      pool              dtype    [b, 1, C, 3d]    per byte: state, pooling key, pooling value; updated in place
in      (stack inputs)                              see `fastblt.export.graph_builder.CachedStack`
out     patch_embeddings  dtype    [b, p, k * d]
out     states            dtype    [b, n, d]        only if the decoder reads byte states
out     pool_out          dtype    [b, 1, C, 3d]
out     (cache updates)
======  ================  =======  ===============  ======================================================

The pool keeps what pooling needs of each byte, so that a patch may have begun in an earlier call; keys and values are
projected once per byte.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from fastblt.export.graph_builder import INT64, BltGraph, Pool, Shape, Weights
from fastblt.models.config import BltConfig
from fastblt.models.hashing import hash_powers
from fastblt.runtime.bundle.manifest import BATCH


def build_encoder_graph(
    config: BltConfig, weights: Weights, dtype: ir.DataType, kind: type[BltGraph], *, tables_inside: bool
) -> BltGraph:
    """Build the encoder's graph; ``tables_inside`` puts byte embedding and hash tables into it."""
    stack_config = config.encoder
    dim, patch_dim = stack_config.dim, config.patch_dim
    graph = kind("encoder", weights, dtype)
    op = graph.op
    if tables_inside:
        embedded = _embed(graph, config)
    else:
        embedded = graph.input("embedded", dtype, [BATCH, "rows", dim], "embedding")
    starts = graph.input("patch_start", INT64, [BATCH, "patches"], "patch_start")
    ends = graph.input("patch_end", INT64, [BATCH, "patches"], "patch_end")
    pool_index = graph.input("pool_index", INT64, [BATCH], "pool_index")
    pool_shape: Shape = [BATCH, 1, "pool_slots", 3 * dim]
    pool = graph.input("pool", dtype, pool_shape, "pool")
    stack = graph.stack(stack_config, "encoder")
    states = stack.run(embedded)
    keys_values = graph.linear(
        graph.rms_norm(states, "encoder.cross_attention.norm_kv", stack_config.norm_eps),
        "encoder.cross_attention.wkv",
    )
    known = graph.add_to_pool(pool, pool_shape, op.Concat(states, keys_values, axis=-1), pool_index)
    pooled = _pool(graph, config, known, starts, ends)
    graph.output("patch_embeddings", pooled, dtype, [BATCH, "patches", patch_dim], "patch_embeddings")
    if config.decoder_reads_states:
        graph.output("states", op.Identity(states), dtype, [BATCH, "rows", dim], "states")
    graph.declare(known.update)
    stack.declare_outputs()
    return graph


def _pool(graph: BltGraph, config: BltConfig, pool: Pool, starts: ir.Value, ends: ir.Value) -> ir.Value:
    """Compute patch embeddings [b, p, k * d] from the pool: maximum, k queries, attention, double residual."""
    op, dim, k = graph.op, config.encoder.dim, config.cross_attn_k
    states, keys, values = graph.split(pool.entries, [dim] * 3)
    member = graph.in_range(pool.slots, op.Unsqueeze(starts, [2]), op.Unsqueeze(ends, [2]))  # [b, p, C]
    lowest = graph.number("lowest", float(np.finfo(np.float16).min))
    inside = op.Where(op.Unsqueeze(member, [3]), op.Unsqueeze(states, [1]), lowest)  # [b, p, C, d]
    highest = graph.maximum(inside, 2)
    queries = op.Reshape(graph.linear(highest, "encoder.patch_projection"), [0, -1, dim])  # [b, p * k, d]
    q = graph.linear(
        graph.rms_norm(queries, "encoder.cross_attention.norm_q", config.encoder.norm_eps),
        "encoder.cross_attention.wq",
    )
    # Query j of patch i is row i * k + j: each patch's mask is repeated k times.
    repeated = op.Expand(op.Unsqueeze(member, [2]), [1, 1, k, 1])
    slots = op.Shape(pool.entries, start=1, end=2)
    seen = op.Reshape(repeated, op.Concat(op.Constant(value_ints=[0, 1, -1]), slots, axis=0))
    attended = graph.attention(q, keys, values, graph.visibility(seen), config.encoder)
    doubled = graph.added_twice(queries, graph.linear(attended, "encoder.cross_attention.wo"))
    return op.Reshape(doubled, [0, -1, config.patch_dim])


def _embed(graph: BltGraph, config: BltConfig) -> ir.Value:
    """Compute the byte embedding plus one row of every hash table, for tables inside the graph."""
    op, context = graph.op, config.hash.context
    ids = graph.input("ids", INT64, [BATCH, "context_rows"], "ids_with_history")
    end = op.Shape(ids, start=1, end=2)

    def shifted(back: int) -> ir.Value:
        """Return the token ``back`` places before each row."""
        return op.Slice(ids, [context - 1 - back], op.Sub(end, back), [1])

    x = graph.embedding(shifted(0), "encoder.tok_embeddings")
    table = graph.weight("encoder.hash_embeddings.weight")
    index = 0
    for powers in hash_powers(config.hash):
        for size in config.hash.sizes:
            total = op.Mul(shifted(size - 1), powers[0])
            for m in range(1, size):
                total = op.Add(total, op.Mul(shifted(size - 1 - m), powers[m]))
            row = op.Add(op.Mod(total, config.hash.rows), index * config.hash.rows)
            x = op.Add(x, op.Gather(table, row, axis=0))
            index += 1
    return x
