"""Reads a checkpoint's tensors for graphs and table files one at a time; none is kept in memory."""

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
    """Provides a checkpoint's tensors as lazy initializers and as chunks of rows."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self.checkpoint = checkpoint
        self.config = checkpoint.config

    def __call__(self, name: str, dtype: ir.DataType, transpose: bool) -> ir.TensorProtocol:
        """Return a lazy initializer, which is read, converted and transposed each time its bytes are requested.

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
        """Return the type of a table on the host in a bundle of type ``dtype``.

        Hash tables that are stored in 16 bits keep their type: rows are summed in fp32, so that widening them gains
        nothing, and rounding them to another 16-bit type would lose precision.
        """
        if name == HASH_TABLE and self.checkpoint.dtype(name) != "F32":
            return DTYPES[self.checkpoint.dtype(name)]
        return TORCH_DTYPES[dtype]

    def chunks(self, name: str, dtype: torch.dtype) -> Iterator[np.ndarray]:
        """Yield the rows of a table, a few thousand at a time, as raw bytes (uint8)."""
        for rows in self.checkpoint.chunks(name, dtype):
            yield rows.contiguous().view(torch.uint8).numpy()
