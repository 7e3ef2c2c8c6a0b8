"""Provides the operations that the four graphs are made of: linear maps, norms, cached attention.

It is built on onnxscript's `GraphBuilder`. Weights are `onnx_ir.LazyTensor`s, read from the checkpoint when they are
written, so that a graph never holds a second copy of the model.

Every graph takes rows of one or more sequences: its first axis is ``batch``, and what a row is and sees is data.

Caches are time-major, ``[batch, 1, slots, heads * head_dim]``. A range of one sequence's slots is contiguous, so that a
runtime can bind any window of a large buffer without a copy, and pays only for what it binds; TensorRT's KVCacheUpdate
requires four axes with the slots third.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import onnx_ir as ir
from onnxscript import GraphBuilder

from fastblt.models.config import StackConfig
from fastblt.models.layers import rope_frequencies
from fastblt.runtime.bundle.manifest import BATCH

FLOAT = ir.DataType.FLOAT
INT64 = ir.DataType.INT64

#: Returns a checkpoint tensor by name, in a type; True turns [out, in] into [in, out].
Weights = Callable[[str, ir.DataType, bool], ir.TensorProtocol]
Shape = Sequence[int | str]


class Update(NamedTuple):
    """Describes new rows in a cache that a graph returns as one of its outputs."""

    name: str
    value: ir.Value
    shape: Shape
    role: str


class Pool(NamedTuple):
    """Holds the encoder's pool with the new rows in it."""

    entries: ir.Value
    """[b, m, 3 d]."""
    slots: ir.Value
    """int64, broadcast to [b, 1, m]: slot of each entry; -1 for entries that do not count."""
    update: Update


