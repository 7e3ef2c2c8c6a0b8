"""Makes bundles that are read like those of earlier versions, whose graphs take one sequence.

Their graphs are those of today: only the shapes of inputs and outputs are others.
"""

from __future__ import annotations

from pathlib import Path

import onnx
from fakes.lying_bundles import Data, change, linked, replace, sign

from fastblt.runtime.bundle.manifest import BATCH, MANIFEST_FILE


def of_one_sequence(bundle: Path, folder: Path) -> Path:
    """Copy a bundle to ``folder``, with 1 instead of ``batch`` in every shape."""
    linked(bundle, folder)
    for path in folder.glob("*.onnx"):
        model = onnx.load(path, load_external_data=False)
        for value in (*model.graph.input, *model.graph.output):
            for axis in value.type.tensor_type.shape.dim:
                if axis.dim_param == BATCH:
                    axis.dim_value = 1
                elif path.name == "global.onnx" and axis.dim_param == "latents":
                    axis.dim_param = "patches"
        del model.graph.value_info[:]
        replace(path, model.SerializeToString())

    def shapes(data: Data) -> None:
        for part, graph in data["graphs"].items():
            names = {BATCH: 1} | ({"latents": "patches"} if part == "global" else {})
            for tensor in (*graph["inputs"], *graph["outputs"]):
                tensor["shape"] = [names.get(size, size) for size in tensor["shape"]]

    change(folder / MANIFEST_FILE, shapes)
    sign(folder, *(path.name for path in folder.glob("*.onnx")))
    return folder
