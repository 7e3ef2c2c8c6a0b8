import numpy as np
import onnx
import pytest
from safetensors.numpy import save

from fastblt.runtime.bundle.dtypes import BUNDLE_TYPES, DTYPES, ONNXRUNTIME_TYPES, TENSOR_TYPES, TensorType, numpy_dtype

KINDS = list(TENSOR_TYPES.values())


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_a_type_is_the_same_one_under_every_name(kind: TensorType) -> None:
    assert numpy_dtype(kind.name) == kind.numpy
    assert kind.numpy.name == kind.name
    assert onnx.helper.tensor_dtype_to_np_dtype(kind.onnx) == kind.numpy
    assert ONNXRUNTIME_TYPES[kind.onnxruntime] is kind
    assert kind.item_bytes == kind.numpy.itemsize
    assert f'"dtype":"{kind.safetensors}"'.encode() in save({"x": np.zeros(1, kind.numpy)})


def test_bundles_compute_in_floating_point() -> None:
    assert DTYPES == ("fp32", "fp16", "bf16")
    assert {dtype: kind.name for dtype, kind in BUNDLE_TYPES.items()} == {
        "fp32": "float32",
        "fp16": "float16",
        "bf16": "bfloat16",
    }