class BltGraph:
    """Builds one graph.

    Args:
        name: graph name.
        weights: source of the weights.
        dtype: type of weights, activations and caches; RoPE angles and values computed from logits are fp32, and norms
            compute in fp32.
    """

    opset = 24
    ir_version = 11
    """Newest version that matches the opset; TensorRT and ONNX Runtime refuse newer ones."""

    def __init__(self, name: str, weights: Weights, dtype: ir.DataType) -> None:
        self.graph = ir.Graph(inputs=[], outputs=[], nodes=[], name=name, opset_imports={"": self.opset})
        self.builder = GraphBuilder(self.graph)
        self.op: Any = self.builder.op
        self.dtype = dtype
        self.roles: dict[str, str] = {}
        self._weights = weights

    def input(self, name: str, dtype: ir.DataType, shape: Shape, role: str) -> ir.Value:
        """Add a graph input; ``role`` tells runtimes (through the manifest) what to bind there."""
        self.roles[name] = role
        return self.builder.input(name, dtype, list(shape))

    def output(self, name: str, value: ir.Value, dtype: ir.DataType, shape: Shape, role: str) -> None:
        """Add a graph output."""
        value.type = ir.TensorType(dtype)
        value.shape = ir.Shape(list(shape))
        self.roles[name] = role
        self.builder.add_output(value, name)

    def weight(self, name: str, *, dtype: ir.DataType | None = None) -> ir.Value:
        """Return a checkpoint tensor as an initializer of the same name."""
        return self.builder.initializer(self._weights(name, dtype or self.dtype, False), name)

    def number(self, name: str, value: float) -> ir.Value:
        """Return a scalar of the graph's type as an initializer, which there is once."""
        known = self.graph.initializers.get(name)
        tensor = ir.tensor(np.array(value, dtype=self.dtype.numpy()), name=name)
        return self.builder.initializer(tensor, name) if known is None else known

    def linear(self, x: ir.Value, name: str) -> ir.Value:
        """Compute ``x @ W.T``; the initializer is stored as [in, out] and named ``<name>.weight.T``."""
        weight = self._weights(f"{name}.weight", self.dtype, True)
        return self.op.MatMul(x, self.builder.initializer(weight, f"{name}.weight.T"))

    def embedding(self, ids: ir.Value, name: str) -> ir.Value:
        """Gather rows of the table ``<name>.weight``."""
        return self.op.Gather(self.weight(f"{name}.weight"), ids, axis=0)

    def split(self, x: ir.Value, sizes: Sequence[int], axis: int = -1) -> list[ir.Value]:
        """Split an axis."""
        return list(self.op.Split(x, list(sizes), axis=axis, _outputs=len(sizes)))

    def to_float(self, x: ir.Value) -> ir.Value:
        """Convert ``x`` to fp32."""
        return x if self.dtype == FLOAT else self.op.Cast(x, to=FLOAT)

    def from_float(self, x: ir.Value) -> ir.Value:
        """Convert an fp32 value to the graph's type."""
        return x if self.dtype == FLOAT else self.op.Cast(x, to=self.dtype)

    def rms_norm(self, x: ir.Value, name: str, eps: float) -> ir.Value:
        """Compute RMSNorm over the last axis: the operator normalizes in fp32, whatever its type."""
        return self.op.RMSNormalization(x, self.weight(f"{name}.weight"), axis=-1, epsilon=eps)

    def attention(self, q: ir.Value, k: ir.Value, v: ir.Value, mask: ir.Value | None, of: StackConfig) -> ir.Value:
        """Compute attention of rows [b, n, dim] over keys [b, m, dim], with the heads of the stack ``of``.

        An explicit mask (see `visibility`) is the only form that TensorRT and ONNX Runtime interpret alike. None: rows
        see every key.
        """
        inputs = (q, k, v) if mask is None else (q, k, v, mask)
        return self.op.Attention(*inputs, q_num_heads=of.heads, kv_num_heads=of.heads)

    def visibility(self, seen: ir.Value) -> ir.Value:
        """Turn a bool mask, True where a row sees a key, into the one that `attention` takes: what it adds to scores.

        Of a bool mask ONNX Runtime would make the same numbers, once for every layer.
        """
        # A probability of exactly 0; half the lowest number, so that a sum with it is a number, too.
        lowest = float(np.finfo(np.float16 if self.dtype == ir.DataType.FLOAT16 else np.float32).min)
        return self.op.Where(seen, self.number("added_if_seen", 0), self.number("added_if_hidden", lowest / 2))

    def rotate(self, x: ir.Value, cos: ir.Value, sin: ir.Value, heads: int) -> ir.Value:
        """Rotate interleaved pairs of rows [b, n, dim] (RoPE); ``cos`` and ``sin`` are [b, n, head_dim / 2]."""
        return self.op.RotaryEmbedding(x, cos, sin, interleaved=1, num_heads=heads)

    def maximum(self, x: ir.Value, axis: int) -> ir.Value:
        """Compute the maximum over an axis, which is removed; in fp32 for bf16, which has no such kernel on CUDA."""
        narrow = self.dtype == ir.DataType.BFLOAT16
        highest = self.op.ReduceMax(self.to_float(x) if narrow else x, [axis], keepdims=0)
        return self.from_float(highest) if narrow else highest

    def swish(self, x: ir.Value) -> ir.Value:
        """Compute ``x * sigmoid(x)``: not every TensorRT that knows TensorScatter knows Swish, too."""
        return self.op.Mul(x, self.op.Sigmoid(x))

    def added_twice(self, x: ir.Value, y: ir.Value) -> ir.Value:
        """Compute ``x + x + y``."""
        return self.op.Sum(x, x, y)

    def stack(self, config: StackConfig, prefix: str, rows: str = "rows") -> CachedStack:
        """Return the blocks ``<prefix>.layers``; ``rows`` is the symbolic number of rows."""
        return CachedStack(self, config, prefix, rows)

    def add_to_pool(self, pool: ir.Value, shape: Shape, rows: ir.Value, index: ir.Value) -> Pool:
        """Return the pool of ``shape`` [b, 1, C, 3 d] with rows [b, n, 3 d] from slot ``index`` [b] on."""
        updated = self.scatter(pool, rows, index)
        entries = self.op.Squeeze(updated, [1])
        slots = self.op.Range(0, self.count(entries, 1), 1)
        return Pool(entries, slots, Update("pool_out", updated, shape, "pool_update"))

    def declare(self, update: Update) -> None:
        """Make the update of a cache an output."""
        self.output(update.name, update.value, self.dtype, update.shape, update.role)

    def in_range(self, key: ir.Value, start: ir.Value, end: ir.Value) -> ir.Value:
        """Compute ``start <= key < end``, broadcast."""
        return self.op.And(self.op.GreaterOrEqual(key, start), self.op.Less(key, end))

    def count(self, x: ir.Value, axis: int) -> ir.Value:
        """Return the length of an axis, int64 scalar."""
        return self.op.Squeeze(self.op.Shape(x, start=axis, end=axis + 1), [0])

    def scatter(self, cache: ir.Value, rows: ir.Value, index: ir.Value) -> ir.Value:
        """Write rows [b, n, dim] into a cache [b, 1, slots, dim] from slot ``index`` [b] on, in place."""
        return self.op.TensorScatter(cache, self.op.Unsqueeze(rows, [1]), index)


