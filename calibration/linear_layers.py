"""Finds the linear layers of an exported graph: products of rows with a matrix of weights."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

_SUFFIX = ".weight.T"
_BLOCK = re.compile(r"^(.*\.(?:layers|cross_layers)\.\d+)\.")


@dataclass(frozen=True)
class LinearLayer:
    """Describes one product with a matrix."""

    name: str
    """Name of the checkpoint's module, e.g. ``decoder.layers.0.wqkv``."""
    node: ir.Node
    weight: ir.Value
    """Initializer [in, out]."""

    @property
    def input(self) -> ir.Value:
        """Return the value of the rows, [..., in]."""
        found = self.node.inputs[0]
        assert found is not None
        return found

    @property
    def shape(self) -> tuple[int, int]:
        """Return the numbers of inputs and outputs."""
        assert self.weight.const_value is not None
        inputs, outputs = self.weight.const_value.shape.numpy()
        return int(inputs), int(outputs)

    @property
    def nbytes(self) -> int:
        """Return the bytes of the matrix."""
        assert self.weight.const_value is not None
        return int(self.weight.const_value.nbytes)

    @property
    def group(self) -> str:
        """Return the layer's transformer block, or else its own name; layers of a group share a precision."""
        found = _BLOCK.match(self.name)
        return found.group(1) if found else self.name

    def matrix(self) -> NDArray[np.float32]:
        """Return the weights, float32 [in, out]."""
        assert self.weight.const_value is not None
        return np.asarray(self.weight.const_value.numpy(), dtype=np.float32)


def linear_layers(graph: ir.Graph) -> Iterator[LinearLayer]:
    """Yield the layers in the order in which they are computed."""
    for node in graph:
        weight = node.inputs[1] if node.op_type == "MatMul" else None
        if weight is not None and weight.name and weight.name in graph.initializers and weight.name.endswith(_SUFFIX):
            yield LinearLayer(weight.name.removesuffix(_SUFFIX), node, weight)
