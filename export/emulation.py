"""A bf16 bundle as one that ONNX Runtime's CPU provider runs: fp32 graphs whose values are rounded as bf16 would.

There are no bf16 kernels on CPUs. Weights keep the values that rounding gave them, and every value that the graph
computes in bf16 is rounded to it and back; sums inside of a matrix product stay wider, as they do on a GPU. What
comes out is what bf16 costs in quality, and the reference that a GPU is compared with.
"""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

from fastblt.export.widening import widen
from fastblt.models.atomic_folder import replacing_folder
from fastblt.runtime.bundle.manifest import GraphSpec, Manifest, TensorSpec, load_manifest, write_manifest


def emulate_bf16(bundle: Path, out: Path) -> Manifest:
    """Write the twin of a bf16 bundle that runs on CPUs.

    Args:
        bundle: folder of a bf16 bundle.
        out: folder to write; replaced if it exists.

    Returns:
        Its manifest: type bf16, graphs with float32 tensors.

    Raises:
        BundleError: ``bundle`` cannot be read.
    """
    manifest = load_manifest(bundle)
    graph_files = {spec.file for spec in manifest.graphs.values()}
    with replacing_folder(out) as new:
        for name in manifest.files:
            if name in graph_files:
                widen(bundle / name, new / name, round_values=True)
            elif not name.endswith(".onnx.data"):
                shutil.copyfile(bundle / name, new / name)
        graphs = {part: wide_spec(spec) for part, spec in manifest.graphs.items()}
        return write_manifest(new, replace(manifest, graphs=graphs, files={}))


def wide_spec(spec: GraphSpec) -> GraphSpec:
    """A graph's inputs and outputs with float32 where bfloat16 was."""

    def wide(tensors: tuple[TensorSpec, ...]) -> tuple[TensorSpec, ...]:
        return tuple(replace(t, dtype="float32") if t.dtype == "bfloat16" else t for t in tensors)

    return replace(spec, inputs=wide(spec.inputs), outputs=wide(spec.outputs))
