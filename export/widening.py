"""Turns a bf16 graph into an fp32 graph with the same (rounded) weights, for machines without bf16 kernels.

ONNX Runtime has no bf16 matrix product on CPUs. Such a graph can still be checked: every bf16 type in it becomes fp32,
and the weights keep their rounded values.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir

from fastblt.runtime.bundle.graph_model import load_graph

_NARROW, _WIDE = ir.DataType.BFLOAT16, ir.DataType.FLOAT


#: Operators whose results are values of their inputs, which need no rounding again.
_MOVERS = {
    *("Concat", "Expand", "Gather", "Identity", "ReduceMax", "Reshape", "Slice", "Split", "Squeeze", "TensorScatter"),
    *("Transpose", "Unsqueeze", "Where"),
}


def widen(source: Path, target: Path, *, round_values: bool = False) -> None:
    """Write the fp32 twin of a bf16 graph to ``target`` (weights in ``<target>.data``).

    Args:
        source: the graph.
        target: file to write.
        round_values: round the values that the graph computes in bf16, too; otherwise only weights are rounded.
    """
    model = load_graph(source)
    graph = model.graph
    if round_values:
        _round_values(graph, _narrow_values(source))
    for value in graph.initializers.values():
        if value.const_value is not None and value.const_value.dtype == _NARROW:
            value.const_value = _lazily_wide(value.const_value)
            value.type = ir.TensorType(_WIDE)
    for value in (*graph.inputs, *graph.outputs):
        if value.dtype == _NARROW:
            value.type = ir.TensorType(_WIDE)
    for node in graph:
        if _is_rounding(node):
            continue
        if node.op_type == "Cast" and node.attributes["to"].as_int() == _NARROW:
            node.attributes["to"] = ir.AttrInt64("to", _WIDE)
        for value in node.outputs:
            if value.dtype == _NARROW:
                value.type = ir.TensorType(_WIDE)
    ir.save(model, target, external_data=f"{target.name}.data")


def _narrow_values(source: Path) -> set[str]:
    """Return the names of the values that are bf16."""
    model = onnx.shape_inference.infer_shapes(onnx.load(source, load_external_data=False), strict_mode=True)
    kind = onnx.TensorProto.BFLOAT16
    values = (*model.graph.value_info, *model.graph.output)
    return {value.name for value in values if value.type.tensor_type.elem_type == kind}


def _round_values(graph: ir.Graph, narrow: set[str]) -> None:
    """Insert casts to bf16 and back behind every node that computes one of these values."""
    for node in list(graph):
        for value in node.outputs:
            if node.op_type in _MOVERS or value.name not in narrow:
                continue
            rounded = ir.node("Cast", [value], attributes={"to": _NARROW}, name=f"{value.name}.round")
            wide = ir.node("Cast", rounded.outputs, attributes={"to": _WIDE}, name=f"{value.name}.wide")
            users = list(value.uses())
            rounded.outputs[0].name, wide.outputs[0].name = f"{value.name}.bf16", f"{value.name}.rounded"
            graph.insert_after(node, [rounded, wide])
            for user, index in users:
                if user is not rounded:
                    user.replace_input_with(index, wide.outputs[0])
            _keep_output(graph, value, wide.outputs[0])


def _is_rounding(node: ir.Node) -> bool:
    """Decide whether a node is one of the inserted casts, which must stay."""
    return node.op_type == "Cast" and (node.name or "").endswith(".round")


def _keep_output(graph: ir.Graph, value: ir.Value, rounded: ir.Value) -> None:
    """Give the name of a value that is an output of the graph to its rounded result."""
    for index, output in enumerate(graph.outputs):
        if output is value:
            name = value.name
            value.name = f"{name}.exact"
            rounded.name, rounded.type, rounded.shape = name, value.type, value.shape
            graph.outputs[index] = rounded


def _lazily_wide(tensor: ir.TensorProtocol) -> ir.LazyTensor:
    def read() -> ir.TensorProtocol:
        return ir.tensor(tensor.numpy().astype(np.float32), name=tensor.name)

    sizes = [int(size) for size in tensor.shape.numpy()]
    return ir.LazyTensor(read, dtype=_WIDE, shape=ir.Shape(sizes), name=tensor.name)
