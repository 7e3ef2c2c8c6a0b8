"""A checkpoint's tensors as what graphs and table files are written from: read one at a time, never held."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx_ir as ir
import torch
from onnx_ir.tensor_adapters import TorchTensor

from fastblt.models.formats.checkpoint import HASH_TABLE, Checkpoint
from fastblt.models.formats.stores import DTYPES

TORCH_DTYPES = {
    ir.DataType.FLOAT: torch.float32,
    ir.DataType.FLOAT16: torch.float16,
    ir.DataType.BFLOAT16: torch.bfloat16,
}


class CheckpointWeights:
    """A checkpoint's tensors, as lazy initializers and as row chunks."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self.checkpoint = checkpoint
        self.config = checkpoint.config

    def __call__(self, name: str, dtype: ir.DataType, transpose: bool) -> ir.TensorProtocol:
        """A lazy initializer: read, converted and perhaps transposed each time its bytes are asked for.

        Args:
            name: of the tensor.
            dtype: to convert to.
            transpose: swap both axes.
        """
        shape = self.checkpoint.shape(name)

        def read() -> ir.TensorProtocol:
            return TorchTensor(self._read(name, dtype, transpose), name=name)

        order = shape[::-1] if transpose else shape
        return ir.LazyTensor(read, dtype=dtype, shape=ir.Shape(order), name=name)

    def _read(self, name: str, dtype: ir.DataType, transpose: bool) -> torch.Tensor:
        tensor = self.checkpoint.read(name, TORCH_DTYPES[dtype])
        return tensor.t().contiguous() if transpose else tensor

    def table_dtype(self, name: str, dtype: ir.DataType) -> torch.dtype:
        """Type of a table on the host, in a bundle of type ``dtype``.

        Hash tables that are stored in 16 bits stay as they are: rows are summed in fp32, so nothing is gained by
        widening them, and rounding them to another 16-bit type would lose something.
        """
        if name == HASH_TABLE and self.checkpoint.dtype(name) != "F32":
            return DTYPES[self.checkpoint.dtype(name)]
        return TORCH_DTYPES[dtype]

    def chunks(self, name: str, dtype: torch.dtype) -> Iterator[np.ndarray]:
        """The rows of a table, a few thousand at a time, as raw bytes (uint8)."""
        for rows in self.checkpoint.chunks(name, dtype):
            yield rows.contiguous().view(torch.uint8).numpy()
