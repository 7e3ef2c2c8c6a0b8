"""Products with weights are two-dimensional for TensorRT, and compute the same."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest

from fastblt.export.flat_products import flatten_products
from fastblt.runtime.bundle.dtypes import numpy_dtype
from fastblt.runtime.bundle.graph_model import load_graph
from fastblt.runtime.bundle.manifest import GraphSpec, load_manifest

SIZES = {"batch": 2, "rows": 3, "patches": 3, "slots": 64, "pool_slots": 64, "context_rows": 8, "latents": 4}


def inputs_of(spec: GraphSpec) -> dict[str, Any]:
    """Two sequences of three rows each; the second one is further on."""
    rng = np.random.default_rng(0)
    found = {}
    for tensor in spec.inputs:
        shape = [SIZES.get(str(size), size) for size in tensor.shape]
        kind = numpy_dtype(tensor.dtype)
        small = rng.integers(0, 4, shape) + (20 if tensor.role in ("visible_end", "patch_end") else 0)
        found[tensor.name] = (small if kind.kind == "i" else rng.standard_normal(shape)).astype(kind)
    return found


@pytest.mark.parametrize("part", ["patcher", "encoder", "global", "decoder"])
@pytest.mark.parametrize("lowered", [False, True])
def test_results_are_the_same(tiny_checkpoint: Path, exported: Callable[..., Path], part: str, lowered: bool) -> None:
    bundle = exported(tiny_checkpoint, lowered=lowered)
    spec = load_manifest(bundle).graphs[part]
    model = load_graph(bundle / spec.file)
    names = [value.name for value in model.graph.outputs]
    products = [node for node in model.graph if node.op_type == "MatMul" and node.inputs[1].const_value is not None]
    flatten_products(model.graph)
    assert products
    for node in products:
        reshape = node.inputs[0].producer()
        assert reshape is not None
        assert reshape.op_type == "Reshape"
    assert [value.name for value in model.graph.outputs] == names
    flat = ort.InferenceSession(ir.to_proto(model).SerializeToString())
    feed = inputs_of(spec)
    expected = ort.InferenceSession(bundle / spec.file).run(None, feed)
    for name, found, wanted in zip(names, flat.run(None, feed), expected, strict=True):
        np.testing.assert_array_equal(found, wanted, err_msg=name)
