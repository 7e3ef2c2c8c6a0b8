"""Writes recorded calls as files that NVIDIA's Polygraphy reads, with the commands that compare a graph with them.

Each call is two files: what a graph was given, and what it returned on the CPU. ``polygraphy run`` feeds the first to
ONNX Runtime or TensorRT and compares with the second.
"""

from __future__ import annotations

import importlib.util
import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from fastblt.models.atomic_folder import replacing_folder
from fastblt.runtime.bundle.bundle import Bundle
from fastblt.runtime.bundle.manifest import BATCH, GraphSpec, Manifest
from fastblt.runtime.measure.verify.recorded_calls import RecordedCall, Tensors, record_calls
from fastblt.runtime.measure.verify.reference import DeviceError, Emulate, cpu_reference
from fastblt.runtime.measure.verify.tolerance import Tolerance, require_polygraphy, tolerance_of

README = "README.md"
#: Name of what made the outputs, in Polygraphy's reports.
RUNNER = "fastblt on the CPU"
#: Bytes of the prompt and of the text after it: caches of a few hundred slots, whatever the model's window is.
PROMPT_BYTES, NEW_BYTES = 100, 40
#: Script for ``--trt-npps``.
ATTENTION_SCRIPT = "trt_attention.py"
_ATTENTION = """\
\"\"\"Lets TensorRT compute attention that it has no kernel for with matrix products, as fastblt compile does.\"\"\"

import os


def postprocess(network):
    if os.environ.get("POLYGRAPHY_USE_TENSORRT_RTX", "0") == "0":
        import tensorrt as trt
    else:
        import tensorrt_rtx as trt
    kind = getattr(trt.LayerType, "ATTENTION_INPUT", None)
    for layer in (network.get_layer(index) for index in range(network.num_layers)):
        if kind is not None and layer.type == kind:
            layer.__class__ = trt.IAttentionInputLayer
            layer.attention.decomposable = True
"""


Shapes = dict[str, tuple[int, ...]]


@dataclass(frozen=True)
class PolygraphyCall:
    """Describes the two files of a recorded call."""

    part: str
    graph: str
    """File of the graph in the bundle."""
    rows: int
    position: int
    inputs: str
    """File of the inputs: a list of one feed dict."""
    outputs: str
    """File of the outputs: `polygraphy.comparator.RunResults` of one iteration."""
    absolute: dict[str, float]
    """Largest accepted difference of each output; under ``""`` that of all others."""
    onnxruntime: str
    """Options of ``polygraphy run`` for ONNX Runtime; empty: it has no CPU kernels for the graph's type."""
    cache_shapes: Shapes
    """Of caches that TensorRT updates in place and whose sizes it must therefore know; empty: lowered graphs."""
    shapes: Shapes
    """Of all other inputs whose shapes calls choose."""
    largest_shapes: Shapes
    """Twice as many rows, patches and latents: TensorRT has kernels for ranges, but not for every single size."""
    external: bool
    """Whether weights are in a file of their own."""

    def commands(self, bundle: str, folder: str = "") -> list[str]:
        """Return the lines that compare the graph with the files: with ONNX Runtime, then with TensorRT.

        Args:
            bundle: folder of the bundle, as the lines are to name it.
            folder: of the files; empty: the current one.
        """

        def at(name: str) -> str:
            return shlex.quote(str(Path(folder, name)))

        graph = f"{bundle}/{self.graph}"
        limits = " ".join(f"{name}:{limit:.3g}" if name else f"{limit:.3g}" for name, limit in self.absolute.items())
        files = f"--load-inputs {at(self.inputs)} --load-outputs {at(self.outputs)} --rtol 0 --atol {limits}"
        lines = [f"polygraphy run {graph} {self.onnxruntime} {files}"] if self.onnxruntime else []
        bounds = {"min": self.shapes, "opt": self.shapes, "max": self.largest_shapes}
        ranges = " ".join(f"--trt-{bound}-shapes {_spelled(shapes)}" for bound, shapes in bounds.items())
        if not self.cache_shapes:
            return [*lines, f"polygraphy run {graph} --trt {ranges} {files}"]
        fixed = at(f"{self.name}.onnx")
        weights = f" --save-external-data {self.name}.onnx.data" * self.external
        return [
            *lines,
            f"polygraphy surgeon sanitize {graph} --override-input-shapes {_spelled(self.cache_shapes)} "
            f"--output {fixed}{weights}",
            f"polygraphy run {fixed} --trt --trt-npps {at(ATTENTION_SCRIPT)} {ranges} {files}",
        ]

    @property
    def name(self) -> str:
        """Return what the names of its files begin with: ``decoder.4-rows``."""
        return self.inputs.removesuffix(".inputs.json")


