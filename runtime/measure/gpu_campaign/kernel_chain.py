"""Makes the smallest work that is like a model's: a chain of tiny kernels that ONNX Runtime records and replays."""

from __future__ import annotations

import importlib
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fastblt.runtime.backends.gpu.cuda import DeviceMemory, Stream
from fastblt.runtime.backends.gpu.executor import Bound
from fastblt.runtime.backends.gpu.onnxruntime_executor import OnnxRuntimeExecutor
from fastblt.runtime.backends.providers import choose_provider, provider_options
from fastblt.runtime.bundle.manifest import GraphSpec, TensorSpec

#: Numbers that each kernel works on.
_SIZE = 64


def kernel_chain(stream: Stream, length: int) -> Callable[[], object]:
    """Return what queues a chain of kernels, recorded as one CUDA graph.

    Args:
        stream: carries the work.
        length: number of kernels, each of which reads what the one before it wrote.

    Raises:
        ModuleNotFoundError: onnx is not installed.
        ProviderError: ONNX Runtime's CUDA provider does not work here.
        RuntimeError: the chain cannot be recorded.
    """
    choose_provider("cuda")
    ort: Any = importlib.import_module("onnxruntime")
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL  # the chain stays as long as it is
    memory = DeviceMemory(stream.cuda, 8 * _SIZE)
    shape = (_SIZE,)
    spec = GraphSpec(
        "chain.onnx", (TensorSpec("x", "float32", shape, ""),), (TensorSpec("y", "float32", shape, ""),), 0
    )
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / spec.file
        path.write_bytes(_model(length))
        executor = OnnxRuntimeExecutor(
            ort, path, spec, stream, 0, 0, 0, provider_options("cuda", Path(folder)), options
        )
    launch = executor.bind({"x": Bound(shape, memory.address), "y": Bound(shape, memory.address + 4 * _SIZE)})
    for _ in range(3):  # the second is recorded
        launch.run()
    stream.synchronize()
    if not executor.records:
        raise RuntimeError(f"found that ONNX Runtime cannot record a chain of {length} kernels, expected a CUDA graph")

    def run(kept: DeviceMemory = memory) -> None:
        launch.run()

    return run


def _model(length: int) -> bytes:
    """Return an ONNX model, y = sqrt(...sqrt(x)), float32 [64]."""
    helper: Any = importlib.import_module("onnx.helper")
    kind = importlib.import_module("onnx").TensorProto.FLOAT
    names = ["x", *(f"t{index}" for index in range(1, length)), "y"]
    nodes = [helper.make_node("Sqrt", [names[index]], [names[index + 1]]) for index in range(length)]
    ends = ([helper.make_tensor_value_info(name, kind, [_SIZE])] for name in ("x", "y"))
    graph = helper.make_graph(nodes, "chain", *ends)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    return bytes(model.SerializeToString())
