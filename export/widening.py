"""A bf16 graph as an fp32 graph with the same (rounded) weights, for machines without bf16 kernels.

ONNX Runtime has no bf16 matrix product on CPUs. What such a graph computes can still be checked: every bf16 type in it
becomes fp32, and the weights keep the values that bf16 rounding gave them.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir

_NARROW, _WIDE = ir.DataType.BFLOAT16, ir.DataType.FLOAT


def widen(source: Path, target: Path) -> None:
    """Write the fp32 twin of a bf16 graph to ``target`` (weights in ``<target>.data``)."""
    model = ir.load(source)
    graph = model.graph
    for value in graph.initializers.values():
        if value.const_value is not None and value.const_value.dtype == _NARROW:
            value.const_value = _lazily_wide(value.const_value)
            value.type = ir.TensorType(_WIDE)
    for value in (*graph.inputs, *graph.outputs):
        if value.dtype == _NARROW:
            value.type = ir.TensorType(_WIDE)
    for node in graph:
        if node.op_type == "Cast" and node.attributes["to"].as_int() == _NARROW:
            node.attributes["to"] = ir.AttrInt64("to", _WIDE)
        for value in node.outputs:
            if value.dtype == _NARROW:
                value.type = ir.TensorType(_WIDE)
    ir.save(model, target, external_data=f"{target.name}.data")


def _lazily_wide(tensor: ir.TensorProtocol) -> ir.LazyTensor:
    def read() -> ir.TensorProtocol:
        return ir.tensor(tensor.numpy().astype(np.float32), name=tensor.name)

    sizes = [int(size) for size in tensor.shape.numpy()]
    return ir.LazyTensor(read, dtype=_WIDE, shape=ir.Shape(sizes), name=tensor.name)
