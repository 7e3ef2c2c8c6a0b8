"""Builds ``entropy.onnx``, the patcher; always fp32, because lower precision moves patch boundaries.

======  ===============  =======  ==========  ==========================================================
in      ids              int64    [b, n]      tokens
in      (stack inputs)                        see `fastblt.export.graph_builder.CachedStack`
out     entropy          float32  [b, n]      entropy of the token after each row, nats
out     (cache updates)
======  ===============  =======  ==========  ==========================================================
"""

from __future__ import annotations

from fastblt.export.graph_builder import FLOAT, INT64, BltGraph, Weights
from fastblt.models.config import BltConfig
from fastblt.runtime.bundle.manifest import BATCH


def build_entropy_graph(config: BltConfig, weights: Weights, kind: type[BltGraph]) -> BltGraph:
    """Build the patcher's graph."""
    assert config.patcher is not None, "a model without an entropy model has no such graph"
    graph = kind("entropy", weights, FLOAT)
    op = graph.op
    ids = graph.input("ids", INT64, [BATCH, "rows"], "ids")
    stack = graph.stack(config.patcher, "patcher")
    x = stack.run(graph.embedding(ids, "patcher.tok_embeddings"))
    logits = graph.linear(graph.rms_norm(x, "patcher.norm", config.patcher.norm_eps), "patcher.output")
    logp = op.LogSoftmax(logits, axis=-1)
    entropy = op.Neg(op.ReduceSum(op.Mul(op.Exp(logp), logp), [-1], keepdims=0))
    graph.output("entropy", entropy, FLOAT, [BATCH, "rows"], "entropy")
    stack.declare_outputs()
    return graph
