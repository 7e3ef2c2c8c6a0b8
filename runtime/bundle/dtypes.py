"""Names the element types of bundles once: what manifests, ONNX, ONNX Runtime, safetensors and numpy call them.

A *dtype* (``fp32``) is the type of a whole bundle; a *tensor type* (``float32``) is that of one tensor.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np


@dataclass(frozen=True)
class TensorType:
    """Describes one element type."""

    name: str
    """As manifests write it, and numpy: ``float32``."""
    dtype: str | None
    """Bundles that compute in it: ``fp32``; None: none do."""
    onnx: int
    """Number in ``onnx.TensorProto.DataType``."""
    onnxruntime: str
    """As ONNX Runtime's sessions print it: ``tensor(float)``."""
    safetensors: str
    """As headers of safetensors files write it: ``F32``."""
    numpy: np.dtype[Any]

    @property
    def item_bytes(self) -> int:
        """Return the size of an element, in bytes."""
        return self.numpy.itemsize


_ALL = (
    TensorType("float32", "fp32", 1, "tensor(float)", "F32", np.dtype(np.float32)),
    TensorType("float16", "fp16", 10, "tensor(float16)", "F16", np.dtype(np.float16)),
    TensorType("bfloat16", "bf16", 16, "tensor(bfloat16)", "BF16", np.dtype(ml_dtypes.bfloat16)),
    TensorType("int64", None, 7, "tensor(int64)", "I64", np.dtype(np.int64)),
)
#: Every tensor type, by its name.
TENSOR_TYPES = {kind.name: kind for kind in _ALL}
#: Tensor type of the weights, activations and caches of a bundle, by the bundle's dtype.
BUNDLE_TYPES = {kind.dtype: kind for kind in _ALL if kind.dtype is not None}
#: Tensor types by ONNX Runtime's names, and by those of safetensors headers.
ONNXRUNTIME_TYPES = {kind.onnxruntime: kind for kind in _ALL}
SAFETENSORS_TYPES = {kind.safetensors: kind for kind in _ALL}
#: What a bundle can compute in.
DTYPES = tuple(BUNDLE_TYPES)


def numpy_dtype(name: str) -> np.dtype[Any]:
    """Return the numpy type of a tensor type's name, e.g. of ``bfloat16``."""
    return TENSOR_TYPES[name].numpy