class CachedStack:
    """Builds the blocks of one stack over new rows: its control inputs, its caches, its layers.

    Its inputs (b = sequences of this call, n = rows of each, S = slots that the runtime binds):

    ==================  =======  ============  ================================================================
    positions           int64    [b, n]        RoPE positions
    write_index         int64    [b]           slot of a sequence's first row; the others follow
    visible_start       int64    [b, n]        first slot that each row sees
    visible_end         int64    [b, n]        slot after the last one that each row sees
    key_i, value_i      dtype    [b, 1, S, d]  cache of layer i; bound to the same memory as the output
    ==================  =======  ============  ================================================================

    Outputs: ``key_i_out``, ``value_i_out``, the updated caches. What a row sees is data, so that
    causal rows, windows and blocks that are denoised all run the same graph. Sequences with fewer rows than others are
    padded: the rows after their own write slots that nobody reads before they are written again.
    """

    def __init__(self, graph: BltGraph, config: StackConfig, prefix: str, rows: str = "rows") -> None:
        self.graph = graph
        self.config = config
        self.prefix = prefix
        self.rows = rows
        op = graph.op
        self.shape: Shape = [BATCH, 1, "slots", config.dim]
        positions = graph.input("positions", INT64, [BATCH, rows], "position")
        self.write_index = graph.input("write_index", INT64, [BATCH], "write_index")
        start = graph.input("visible_start", INT64, [BATCH, rows], "visible_start")
        end = graph.input("visible_end", INT64, [BATCH, rows], "visible_end")
        self.caches = [
            {kind: graph.input(f"{kind}_{i}", graph.dtype, self.shape, "cache") for kind in ("key", "value")}
            for i in range(config.layers)
        ]
        self._updates: list[Update] = []
        self._see(op.Unsqueeze(start, [1, 3]), op.Unsqueeze(end, [1, 3]), positions)
        self.cos, self.sin = self._rope(positions)

    def _see(self, start: ir.Value, end: ir.Value, positions: ir.Value) -> None:
        """Compute the masks of the slots that rows see, from ``start`` and ``end`` [b, 1, n, 1]."""
        slot = self.graph.op.Range(0, self.graph.count(self.caches[0]["key"], 2), 1)
        self.mask = self.graph.visibility(self.graph.in_range(slot, start, end))

    def _rope(self, positions: ir.Value) -> tuple[ir.Value, ir.Value]:
        """Compute cosines and sines [b, 3 n, head_dim / 2] of a query, a key and a value a row, angles in fp32."""
        graph, op, config = self.graph, self.graph.op, self.config
        frequencies = rope_frequencies(config.head_dim, config.rope_theta).tolist()
        # A query, a key and a value follow one another, and one operator rotates all three: the value by nothing.
        rows = [frequencies, frequencies, [0.0] * len(frequencies)]
        table = graph.builder.initializer(ir.tensor(rows, dtype=FLOAT, name="rope_frequencies"))
        angles = op.Mul(op.Cast(op.Unsqueeze(positions, [2, 3]), to=FLOAT), table)
        angles = op.Reshape(angles, [0, -1, len(frequencies)])
        return graph.from_float(op.Cos(angles)), graph.from_float(op.Sin(angles))

    def block(self, x: ir.Value, layer: int) -> ir.Value:
        """Apply block ``<prefix>.layers.<layer>`` to rows [b, n, dim] (see `fastblt.models.layers.Block`)."""
        graph, op, config = self.graph, self.graph.op, self.config
        name = f"{self.prefix}.layers.{layer}"
        hidden = graph.rms_norm(x, f"{name}.attention_norm", config.norm_eps)
        pieces = op.Reshape(graph.linear(hidden, f"{name}.wqkv"), [0, -1, config.dim])
        rotated = op.Reshape(graph.rotate(pieces, self.cos, self.sin, config.heads), [0, -1, 3 * config.dim])
        q, k, v = graph.split(rotated, [config.dim] * 3)
        x = op.Add(x, graph.linear(self._attend(layer, q, k, v), f"{name}.wo"))
        hidden = graph.rms_norm(x, f"{name}.ffn_norm", config.norm_eps)
        gate, up = graph.split(graph.linear(hidden, f"{name}.feed_forward.w13"), [config.ffn_dim] * 2)
        return op.Add(x, graph.linear(op.Mul(graph.swish(gate), up), f"{name}.feed_forward.w2"))

    def run(self, x: ir.Value) -> ir.Value:
        """Apply all blocks."""
        for layer in range(self.config.layers):
            x = self.block(x, layer)
        return x

    def _attend(self, layer: int, q: ir.Value, k: ir.Value, v: ir.Value) -> ir.Value:
        """Write rows into a layer's caches, and attend to these."""
        keys, values = self._append(layer, "key", k), self._append(layer, "value", v)
        return self.graph.attention(q, keys, values, self.mask, self.config)

    def _append(self, layer: int, kind: str, rows: ir.Value) -> ir.Value:
        """Write rows into a cache and return the whole cache, [b, slots, dim]."""
        updated = self.graph.scatter(self.caches[layer][kind], rows, self.write_index)
        self._updates.append(Update(f"{kind}_{layer}_out", updated, self.shape, "cache_update"))
        return self.graph.op.Squeeze(updated, [1])

    def declare_outputs(self) -> None:
        """Make the updates of the caches graph outputs."""
        for update in self._updates:
            self.graph.declare(update)