def _spelled(shapes: Shapes) -> str:
    """Return shapes the way Polygraphy reads them: ``ids:[1,8] key_0:[1,1,64,288]``."""
    return " ".join(f"{name}:[{','.join(map(str, shape))}]" for name, shape in shapes.items())


def write_polygraphy_files(
    bundle: Path, folder: Path, prompt: bytes, emulate: Emulate | None = None
) -> list[PolygraphyCall]:
    """Generate on the CPU, and write calls of every graph for Polygraphy; the folder appears complete or not at all.

    Args:
        bundle: folder of the bundle.
        folder: to write.
        prompt: its first `PROMPT_BYTES` bytes are used.
        emulate: see `cpu_reference`.

    Raises:
        ModuleNotFoundError: Polygraphy is not installed.
        DeviceError: a bf16 bundle without ``emulate`` or PyTorch, which holds bf16 for Polygraphy.
        BundleError: the bundle cannot be loaded.
        OSError: the folder cannot be written.
    """
    require_polygraphy()  # before anything that takes time

    manifest = Bundle.open(bundle, check=False).manifest
    if manifest.dtype == "bf16" and importlib.util.find_spec("torch") is None:
        raise DeviceError(
            f"{bundle}: found a bf16 bundle and no PyTorch, in which Polygraphy holds bf16; expected it: "
            "pip install 'fastblt[export]'"
        )
    with cpu_reference(bundle, manifest, PROMPT_BYTES + NEW_BYTES, emulate) as backend:
        recorded = record_calls(backend, prompt[:PROMPT_BYTES], NEW_BYTES)
    found = [_describe(call, manifest) for call in recorded]
    with replacing_folder(folder) as new:
        for files, call in zip(found, recorded, strict=True):
            _write_call(new, files, call, manifest.graphs[call.part])
        if any(call.cache_shapes for call in found):
            (new / ATTENTION_SCRIPT).write_text(_ATTENTION, encoding="utf-8")
        (new / README).write_text(_readme(bundle, manifest, found), encoding="utf-8")
    return found


def _describe(call: RecordedCall, manifest: Manifest) -> PolygraphyCall:
    graph = manifest.graphs[call.part].file
    stem = f"{Path(graph).stem}.{call.rows}-row{'s' * (call.rows > 1)}"
    limits = _limits(call.outputs, tolerance_of(call.part, manifest.dtype))
    spec = manifest.graphs[call.part]
    # Without fusion, ONNX Runtime multiplies with quantized weights as the graph specifies, and as GPUs do.
    exact = " --graph-optimization-level ORT_ENABLE_BASIC" * (call.part in manifest.quantized_parts)
    caches = [tensor for tensor in spec.inputs if tensor.role in ("cache", "pool")] * (manifest.operators == "standard")
    dynamic = [
        tensor for tensor in spec.inputs if tensor not in caches and any(isinstance(size, str) for size in tensor.shape)
    ]
    shapes = {tensor.name: call.inputs[tensor.name].shape for tensor in dynamic}
    largest = {
        tensor.name: tuple(
            2 * found if isinstance(size, str) and size != BATCH and tensor.role not in ("cache", "pool") else found
            for found, size in zip(shapes[tensor.name], tensor.shape, strict=True)
        )
        for tensor in dynamic
    }
    return PolygraphyCall(
        part=call.part,
        graph=graph,
        rows=call.rows,
        position=call.position,
        inputs=f"{stem}.inputs.json",
        outputs=f"{stem}.outputs.json",
        absolute=limits,
        onnxruntime="" if _has_bf16(spec) else f"--onnxrt{exact}",
        cache_shapes={tensor.name: call.inputs[tensor.name].shape for tensor in caches},
        shapes=shapes,
        largest_shapes=largest,
        external=f"{graph}.data" in manifest.files,
    )


