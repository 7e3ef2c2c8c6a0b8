"""Provides the same operations in opset 18, for TensorRT without layers for attention and cache updates.

TensorRT has them since 10.15; a Jetson Orin has 10.3. Here attention is made of matrix products, and a graph does not
write to its caches: it returns the new rows, which the runtime stores there. Attention sees old slots and new rows
side by side, so that nothing is copied inside the graph either. Slots from ``write_index`` on may contain any finite
values, even rows that this very call writes.
"""

from __future__ import annotations

import math

import numpy as np
import onnx_ir as ir

from fastblt.export.graph_builder import FLOAT, BltGraph, CachedStack, Pool, Shape, Update
from fastblt.models.config import StackConfig
from fastblt.runtime.bundle.manifest import BATCH

#: Value of a score that no row may see.
_HIDDEN = float(np.finfo(np.float32).min)


class LoweredGraph(BltGraph):
    """Builds a graph like `BltGraph`, without the operators that opset 18 lacks."""

    opset = 18
    ir_version = 9

    def rms_norm(self, x: ir.Value, name: str, eps: float) -> ir.Value:
        """Implement `BltGraph.rms_norm` with elementary operators."""
        op, wide = self.op, self.to_float(x)
        mean = op.ReduceMean(op.Mul(wide, wide), [-1], keepdims=1)
        normal = op.Div(wide, op.Sqrt(op.Add(mean, self.constant(eps))))
        return self.from_float(op.Mul(normal, self.weight(f"{name}.weight", dtype=FLOAT)))

    def rotate(self, x: ir.Value, cos: ir.Value, sin: ir.Value, heads: int) -> ir.Value:
        """Implement `BltGraph.rotate` with elementary operators."""
        op = self.op
        pairs = op.Reshape(x, [0, 0, heads, -1, 2])
        even, odd = self.split(pairs, [1, 1])
        cos, sin = op.Unsqueeze(cos, [2, 4]), op.Unsqueeze(sin, [2, 4])
        turned = op.Concat(
            op.Sub(op.Mul(even, cos), op.Mul(odd, sin)), op.Add(op.Mul(odd, cos), op.Mul(even, sin)), axis=-1
        )
        return op.Reshape(turned, op.Shape(x))

    def attention(self, q: ir.Value, k: ir.Value, v: ir.Value, mask: ir.Value | None, of: StackConfig) -> ir.Value:
        """Implement `BltGraph.attention` with matrix products."""
        q, k, v = (self.by_head(x, of.heads) for x in (q, k, v))
        seen = self.probabilities(self.scores(self.scaled(q, of), k), mask)
        return self.joined(self.op.MatMul(self.from_float(seen), v))

    def visibility(self, seen: ir.Value) -> ir.Value:
        """Implement `BltGraph.visibility`: the mask itself."""
        return seen

    def scaled(self, q: ir.Value, of: StackConfig) -> ir.Value:
        """Divide ``q`` [b, heads, n, head_dim] by the root of head_dim, before a product that may overflow fp16."""
        # A constant: whatever is computed from a shape is computed on the CPU, and no CUDA graph can hold its copy.
        return self.op.Div(q, self.number(f"root_of_{of.head_dim}", math.sqrt(of.head_dim)))

    def by_head(self, x: ir.Value, heads: int) -> ir.Value:
        """Split rows [b, n, dim] by head: [b, heads, n, head_dim]."""
        return self.op.Transpose(self.op.Reshape(x, [0, 0, heads, -1]), perm=[0, 2, 1, 3])

    def joined(self, x: ir.Value) -> ir.Value:
        """Join [b, heads, n, head_dim] to rows [b, n, dim]."""
        return self.op.Reshape(self.op.Transpose(x, perm=[0, 2, 1, 3]), [0, 0, -1])

    def scores(self, q: ir.Value, k: ir.Value) -> ir.Value:
        """Compute products [b, heads, n, m] of rows by head, fp32."""
        return self.to_float(self.op.MatMul(q, self.op.Transpose(k, perm=[0, 1, 3, 2])))

    def probabilities(self, scores: ir.Value, mask: ir.Value | None) -> ir.Value:
        """Compute the softmax over the keys that a row sees, fp32."""
        seen = scores if mask is None else self.op.Where(mask, scores, self.constant(_HIDDEN))
        return self.op.Softmax(seen, axis=-1)

    def constant(self, value: float) -> ir.Value:
        """Return an fp32 scalar."""
        return self.op.Constant(value_float=value)

    def stack(self, config: StackConfig, prefix: str, rows: str = "rows") -> CachedStack:
        """Implement `BltGraph.stack` with blocks that return their new rows."""
        return AppendingStack(self, config, prefix, rows)

    def add_to_pool(self, pool: ir.Value, shape: Shape, rows: ir.Value, index: ir.Value) -> Pool:
        """Implement `BltGraph.add_to_pool`: the entries are the old ones, followed by the new rows."""
        op = self.op
        old, new = self.slot_numbers(self.count(pool, 2), self.count(rows, 1), index)
        entries = op.Concat(op.Squeeze(pool, [1]), rows, axis=1)
        update = Update("pool_rows", op.Unsqueeze(rows, [1]), [BATCH, 1, "rows", shape[3]], "pool_rows")
        return Pool(entries, op.Unsqueeze(op.Concat(old, new, axis=1), [1]), update)

    def slot_numbers(self, slots: ir.Value, rows: ir.Value, index: ir.Value) -> tuple[ir.Value, ir.Value]:
        """Return the slot of each entry of a cache [b, S], -1 (invisible) from ``index`` [b] on, and of new rows."""
        op = self.op
        slot, first = op.Range(0, slots, 1), op.Unsqueeze(index, [1])
        return op.Where(op.Less(slot, first), slot, -1), op.Add(op.Range(0, rows, 1), first)


