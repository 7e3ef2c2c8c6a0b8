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
from fastblt.models.formats.names import PATCHER_PREFIX
from fastblt.models.machine_memory import check_memory
from fastblt.models.parameters import count_parameters
from fastblt.runtime.backends.protocol import CapacityError
from fastblt.runtime.bundle.bundle import Bundle
from fastblt.runtime.bundle.graph_model import check_graph, load_graph
from fastblt.runtime.bundle.manifest import BundleError

#: The types that bundles compute in.
TORCH_TYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


def load_eager_model(bundle: Path, device: str, *, exact: bool = True) -> Blt:
    """Build the eager model, with the weights as the bundle's dtype rounded them.

    Args:
        bundle: folder of a bundle.
        device: ``cpu`` or ``cuda``, for the parameters.
        exact: compute in fp32, to be compared with; otherwise in the bundle's dtype, as whoever serves the model with
            PyTorch would. The patcher is fp32 in either case.

    Raises:
        BundleError: a file is damaged, or a weight is in none of them.
        ConfigError: the configuration is invalid.
    """
    opened = Bundle.open(bundle)
    shapes = expected_shapes(opened.config)
    name = "fp32" if exact else opened.manifest.dtype
    dtype, counts = TORCH_TYPES[name], count_parameters(opened.config)
    size = dtype.itemsize * (counts.total - counts.patcher) + 4 * counts.patcher
    check_memory(size, bundle, f"weights in {name}", CapacityError)
    tensors: dict[str, torch.Tensor] = {}

    def keep(name: str, array: NDArray[np.float32]) -> None:
        wanted = torch.float32 if name.startswith(PATCHER_PREFIX) else dtype
        tensors[name] = torch.from_numpy(array).to(device, wanted)

    for part, spec in opened.manifest.graphs.items():
        model = load_graph(opened.graph(part))
        check_graph(opened.graph(part), model, spec)
        for name, array in _arrays(opened.graph(part), model.graph.initializers):
            plain = name.removesuffix(".T")
            if plain not in shapes:
                continue
            keep(plain, (array.T if plain != name else array).copy())
    if opened.embeddings is not None:
        for name, table in opened.tables().items():
            keep(name, table.astype(np.float32))
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
