"""Changes ONNX graphs: types and shapes of inputs and outputs, weights, attributes, edges, external data, opsets."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import onnx
from google.protobuf.message import DecodeError
from onnx import AttributeProto, GraphProto, ModelProto, TensorProto

Change = dict[str, Any]

_SIZES = (0, -1, 1, 2, 7, 63, 2**31, 2**40, 2**62)
_TYPES = (1, 7, 6, 10, 11, 16, 9, 8, 2, 0, 99)
_PATHS = ("../../../../etc/passwd", "/etc/passwd", "config.json", "missing.data", "../config.json", "", "decoder.onnx")
_OPS = ("Identity", "Add", "MatMul", "Softmax", "Loop", "If", "Nonsense", "Gather", "Reshape", "Cast", "Expand", "Tile")


def propose(rng: random.Random, path: Path) -> Change:
    """Return a change of a graph."""
    graph = onnx.load(path, load_external_data=False).graph
    kind = rng.choice(tuple(_PROPOSALS))
    return {"op": f"onnx {kind}", **_PROPOSALS[kind](rng, graph)}


def apply(path: Path, change: Change) -> None:
    """Change the graph at ``path``; one that is not there, or no longer parses, stays unchanged."""
    try:
        model = onnx.load(path, load_external_data=False)
        _APPLY[change["op"].removeprefix("onnx ")](model, change)
    except (OSError, DecodeError, LookupError, ValueError, TypeError):
        return
    path.write_bytes(model.SerializeToString())


def _values(graph: GraphProto, side: str) -> Any:
    return graph.input if side == "input" else graph.output


def _tensor_of(rng: random.Random, graph: GraphProto) -> Change:
    side = rng.choice(("input", "output"))
    return {"side": side, "index": rng.randrange(len(_values(graph, side)))}


def _node_of(rng: random.Random, graph: GraphProto) -> Change:
    return {"node": rng.randrange(len(graph.node))}


def _size(rng: random.Random, graph: GraphProto) -> Change:
    change = _tensor_of(rng, graph)
    shape = _values(graph, change["side"])[change["index"]].type.tensor_type.shape.dim
    at = rng.randrange(len(shape)) if shape else 0
    near = shape[at].dim_value + 1 if shape else 1
    return {**change, "axis": at, "size": rng.choice((*_SIZES, "rows", "other", near))}


def _edge(rng: random.Random, graph: GraphProto) -> Change:
    node = rng.randrange(len(graph.node))
    names = [name for each in graph.node for name in (*each.input, *each.output)] + [i.name for i in graph.initializer]
    return {"node": node, "input": rng.randrange(max(len(graph.node[node].input), 1)), "name": rng.choice([*names, ""])}


def _attribute(rng: random.Random, graph: GraphProto) -> Change:
    having = [index for index, node in enumerate(graph.node) if node.attribute]
    node = rng.choice(having)
    name = rng.choice([each.name for each in graph.node[node].attribute])
    return {"node": node, "name": name, "value": rng.choice((*_SIZES, 1e30, "x", [1, 2**40], []))}


def _weight(rng: random.Random, graph: GraphProto) -> Change:
    index = rng.randrange(len(graph.initializer))
    dims = list(graph.initializer[index].dims)
    if dims:
        at = rng.randrange(len(dims))
        dims[at] = rng.choice((*_SIZES, dims[at] + 1, dims[at] * 2))
    return {"index": index, "dims": rng.choice((dims, [*dims, 1], dims[::-1]))}


_PROPOSALS: dict[str, Any] = {
    "type": lambda rng, graph: {**_tensor_of(rng, graph), "type": rng.choice(_TYPES)},
    "size": _size,
    "rank": lambda rng, graph: {**_tensor_of(rng, graph), "by": rng.choice((1, -1))},
    "name": lambda rng, graph: {**_tensor_of(rng, graph), "name": rng.choice(("", "x", "logits", "ids", "key_0"))},
    "remove tensor": _tensor_of,
    "weight dims": _weight,
    "weight type": lambda rng, graph: {"index": rng.randrange(len(graph.initializer)), "type": rng.choice(_TYPES)},
    "weight external": lambda rng, graph: {
        "index": rng.randrange(len(graph.initializer)),
        "location": rng.choice(_PATHS),
        "offset": rng.choice(("0", "-1", "18446744073709551615", "4096", "x")),
        "length": rng.choice(("0", "128", "-1", "9223372036854775807", "4398046511104")),
    },
    "weight values": lambda rng, graph: {
        "index": rng.randrange(len(graph.initializer)),
        "hex": rng.choice(("0000c07f", "0000807f", "00000000", "ffffffff", "ffffff7f", rng.randbytes(4).hex())),
    },
    "attribute": _attribute,
    "edge": _edge,
    "kind": lambda rng, graph: {**_node_of(rng, graph), "kind": rng.choice(_OPS)},
    "remove node": _node_of,
    "twice": _node_of,
    "opset": lambda rng, graph: {"version": rng.choice((0, -1, 1, 7, 17, 18, 23, 24, 25, 2**31, 2**62))},
    "cast": lambda rng, graph: {**_tensor_of(rng, graph), "type": rng.choice((1, 7, 10, 16, 6))},
    "domain": lambda rng, graph: {**_node_of(rng, graph), "domain": rng.choice(("com.microsoft", "ai.onnx.ml", "x"))},
}


def _set_size(model: ModelProto, change: Change) -> None:
    dim = _values(model.graph, change["side"])[change["index"]].type.tensor_type.shape.dim[change["axis"]]
    dim.Clear()
    if isinstance(change["size"], str):
        dim.dim_param = change["size"]
    else:
        dim.dim_value = change["size"]


def _set_type(model: ModelProto, change: Change) -> None:
    _values(model.graph, change["side"])[change["index"]].type.tensor_type.elem_type = change["type"]


def _set_rank(model: ModelProto, change: Change) -> None:
    dims = _values(model.graph, change["side"])[change["index"]].type.tensor_type.shape.dim
    if change["by"] > 0:
        dims.add().dim_value = 1
    else:
        dims.pop()


def _set_name(model: ModelProto, change: Change) -> None:
    _values(model.graph, change["side"])[change["index"]].name = change["name"]


def _remove_tensor(model: ModelProto, change: Change) -> None:
    del _values(model.graph, change["side"])[change["index"]]


def _set_dims(model: ModelProto, change: Change) -> None:
    weight = model.graph.initializer[change["index"]]
    del weight.dims[:]
    weight.dims.extend(change["dims"])


def _set_weight_type(model: ModelProto, change: Change) -> None:
    model.graph.initializer[change["index"]].data_type = change["type"]


def _set_external(model: ModelProto, change: Change) -> None:
    weight = model.graph.initializer[change["index"]]
    weight.ClearField("raw_data")
    weight.data_location = TensorProto.EXTERNAL
    for key in ("location", "offset", "length"):
        entry = weight.external_data.add()
        entry.key, entry.value = key, change[key]


def _set_values(model: ModelProto, change: Change) -> None:
    weight = model.graph.initializer[change["index"]]
    piece = bytes.fromhex(change["hex"])
    weight.raw_data = (piece * (len(weight.raw_data) // len(piece) + 1))[: len(weight.raw_data)]


def _set_attribute(model: ModelProto, change: Change) -> None:
    node = model.graph.node[change["node"]]
    (found,) = (each for each in node.attribute if each.name == change["name"])
    new = onnx.helper.make_attribute(change["name"], change["value"] if change["value"] != [] else [0])
    if new.type == AttributeProto.INT and found.type == AttributeProto.FLOAT:
        new = onnx.helper.make_attribute(change["name"], float(change["value"]))
    found.CopyFrom(new)


def _set_edge(model: ModelProto, change: Change) -> None:
    model.graph.node[change["node"]].input[change["input"]] = change["name"]


def _set_kind(model: ModelProto, change: Change) -> None:
    model.graph.node[change["node"]].op_type = change["kind"]


def _remove_node(model: ModelProto, change: Change) -> None:
    del model.graph.node[change["node"]]


def _twice(model: ModelProto, change: Change) -> None:
    model.graph.node.add().CopyFrom(model.graph.node[change["node"]])


def _set_opset(model: ModelProto, change: Change) -> None:
    model.opset_import[0].version = change["version"]


def _set_domain(model: ModelProto, change: Change) -> None:
    model.graph.node[change["node"]].domain = change["domain"]


def _cast(model: ModelProto, change: Change) -> None:
    """Give an input or output another type, and convert it inside: the graph stays valid."""
    graph = model.graph
    value = _values(graph, change["side"])[change["index"]]
    inner = f"{value.name}_inner"
    if change["side"] == "output":
        for node in graph.node:
            node.output[:] = [inner if name == value.name else name for name in node.output]
            node.input[:] = [inner if name == value.name else name for name in node.input]
        graph.node.append(onnx.helper.make_node("Cast", [inner], [value.name], to=change["type"]))
    else:
        for node in graph.node:
            node.input[:] = [inner if name == value.name else name for name in node.input]
        cast = onnx.helper.make_node("Cast", [value.name], [inner], to=value.type.tensor_type.elem_type)
        graph.node.insert(0, cast)
    value.type.tensor_type.elem_type = change["type"]


_APPLY = {
    "type": _set_type,
    "size": _set_size,
    "rank": _set_rank,
    "name": _set_name,
    "remove tensor": _remove_tensor,
    "weight dims": _set_dims,
    "weight type": _set_weight_type,
    "weight external": _set_external,
    "weight values": _set_values,
    "attribute": _set_attribute,
    "edge": _set_edge,
    "kind": _set_kind,
    "remove node": _remove_node,
    "twice": _twice,
    "opset": _set_opset,
    "domain": _set_domain,
    "cast": _cast,
}