class AppendingStack(CachedStack):
    """Builds a `CachedStack` with outputs ``key_i_rows`` and ``value_i_rows``, dtype [b, 1, n, d]: the new rows."""

    graph: LoweredGraph

    def _see(self, start: ir.Value, end: ir.Value, positions: ir.Value) -> None:
        graph, op = self.graph, self.graph.op
        slots, rows = graph.count(self.caches[0]["key"], 2), graph.count(positions, 1)
        old, new = graph.slot_numbers(slots, rows, self.write_index)
        self.mask = graph.in_range(op.Unsqueeze(op.Concat(old, new, axis=1), [1, 2]), start, end)
        self._slots = op.Unsqueeze(slots, [0])

    def _attend(self, layer: int, q: ir.Value, k: ir.Value, v: ir.Value) -> ir.Value:
        graph, op, heads = self.graph, self.graph.op, self.config.heads
        self._give(layer, "key", k)
        self._give(layer, "value", v)
        old = {kind: graph.by_head(op.Squeeze(cache, [1]), heads) for kind, cache in self.caches[layer].items()}
        q, k, v = (graph.by_head(x, heads) for x in (q, k, v))
        q = graph.scaled(q, self.config)
        scores = op.Concat(graph.scores(q, old["key"]), graph.scores(q, k), axis=-1)
        seen = graph.from_float(graph.probabilities(scores, self.mask))
        first = op.Slice(seen, [0], self._slots, [3])
        rest = op.Slice(seen, self._slots, [2**31 - 1], [3])
        return graph.joined(op.Add(op.MatMul(first, old["value"]), op.MatMul(rest, v)))

    def _give(self, layer: int, kind: str, rows: ir.Value) -> None:
        """Make rows an output."""
        name, number = f"{kind}_{layer}_rows", self.rows
        update = Update(name, self.graph.op.Unsqueeze(rows, [1]), [BATCH, 1, number, self.config.dim], "cache_rows")
        self._updates.append(update)
