"""Turns a bf16 bundle into one that ONNX Runtime's CPU provider runs: fp32 graphs with values rounded to bf16.

There are no bf16 kernels on CPUs. Weights keep their rounded values, and every value that the graph computes in bf16
is rounded to it and back; sums inside a matrix product stay wider, as they do on a GPU. The result shows what bf16
costs in quality, and is the reference that a GPU is compared with.
"""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

from fastblt.export.widening import widen
from fastblt.runtime.bundle.bundle import Bundle
from fastblt.runtime.bundle.manifest import GraphSpec, Manifest, TensorSpec, write_manifest


def emulate_bf16(bundle: Path, out: Path) -> Manifest:
    """Write the twin of a bf16 bundle that runs on CPUs.

    Args:
        bundle: folder of a bf16 bundle.
        out: folder to make, inside one for intermediate files: it is not finished if this raises.

    Returns:
        Its manifest: type bf16, graphs with float32 tensors.

    Raises:
        BundleError: ``bundle`` cannot be read.
        OSError: ``out`` exists or cannot be written.
    """
    manifest = Bundle.open(bundle, check=False).manifest
    graph_files = {spec.file for spec in manifest.graphs.values()}
    out.mkdir(parents=True)
    for name in manifest.files:
        if name in graph_files:
            widen(bundle / name, out / name, round_values=True)
        elif not name.endswith(".onnx.data"):
            shutil.copyfile(bundle / name, out / name)
    graphs = {part: wide_spec(spec) for part, spec in manifest.graphs.items()}
    return write_manifest(out, replace(manifest, graphs=graphs, files={}))


def wide_spec(spec: GraphSpec) -> GraphSpec:
    """Return a graph's description with float32 in place of bfloat16."""

    def wide(tensors: tuple[TensorSpec, ...]) -> tuple[TensorSpec, ...]:
        return tuple(replace(t, dtype="float32") if t.dtype == "bfloat16" else t for t in tensors)

    return replace(spec, inputs=wide(spec.inputs), outputs=wide(spec.outputs))
