"""Builds the eager model of a bundle from the initializers of its graphs.

Initializers have the names of the checkpoint's tensors; a matrix that a graph multiplies by is stored transposed,
with ``.T`` after its name. So a bundle alone is enough to compare a compiled runtime with eager PyTorch.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import onnx_ir as ir
import torch
from numpy.typing import NDArray

from fastblt.models.blt import Blt
from fastblt.models.formats.checkpoint import expected_shapes
from fastblt.models.machine_memory import check_memory
from fastblt.models.parameters import count_parameters
from fastblt.runtime.backends.protocol import CapacityError
from fastblt.runtime.bundle.bundle import Bundle
from fastblt.runtime.bundle.graph_model import check_graph, load_graph
from fastblt.runtime.bundle.manifest import BundleError


def load_eager_model(bundle: Path, device: str) -> Blt:
    """Build the eager model in fp32, with the weights as the bundle's dtype rounded them.

    Args:
        bundle: folder of a bundle.
        device: ``cpu`` or ``cuda``, for the parameters.

    Raises:
        BundleError: a file is damaged, or a weight is in none of them.
        ConfigError: the configuration is invalid.
    """
    opened = Bundle.open(bundle)
    shapes = expected_shapes(opened.config)
    check_memory(4 * count_parameters(opened.config).total, bundle, "weights in fp32", CapacityError)
    tensors: dict[str, torch.Tensor] = {}
    for part, spec in opened.manifest.graphs.items():
        model = load_graph(opened.graph(part))
        check_graph(opened.graph(part), model, spec)
        for name, array in _arrays(opened.graph(part), model.graph.initializers):
            plain = name.removesuffix(".T")
            if plain not in shapes:
                continue
            tensors[plain] = torch.from_numpy((array.T if plain != name else array).copy()).to(device)
    if opened.embeddings is not None:
        for name, table in opened.tables().items():
            tensors[name] = torch.from_numpy(table.astype(np.float32)).to(device)
    for name, shape in shapes.items():
        found = tuple(tensors[name].shape) if name in tensors else None
        if found != shape:
            raise BundleError(f"{bundle}: weight {name}: found shape {found}, expected {shape}")
    with torch.device("meta"):
        eager = Blt(opened.config)
    eager.load_state_dict(tensors, assign=True)
    return eager.eval().requires_grad_(False)


def _arrays(path: Path, initializers: Mapping[str, ir.Value]) -> Iterator[tuple[str, NDArray[np.float32]]]:
    """Yield names and values of a graph's weights; quantized ones are expanded, under the name of the original."""
    for name, value in initializers.items():
        if value.const_value is None:
            continue
        plain = name.removesuffix(".quantized")
        try:
            array = _array(value)
            if plain != name:
                scales = _array(initializers[f"{plain}.scale"])
                array = array * (np.repeat(scales, len(array) // len(scales), axis=0) if scales.ndim == 2 else scales)
        except Exception as error:  # data of another size, no scales, types without numbers
            reason = " ".join(str(error).split())
            raise BundleError(f"{path}: weight {name}: cannot be read ({type(error).__name__}: {reason})") from error
        yield plain, array


def _array(value: ir.Value) -> NDArray[np.float32]:
    """Return the values of an initializer."""
    if value.const_value is None:
        raise ValueError("it has no values")
    return np.asarray(value.const_value.numpy(), dtype=np.float32)
