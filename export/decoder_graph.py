"""``decoder.onnx``: rows of bytes to distributions of bytes; one graph for every kind of row.

======  ================  =======  ======================  ================================================
in      ids               int64    [1, n]                  tokens, [MASK] included (BLT-D), or
in      states            dtype    [1, n, d]               byte states from the encoder (BLT)
in      latent_kv         dtype    [m, layers, 2, k * d]   a run of latents, from ``global.onnx``
in      latent_index      int64    [1, n]                  which of them each row reads
in      (stack inputs)                                     see `fastblt.export.graph_builder.CachedStack`
out     best              int64    [1, n]                  most likely token
out     probability       float32  [1, n]                  its probability
out     entropy           float32  [1, n]                  entropy of the row, nats
out     logits            float32  [1, n, vocab]
out     (cache updates)
======  ================  =======  ======================  ================================================
"""

from __future__ import annotations

import onnx_ir as ir

from fastblt.export.graph_builder import FLOAT, INT64, BltGraph, Weights
from fastblt.models.config import BltConfig


def build_decoder_graph(config: BltConfig, weights: Weights, dtype: ir.DataType, kind: type[BltGraph]) -> BltGraph:
    """The decoder's graph."""
    stack_config = config.decoder
    dim, layers, k = stack_config.dim, stack_config.layers, config.cross_attn_k
    graph = kind("decoder", weights, dtype)
    if config.decoder_input == "embedding":
        x = graph.embedding(graph.input("ids", INT64, [1, "rows"], "ids"), "decoder.tok_embeddings")
    else:
        x = graph.input("states", dtype, [1, "rows", dim], "states")
    latent_kv = graph.input("latent_kv", dtype, ["latents", layers, 2, k * dim], "latent_kv")
    latent_index = graph.input("latent_index", INT64, [1, "rows"], "latent_index")
    stack = graph.stack(stack_config, "decoder")
    keys_values = _by_layer(graph, latent_kv, layers, dim)
    mask = _latent_mask(graph, latent_index, latent_kv, k)
    for layer in range(layers):
        keys, values = keys_values[2 * layer], keys_values[2 * layer + 1]
        x = _cross_attention(graph, config, layer, x, keys, values, mask)
        x = stack.block(x, layer)
    logits = graph.to_float(graph.linear(graph.rms_norm(x, "decoder.norm", stack_config.norm_eps), "decoder.output"))
    _declare_choice(graph, logits, config.vocab_size)
    stack.declare_outputs()
    return graph


def _by_layer(graph: BltGraph, latent_kv: ir.Value, layers: int, dim: int) -> list[ir.Value]:
    """Key and value tokens [1, m * k, d] of each layer in turn."""
    by_layer = graph.op.Transpose(latent_kv, perm=[1, 2, 0, 3])
    tokens = graph.op.Reshape(by_layer, [2 * layers, -1, dim])
    return graph.split(tokens, [1] * (2 * layers), axis=0)


def _latent_mask(graph: BltGraph, latent_index: ir.Value, latent_kv: ir.Value, k: int) -> ir.Value:
    """Bool [1, 1, n, m * k]: a row sees the k tokens of its latent."""
    op = graph.op
    token = op.Range(0, op.Mul(graph.count(latent_kv, 0), k), 1)
    first = op.Unsqueeze(op.Mul(latent_index, k), [1, 3])
    return graph.in_range(token, first, op.Add(first, k))


def _cross_attention(
    graph: BltGraph,
    config: BltConfig,
    layer: int,
    x: ir.Value,
    keys: ir.Value,
    values: ir.Value,
    mask: ir.Value,
) -> ir.Value:
    """``2 x + wo attn(norm_q(x))`` over latent tokens (see `fastblt.models.layers.CrossAttention`)."""
    op, name = graph.op, f"decoder.cross_layers.{layer}"
    q = graph.linear(graph.rms_norm(x, f"{name}.norm_q", config.decoder.norm_eps), f"{name}.wq")
    attended = graph.attention(q, keys, values, mask, config.decoder.heads)
    return op.Add(op.Add(x, x), graph.linear(attended, f"{name}.wo"))


def _declare_choice(graph: BltGraph, logits: ir.Value, vocab_size: int) -> None:
    """What the control flow needs of each row, so that logits rarely cross to the host."""
    op = graph.op
    logp = op.LogSoftmax(logits, axis=-1)
    p = op.Exp(logp)
    best = op.ArgMax(logits, axis=-1, keepdims=0)
    entropy = op.Neg(op.ReduceSum(op.Mul(p, logp), [-1], keepdims=0))
    graph.output("best", best, INT64, [1, "rows"], "best")
    graph.output("probability", op.ReduceMax(p, [-1], keepdims=0), FLOAT, [1, "rows"], "probability")
    graph.output("entropy", entropy, FLOAT, [1, "rows"], "entropy")
    graph.output("logits", logits, FLOAT, [1, "rows", vocab_size], "logits")