def _limits(outputs: Tensors, accepted: Tolerance) -> dict[str, float]:
    """Return what `Tolerance` accepts, as absolute differences: relative to an output's largest magnitude, or to 1."""
    found = {"": accepted.max_error}
    for name, values in outputs.items():
        if values.dtype.kind == "f":
            largest = float(np.abs(values.astype(np.float64)).max())
            if largest > 1:
                found[name] = accepted.max_error * largest
    if "best" in outputs:
        # The likeliest token is a whole number; where two are likely within rounding, any may be returned.
        first, second = np.sort(outputs["logits"], axis=-1)[..., -1], np.sort(outputs["logits"], axis=-1)[..., -2]
        clear = bool((first - second > 2 * found.get("logits", accepted.max_error)).all())
        found["best"] = 0.0 if clear else float(outputs["logits"].shape[-1])
    return found


def _has_bf16(spec: GraphSpec) -> bool:
    return any(tensor.dtype == "bfloat16" for tensor in (*spec.inputs, *spec.outputs))


def _write_call(folder: Path, files: PolygraphyCall, call: RecordedCall, spec: GraphSpec) -> None:
    from polygraphy.comparator import RunResults
    from polygraphy.json import save_json
    from polygraphy.logger import G_LOGGER

    stored = _in_pytorch if _has_bf16(spec) else _as_it_is
    types = {tensor.name: tensor.dtype for tensor in (*spec.inputs, *spec.outputs)}
    inputs, outputs = (
        {name: stored(values, types[name]) for name, values in tensors.items()}
        for tensors in (call.inputs, call.outputs)
    )
    results = RunResults()
    results.add([outputs], runner_name=RUNNER)
    with G_LOGGER.verbosity(G_LOGGER.CRITICAL):
        save_json([inputs], str(folder / files.inputs))
        save_json(results, str(folder / files.outputs))


def _as_it_is(values: NDArray[Any], dtype: str) -> Any:
    return values


def _in_pytorch(values: NDArray[Any], dtype: str) -> Any:
    """Return a tensor of PyTorch: NumPy's file format has no bf16, and Polygraphy wants all tensors of one kind."""
    from polygraphy.datatype import DataType
    from polygraphy.util import array

    if dtype != "bfloat16":
        return array.to_torch(values)
    bits = values.astype(ml_dtypes.bfloat16).view(np.int16)
    return array.view(array.to_torch(bits), DataType.BFLOAT16, bits.shape)


def _readme(bundle: Path, manifest: Manifest, calls: Sequence[PolygraphyCall]) -> str:
    lines: list[str] = []
    add: Callable[[str], None] = lines.append
    add(f"# Calls of {manifest.model} ({manifest.dtype}) for Polygraphy\n")
    add("Inputs from a generation, caches included, and what each graph returned on the CPU. Set BUNDLE to the folder")
    add(f"of the bundle (it was {bundle}) and run these lines here. `PASSED` means that all differences are rounding,")
    add("as `fastblt verify` understands it. docs/deploy.md of fastblt shows how to find the node that differs.\n")
    add("| graph | rows | first position | inputs | outputs |")
    add("| --- | --- | --- | --- | --- |")
    for call in calls:
        add(f"| {call.graph} | {call.rows} | {call.position} | {call.inputs} | {call.outputs} |")
    add("\n```bash")
    for call in calls:
        lines.extend(call.commands('"$BUNDLE"'))
    add("```")
    if any(call.cache_shapes for call in calls):
        add("\n`surgeon sanitize` (of onnx-graphsurgeon) writes the sizes of caches into the graph: TensorRT must know")
        add(f"them where it updates caches in place. {ATTENTION_SCRIPT} is for attention that has no kernel.")
    if any(call.absolute.get("best") for call in calls):
        add("\n`best`, a token, is not compared where two tokens are equally likely within rounding.")
    return "\n".join(lines) + "\n"
