"""Reads a bundle's graph as a model of `onnx_ir`, for those that look into graphs instead of running them.

Needs the packages onnx and onnx-ir, which the runtime does without.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import onnx_ir as ir

from fastblt.runtime.bundle.contract import Interface, check_interface
from fastblt.runtime.bundle.manifest import BundleError, GraphSpec, TensorSpec


def load_graph(path: Path) -> ir.Model:
    """Read a graph; weights beside it are mapped into memory when they are asked for.

    Raises:
        BundleError: it is no graph, or its weights are in another file than ``<name>.data`` beside it.
    """
    try:
        model = ir.load(path)
    except Exception as error:  # protobuf's, onnx's and onnx-ir's have nothing in common
        raise BundleError(f"{path}: not a readable graph ({' '.join(str(error).split())})") from error
    for graph in (model.graph, *model.graph.subgraphs()):
        for name, value in graph.initializers.items():
            tensor = value.const_value
            if isinstance(tensor, ir.ExternalTensor) and tensor.location != f"{path.name}.data":
                raise BundleError(f"{path}: weight {name}: found in {tensor.location!r}, expected {path.name}.data")
    return model


def check_graph(path: Path, model: ir.Model, spec: GraphSpec) -> None:
    """Compare the inputs and outputs of a graph with those of the manifest: names, types, shapes and order.

    Raises:
        BundleError: the graph has others; the message names the first one.
    """
    roles = {tensor.name: tensor.role for tensor in (*spec.inputs, *spec.outputs)}
    found = Interface(_described(model.graph.inputs, roles), _described(model.graph.outputs, roles))
    check_interface(str(path), found, spec, "by the manifest")


def _described(values: Iterable[ir.Value], roles: dict[str, str]) -> tuple[TensorSpec, ...]:
    return tuple(describe(value, roles.get(value.name or "", "")) for value in values)


def describe(value: ir.Value, role: str) -> TensorSpec:
    """Return the description of an input or output of a graph."""
    shape = () if value.shape is None else value.shape
    sizes = tuple(size if isinstance(size, int) else str(size.value) for size in shape)
    return TensorSpec(value.name or "", _type_name(value.dtype), sizes, role)


def _type_name(kind: ir.DataType | None) -> str:
    """Return numpy's name of a type; what numpy does not have, or nothing, keeps ONNX's."""
    try:
        return str(kind.numpy()) if kind is not None else "no type"
    except TypeError:
        return str(kind)
