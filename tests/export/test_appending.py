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

SIZES = {"batch": 2, "rows": 3, "patches": 3, "slots": 64}


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
    feed["positions"], feed["write_index"] = np.array([[40, 41, 42], [7, 8, 9]]), np.array([20, 7])
    feed["visible_start"] = np.array([[0, 5, 0], [3, 0, 0]])
    feed["visible_end"] = np.array([[21, 22, 23], [8, 9, 10]])
    names = [value.name for value in changed.get_outputs()]
    found = dict(zip(names, changed.run(None, feed), strict=True))
    for output, value in zip(standard.get_outputs(), standard.run(None, feed), strict=True):
        if output.name.endswith("_out"):
            rows = found[output.name.removesuffix("_out") + "_rows"]
            written = np.stack([value[0, :, 20:23], value[1, :, 7:10]])
            np.testing.assert_allclose(rows, written, rtol=1e-5, atol=1e-6)
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
