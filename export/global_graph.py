"""Builds ``global.onnx``: patch embeddings to latents, and to the decoder's keys and values of each latent.

======  ================  =====  ======================  =================================================
in      patch_embeddings  dtype  [b, p, k * d]
in      (stack inputs)                                   see `CachedStack`; positions are patch indices
out     latents           dtype  [b, p, g]
out     latent_kv         dtype  [b p, layers, 2, k d]   keys and values of every decoder cross-attention
out     (cache updates)
======  ================  =====  ======================  =================================================

A latent's keys and values are projected here, once, because many decoder rows read the same latent.
"""

from __future__ import annotations

import onnx_ir as ir

from fastblt.export.graph_builder import BltGraph, Weights
from fastblt.models.config import BltConfig
from fastblt.runtime.bundle.manifest import BATCH


def build_global_graph(config: BltConfig, weights: Weights, dtype: ir.DataType, kind: type[BltGraph]) -> BltGraph:
    """Build the global transformer's graph, with the decoder's latent projections."""
    graph = kind("global", weights, dtype)
    op, width = graph.op, config.patch_dim
    x = graph.input("patch_embeddings", dtype, [BATCH, "patches", width], "patch_embeddings")
    stack = graph.stack(config.global_transformer, "global_transformer", rows="patches")
    if config.has_global_projection:
        x = graph.linear(x, "global_transformer.input_projection")
    latents = stack.run(x)
    dim, k, layers = config.decoder.dim, config.cross_attn_k, config.decoder.layers
    tokens = op.Reshape(graph.linear(latents, "decoder.patch_projection"), [-1, k, dim])
    pieces = []
    for layer in range(layers):
        name = f"decoder.cross_layers.{layer}"
        normal = graph.rms_norm(tokens, f"{name}.norm_kv", config.decoder.norm_eps)
        pieces.append(op.Reshape(graph.linear(normal, f"{name}.wkv"), [-1, 1, k, 2, dim]))
    by_kind = op.Transpose(op.Concat(*pieces, axis=1), perm=[0, 1, 3, 2, 4])
    latent_kv = op.Reshape(by_kind, [-1, layers, 2, k * dim])
    graph.output("latents", latents, dtype, [BATCH, "patches", config.global_transformer.dim], "latents")
    graph.output("latent_kv", latent_kv, dtype, ["latents", layers, 2, k * dim], "latent_kv")
    stack.declare_outputs()
    return graph
