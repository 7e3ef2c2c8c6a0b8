from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest

from fastblt.export.appending import append_caches
from fastblt.runtime.bundle.dtypes import numpy_dtype
from fastblt.runtime.bundle.graph_model import load_graph
from fastblt.runtime.bundle.manifest import load_manifest
from fastblt.runtime.bundle.tensorrt_library import TensorRtError

SIZES = {"rows": 3, "patches": 3, "slots": 64}


def test_latents_and_rows_are_those_of_the_standard_graph(tiny_bundle: Path) -> None:
    """Slots from the first new row on are noise, which nothing may read."""
    spec = load_manifest(tiny_bundle).graphs["global"]
    model = load_graph(tiny_bundle / spec.file)
    append_caches(model, spec)
    changed = ort.InferenceSession(ir.to_proto(model).SerializeToString())
    standard = ort.InferenceSession(tiny_bundle / spec.file)
    rng = np.random.default_rng(0)
    feed = {
        tensor.name: rng.standard_normal([SIZES.get(str(size), size) for size in tensor.shape]).astype(
            numpy_dtype(tensor.dtype)
        )
        for tensor in spec.inputs
    }
    feed["positions"], feed["write_index"] = np.array([[40, 41, 42]]), np.array([20])
    feed["visible_start"], feed["visible_end"] = np.array([[0, 5, 0]]), np.array([[21, 22, 23]])
    names = [value.name for value in changed.get_outputs()]
    found = dict(zip(names, changed.run(None, feed), strict=True))
    for output, value in zip(standard.get_outputs(), standard.run(None, feed), strict=True):
        if output.name.endswith("_out"):
            rows = found[output.name.removesuffix("_out") + "_rows"]
            np.testing.assert_allclose(rows, value[:, :, 20:23], rtol=1e-5, atol=1e-6)
        else:
            np.testing.assert_allclose(found[output.name], value, rtol=1e-4, atol=1e-5)
    assert not any(node.op_type == "TensorScatter" for node in model.graph)


@pytest.mark.parametrize(("operator", "found"), [("TensorScatter", "no TensorScatter"), ("Range", "0 ranges")])
def test_other_graphs_are_refused(tiny_bundle: Path, operator: str, found: str) -> None:
    spec = load_manifest(tiny_bundle).graphs["global"]
    model = load_graph(tiny_bundle / spec.file)
    for node in model.graph:
        if node.op_type == operator:
            node.op_type = "Other"
    with pytest.raises(TensorRtError, match=f"global: .*found {found}"):
        append_caches(model, spec)
