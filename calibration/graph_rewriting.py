"""Writes quantized weights into a graph, in the form that ONNX Runtime fuses and TensorRT packs.

Weights become ``DequantizeLinear`` of an initializer (``<name>.weight.T.quantized`` with ``.scale``); quantized inputs
pass through ``QuantizeLinear`` and ``DequantizeLinear``. These are standard operators, used symmetrically, so that any
runtime reads them.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from fastblt.calibration.linear_layers import LinearLayer
from fastblt.calibration.rounding import NUMPY_TYPES, QuantizedMatrix

QUANTIZED, SCALE = ".quantized", ".scale"
#: First opset and IR version with blocks and 4 bits; lowered graphs have older ones.
LEAST_OPSET, LEAST_IR = 21, 10


def quantize_weight(graph: ir.Graph, layer: LinearLayer, matrix: QuantizedMatrix) -> None:
    """Replace the weights of a layer by a quantized matrix."""
    values, scales = (
        _initializer(graph, f"{layer.weight.name}{end}", array)
        for end, array in ((QUANTIZED, matrix.values), (SCALE, matrix.scales))
    )
    block = matrix.precision.block
    attributes = {"axis": 0, "block_size": block} if block else {"axis": 1}
    node = ir.node("DequantizeLinear", [values, scales], attributes=attributes, name=f"{layer.weight.name}.dequantize")
    node.outputs[0].name = f"{layer.weight.name}.dequantized"
    graph.insert_before(layer.node, node)
    layer.node.replace_input_with(1, node.outputs[0])
    assert layer.weight.name is not None
    if not layer.weight.uses():
        del graph.initializers[layer.weight.name]


def quantize_input(graph: ir.Graph, layer: LinearLayer, kind: str, scale: float) -> None:
    """Quantize the rows that a layer reads.

    Args:
        graph: contains the layer.
        layer: reads the rows.
        kind: ``int8`` or ``fp8``.
        scale: of all inputs.
    """
    assert layer.weight.const_value is not None
    dtype = layer.weight.const_value.dtype.numpy()
    name = f"{layer.name}.input"
    step = _initializer(graph, f"{name}{SCALE}", np.array(scale, dtype=np.float32).astype(dtype))
    zero = _initializer(graph, f"{name}.zero_point", np.zeros((), dtype=NUMPY_TYPES[kind]))
    narrow = ir.node("QuantizeLinear", [layer.input, step, zero], name=f"{name}.quantize")
    narrow.outputs[0].name = f"{name}{QUANTIZED}"
    wide = ir.node("DequantizeLinear", [narrow.outputs[0], step, zero], name=f"{name}.dequantize")
    wide.outputs[0].name = f"{name}.dequantized"
    graph.insert_before(layer.node, [narrow, wide])
    layer.node.replace_input_with(0, wide.outputs[0])


def raise_opset(model: ir.Model) -> None:
    """Declare the opset in which blocks and 4 bits exist if the graph's is older.

    The operators of lowered graphs have the same meaning in both.
    """
    imports = model.graph.opset_imports
    imports[""] = max(imports[""], LEAST_OPSET)
    model.ir_version = max(model.ir_version, LEAST_IR)


def _initializer(graph: ir.Graph, name: str, array: np.ndarray) -> ir.Value:
    """Return an initializer; one that is already in the graph under this name is used again."""
    if name in graph.initializers:
        return graph.initializers[name]
    tensor = ir.tensor(array, name=name)
    value = ir.Value(name=name, shape=ir.Shape(array.shape), type=ir.TensorType(tensor.dtype), const_value=tensor)
    graph.initializers[name] = value
    return value
