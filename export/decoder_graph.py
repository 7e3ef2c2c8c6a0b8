"""Builds ``decoder.onnx``, and ``draft.onnx`` of models with a draft decoder: rows to distributions of bytes.

Either graph takes every kind of row. Both are bound to the decoder's caches.

======  ================  =======  ======================  ================================================
in      ids               int64    [b, n]                  tokens, [MASK] included (BLT-D, draft), or
in      states            dtype    [b, n, d]               byte states from the encoder (BLT)
in      latent_kv         dtype    [m, layers, 2, k * d]   latents from ``global.onnx``, of any sequences
in      latent_index      int64    [b, n]                  which of them each row reads
in      (stack inputs)                                     see `fastblt.export.graph_builder.CachedStack`
out     best              int64    [b, n]                  most likely token
out     probability       float32  [b, n]                  its probability
out     entropy           float32  [b, n]                  entropy of the row, nats
out     logits            float32  [b, n, vocab]
out     (cache updates)
======  ================  =======  ======================  ================================================
"""

from __future__ import annotations

import onnx_ir as ir

from fastblt.export.graph_builder import FLOAT, INT64, BltGraph, Weights
from fastblt.models.config import BltConfig
from fastblt.runtime.bundle.manifest import BATCH


def build_decoder_graph(
    config: BltConfig, weights: Weights, dtype: ir.DataType, kind: type[BltGraph], part: str = "decoder"
) -> BltGraph:
    """Build the graph of a part, ``decoder`` or ``draft``; the prefix of its weights is its name."""
    stack_config = config.decoder
    dim, layers, k = stack_config.dim, stack_config.layers, config.cross_attn_k
    graph = kind(part, weights, dtype)
    if part == "decoder" and config.decoder_reads_states:
        x = graph.input("states", dtype, [BATCH, "rows", dim], "states")
    else:
        x = graph.embedding(graph.input("ids", INT64, [BATCH, "rows"], "ids"), f"{part}.tok_embeddings")
    latent_kv = graph.input("latent_kv", dtype, ["latents", layers, 2, k * dim], "latent_kv")
    latent_index = graph.input("latent_index", INT64, [BATCH, "rows"], "latent_index")
    stack = graph.stack(stack_config, part)
    keys_values = _by_layer(graph, latent_kv, latent_index, config)
    shape = graph.op.Shape(x)
    for layer in range(layers):
        keys, values = keys_values[2 * layer], keys_values[2 * layer + 1]
        x = _cross_attention(graph, config, f"{part}.cross_layers.{layer}", x, keys, values, shape)
        x = stack.block(x, layer)
    logits = graph.to_float(graph.linear(graph.rms_norm(x, f"{part}.norm", stack_config.norm_eps), f"{part}.output"))
    _declare_choice(graph, logits, config.vocab_size)
    stack.declare_outputs()
    return graph


def _by_layer(graph: BltGraph, latent_kv: ir.Value, latent_index: ir.Value, config: BltConfig) -> list[ir.Value]:
    """Return key and value tokens [b n, k, d] of the latent that each row reads, layer by layer."""
    op, dim, layers, k = graph.op, config.decoder.dim, config.decoder.layers, config.cross_attn_k
    read = op.Gather(latent_kv, op.Reshape(latent_index, [-1]), axis=0)
    by_layer = op.Reshape(op.Transpose(read, perm=[1, 2, 0, 3]), [2 * layers, -1, k, dim])
    return [op.Squeeze(tokens, [0]) for tokens in graph.split(by_layer, [1] * (2 * layers), axis=0)]


def _cross_attention(
    graph: BltGraph,
    config: BltConfig,
    name: str,
    x: ir.Value,
    keys: ir.Value,
    values: ir.Value,
    shape: ir.Value,
) -> ir.Value:
    """Compute ``2 x + wo attn(norm_q(x))`` over latent tokens (see `fastblt.models.layers.CrossAttention`).

    Every row is a batch of its own with its own tokens [k, d]: its result does not depend on which other rows and
    latents are in the call, not even in the last bit. ``shape`` is that of ``x``, [b, n, d].
    """
    op = graph.op
    q = graph.linear(graph.rms_norm(x, f"{name}.norm_q", config.decoder.norm_eps), f"{name}.wq")
    rows = op.Reshape(q, [-1, 1, config.decoder.dim])
    attended = graph.attention(rows, keys, values, None, config.decoder)
    attended = op.Reshape(attended, shape)
    return graph.added_twice(x, graph.linear(attended, f"{name}.wo"))


def _declare_choice(graph: BltGraph, logits: ir.Value, vocab_size: int) -> None:
    """Declare as outputs what the control flow needs of each row, so that logits rarely cross to the host."""
    op = graph.op
    logp = op.LogSoftmax(logits, axis=-1)
    p = op.Exp(logp)
    best = op.ArgMax(logits, axis=-1, keepdims=0)
    # Not ReduceMax: on CUDA it would need cuDNN.
    probability = op.Squeeze(op.GatherElements(p, op.Unsqueeze(best, [-1]), axis=-1), [-1])
    entropy = op.Neg(op.ReduceSum(op.Mul(p, logp), [-1], keepdims=0))
    graph.output("best", best, INT64, [BATCH, "rows"], "best")
    graph.output("probability", probability, FLOAT, [BATCH, "rows"], "probability")
    graph.output("entropy", entropy, FLOAT, [BATCH, "rows"], "entropy")
    graph.output("logits", logits, FLOAT, [BATCH, "rows", vocab_size], "logits")
