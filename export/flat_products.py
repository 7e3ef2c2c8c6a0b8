"""Makes products of rows with weights two-dimensional, so that an engine stores each weight once.

TensorRT turns a product of rows [b, n, k] with a weight [k, m] into one product for each sequence of the batch. For
several sequences it lays the weight out in another way than for one, and an engine with profiles for both would store
it twice: a cut of blt-1b had 170 MB for 115 MB of weights. As one product of [b n, k] it is the same for any batch.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir


def flatten_products(graph: ir.Graph) -> None:
    """Let every product with a weight [k, m] take rows [b n, k]; its result has the shape that it had."""
    for node in [node for node in graph if node.op_type == "MatMul"]:
        rows, weight = node.inputs
        shape = None if weight is None else _weight_shape(weight)
        if rows is not None and shape is not None:
            _flatten(graph, node, rows, shape)


def _weight_shape(value: ir.Value) -> tuple[int, int] | None:
    """Return the shape of a weight [k, m], quantized or not; None: the value is none."""
    producer = value.producer()
    if producer is not None and producer.op_type == "DequantizeLinear":
        quantized = producer.inputs[0]
        return None if quantized is None else _weight_shape(quantized)
    if value.const_value is None or value.const_value.shape.rank() != 2:
        return None
    inner, outer = value.const_value.shape.numpy()
    return inner, outer


def _flatten(graph: ir.Graph, product: ir.Node, rows: ir.Value, shape: tuple[int, int]) -> None:
    reader = product
    # Rows that are quantized stay beside the product: the compiler takes the three for one.
    while (producer := rows.producer()) is not None and producer.op_type in ("DequantizeLinear", "QuantizeLinear"):
        source = producer.inputs[0]
        assert source is not None, "what is quantized is there"
        reader, rows = producer, source
    flat = ir.node("Reshape", [rows, _constant(graph, [-1, shape[0]])])
    leading = ir.node("Shape", [rows], {"start": 0, "end": -1})
    whole = ir.node("Concat", [leading.outputs[0], _constant(graph, [shape[1]])], {"axis": 0})
    graph.insert_before(reader, [flat, leading, whole])
    reader.replace_input_with(0, flat.outputs[0])
    result = product.outputs[0]
    uses = list(result.uses())
    unflat = ir.node("Reshape", [result, whole.outputs[0]])
    graph.insert_after(product, unflat)
    for use in uses:
        use.node.replace_input_with(use.idx, unflat.outputs[0])
    shaped = unflat.outputs[0]
    shaped.type, shaped.shape, result.shape = result.type, result.shape, None
    for index, output in enumerate(graph.outputs):
        if output is result:
            shaped.name, result.name = result.name, f"{result.name}.flat"
            graph.outputs[index] = shaped


def _constant(graph: ir.Graph, numbers: list[int]) -> ir.Value:
    """Return an int64 constant, which there is once."""
    name = "flat_" + "_".join(map(str, numbers))
    known = graph.initializers.get(name)
    if known is not None:
        return known
    tensor = ir.tensor(np.array(numbers, np.int64), name=name)
    kind = ir.TensorType(ir.DataType.INT64)
    value = ir.Value(name=name, const_value=tensor, type=kind, shape=ir.Shape([len(numbers)]))
    graph.register_initializer(value)
    return value
