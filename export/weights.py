"""Reading a checkpoint's tensors one at a time, straight from the memory-mapped file."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from onnx_ir.tensor_adapters import TorchTensor
from safetensors import safe_open

from fastblt.models.checkpoint import WEIGHTS_FILE, CheckpointError, check_weights, read_config

TORCH_DTYPES = {
    ir.DataType.FLOAT: torch.float32,
    ir.DataType.FLOAT16: torch.float16,
    ir.DataType.BFLOAT16: torch.bfloat16,
}
_CHUNK_ROWS = 65_536


class CheckpointWeights:
    """A checkpoint folder's tensors, as lazy initializers and as row chunks.

    Raises:
        CheckpointError: the folder is not a checkpoint, or its tensors do not fit its configuration.
        ConfigError: its configuration is invalid.
    """

    def __init__(self, folder: Path) -> None:
        self.config = read_config(folder)
        self.path = folder / WEIGHTS_FILE
        check_weights(self.path, self.config)

    def _open(self) -> Any:
        # Opened for each read: pages of a mapping that stays open would pile up to a copy of the file.
        return safe_open(self.path, framework="pt")

    def shape(self, name: str) -> list[int]:
        """Shape of a tensor as it is stored."""
        with self._open() as file:
            shape: list[int] = file.get_slice(name).get_shape()
        return shape

    def __call__(self, name: str, dtype: ir.DataType, transpose: bool) -> ir.TensorProtocol:
        """A lazy initializer: read, converted and perhaps transposed each time its bytes are asked for.

        Args:
            name: of the tensor.
            dtype: to convert to.
            transpose: swap both axes.
        """
        shape = self.shape(name)

        def read() -> ir.TensorProtocol:
            return TorchTensor(self._read(name, dtype, transpose), name=name)

        order = shape[::-1] if transpose else shape
        return ir.LazyTensor(read, dtype=dtype, shape=ir.Shape(order), name=name)

    def _read(self, name: str, dtype: ir.DataType, transpose: bool) -> torch.Tensor:
        tensor = self._checked(name, self.tensor(name), dtype)
        return tensor.t().contiguous() if transpose else tensor

    def _checked(self, name: str, tensor: torch.Tensor, dtype: ir.DataType) -> torch.Tensor:
        converted = tensor.to(TORCH_DTYPES[dtype])
        if not torch.isfinite(converted).all():
            what = "NaN or infinite values"
            if torch.isfinite(tensor).all():
                what = f"values beyond the range of {dtype.name.lower()} (largest {tensor.abs().max():.3g})"
            raise CheckpointError(f"{self.path}: {name}: found {what}, expected finite weights")
        return converted

    def chunks(self, name: str, dtype: ir.DataType) -> Iterator[np.ndarray]:
        """The rows of a table, a few thousand at a time, as raw bytes (uint8)."""
        for first in range(0, self.shape(name)[0], _CHUNK_ROWS):
            with self._open() as file:
                rows = self._checked(name, file.get_slice(name)[first : first + _CHUNK_ROWS], dtype)
            yield rows.contiguous().view(torch.uint8).numpy()

    def tensor(self, name: str) -> torch.Tensor:
        """A tensor as it is stored, backed by the file where the platform allows it."""
        with self._open() as file:
            found: torch.Tensor = file.get_tensor(name)
        return found
