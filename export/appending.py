"""Makes caches that attention reads slot by slot bindable in any size: a graph returns their new rows instead.

TensorRT's KVCacheUpdate takes caches of one size only, so that each size would be an engine of its own with all
weights. Without it, attention sees the old slots and the new rows side by side, as in lowered graphs, and the runtime
copies the rows into place. The compiled layers are the same, and one kernel fewer each: the compiler copies a cache to
attention's memory anyway, and the rows join there.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from fastblt.runtime.bundle.engines import appending_outputs
from fastblt.runtime.bundle.manifest import GraphSpec
from fastblt.runtime.bundle.tensorrt_library import TensorRtError


def append_caches(model: ir.Model, spec: GraphSpec) -> None:
    """Change a standard graph in place: new rows of caches become outputs, ``key_0_rows`` for ``key_0_out``.

    Args:
        model: the graph.
        spec: the graph's entry in the manifest, without a pool.

    Raises:
        TensorRtError: the graph does not update and mask its caches as `fastblt export` writes it.
    """
    graph = model.graph
    inputs = {value.name: value for value in graph.inputs}
    caches = [inputs[tensor.name] for tensor in spec.inputs if tensor.role == "cache"]
    rows = [_append(graph, cache) for cache in caches]
    _number_slots(graph, caches, inputs["positions"], inputs["write_index"])
    described = appending_outputs(spec)
    for new_rows, cache in zip(rows, caches, strict=True):
        output = next(value for value in graph.outputs if value.name == f"{cache.name}_out")
        tensor = described[str(output.name)]
        value = _node(graph, "Identity", [new_rows], tensor.name)
        value.type, value.shape = output.type, ir.Shape(list(tensor.shape))
        graph.outputs[list(graph.outputs).index(output)] = value
    _remove_unused(graph)


def _append(graph: ir.Graph, cache: ir.Value) -> ir.Value:
    """Let the readers of a cache's update read the old slots and the new rows; return these, [b, 1, n, dim]."""
    update = next((use.node for use in cache.uses() if use.node.op_type == "TensorScatter"), None)
    if update is None:
        raise TensorRtError(f"{graph.name}: {cache.name}: found no TensorScatter, expected the update of a cache")
    rows = update.inputs[1]
    assert rows is not None, "TensorScatter has rows"
    joined = _before(graph, update, "Concat", [cache, rows], axis=2)
    for use in list(update.outputs[0].uses()):
        use.node.replace_input_with(use.idx, joined)
    return rows


def _number_slots(graph: ir.Graph, caches: Sequence[ir.Value], positions: ir.Value, index: ir.Value) -> None:
    """Give old slots their numbers, -1 (invisible) from ``index`` on, and new rows the numbers from there."""
    sizes = [use.node for cache in caches for use in cache.uses() if use.node.op_type == "Shape"]
    ranges = [node for size in sizes for node in _readers(size, 2) if node.op_type == "Range"]
    if len(ranges) != 1:
        raise TensorRtError(f"{graph.name}: found {len(ranges)} ranges of the slots of its caches, expected 1")
    slots = ranges[0]
    uses = list(slots.outputs[0].uses())
    last = slots

    def after(operator: str, inputs: list[ir.Value], **attributes: int) -> ir.Value:
        nonlocal last
        node = ir.node(operator, inputs, attributes)
        graph.insert_after(last, node)
        last = node
        return node.outputs[0]

    zero, one, hidden, rank_2, rank_4 = (_constant(graph, f"appended_{name}", at) for name, at in _NUMBERS.items())
    count, first = after("Squeeze", [after("Shape", [positions], start=1, end=2)]), after("Unsqueeze", [index, rank_2])
    new = after("Add", [after("Range", [zero, count, one]), first])
    old = after("Where", [after("Less", [slots.outputs[0], first]), slots.outputs[0], hidden])
    joined = after("Unsqueeze", [after("Concat", [old, new], axis=1), rank_4])
    for use in uses:
        use.node.replace_input_with(use.idx, joined)


#: Constants that number slots, by name: of slots, and axes that are added to them.
_NUMBERS: dict[str, int | list[int]] = {"zero": 0, "one": 1, "hidden": -1, "rank_2": [1], "rank_4": [1, 2]}


def _readers(node: ir.Node, depth: int) -> list[ir.Node]:
    """Return the nodes that read a node's outputs, and those that read theirs, ``depth`` times."""
    found = [use.node for output in node.outputs for use in output.uses()]
    return found if depth == 1 else found + [reader for each in found for reader in _readers(each, depth - 1)]


def _constant(graph: ir.Graph, name: str, number: int | list[int]) -> ir.Value:
    array = np.array(number, np.int64)
    tensor = ir.tensor(array, name=name)
    value = ir.Value(name=name, const_value=tensor, type=ir.TensorType(ir.DataType.INT64), shape=ir.Shape(array.shape))
    graph.register_initializer(value)
    return value


def _node(graph: ir.Graph, operator: str, inputs: list[ir.Value], name: str) -> ir.Value:
    """Add a node at the end and return its output, ``name``."""
    node = ir.node(operator, inputs, outputs=[ir.Value(name=name)])
    graph.append(node)
    return node.outputs[0]


def _before(graph: ir.Graph, place: ir.Node, operator: str, inputs: list[ir.Value], **attributes: int) -> ir.Value:
    node = ir.node(operator, inputs, attributes)
    graph.insert_before(place, node)
    return node.outputs[0]


def _remove_unused(graph: ir.Graph) -> None:
    """Remove the updates that nothing reads any longer."""
    outputs = set(graph.outputs)
    for node in [node for node in graph if node.op_type == "TensorScatter"]:
        if not node.outputs[0].uses() and node.outputs[0] not in outputs:
            graph.remove(node, safe=True)
