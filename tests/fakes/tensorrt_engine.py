"""Stands in for TensorRT's engines and contexts: runs a graph with ONNX Runtime, by TensorRT's rules.

A context runs only if every address is set, every shape is inside the chosen profile, activations have memory, and a
cache's update has the address of the cache. It may be captured only after it has run, and must not change once it has
been captured.
"""

from __future__ import annotations

import ctypes
import io
import json
import math
import tempfile
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import onnxruntime as ort
from fakes.cuda import FakeCuda
from fakes.tensorrt_values import (
    MAGIC,
    TYPES,
    DataType,
    DynamicShapesKernelSpecializationStrategy,
    ExecutionContextAllocationStrategy,
    IRuntimeConfig,
    Severity,
    TensorIOMode,
)
from onnx import TensorProto

from fastblt.export.widening import widen

MEMORY_BYTES = 4096


class ICudaEngine:
    """Holds a graph with its profiles, which runs on a `FakeCuda`."""

    def __init__(self, plan: bytes, cuda: FakeCuda, log: Any) -> None:
        lines = io.BytesIO(plan[len(MAGIC) :])
        self.header = json.loads(lines.readline())
        self.cuda, self.log = cuda, log
        model = onnx.load_from_string(lines.read())
        self._inputs = {value.name: value for value in model.graph.input}
        self._outputs = {value.name: value for value in model.graph.output}
        self.tensors = self._inputs | self._outputs
        self.sizes = {name: _sizes(value) for name, value in self.tensors.items()}
        """The sizes of every tensor; those that calls choose are symbols."""
        self.dtypes = {name: TYPES[value.type.tensor_type.elem_type] for name, value in self.tensors.items()}
        self.numpy_dtypes = {name: _numpy(kind) for name, kind in self.dtypes.items()}
        options = ort.SessionOptions()
        options.log_severity_level = 3
        options.intra_op_num_threads = 1
        runnable = _without_bf16(model).SerializeToString()
        self.session = ort.InferenceSession(runnable, options, providers=["CPUExecutionProvider"])
        self.device_memory_size_v2 = MEMORY_BYTES

    @property
    def num_io_tensors(self) -> int:
        return len(self.tensors)

    @property
    def num_optimization_profiles(self) -> int:
        return len(self.header["profiles"])

    def get_tensor_name(self, index: int) -> str:
        return list(self.tensors)[index]

    def get_tensor_dtype(self, name: str) -> DataType:
        return self.dtypes[name]

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        """Return the shape of a tensor: -1 where calls choose a size, or where it cannot be derived."""
        return tuple(size if isinstance(size, int) else -1 for size in self.sizes[name])

    def get_tensor_mode(self, name: str) -> TensorIOMode:
        inputs = {*self._inputs, *self.header.get("inputs", [])}
        return TensorIOMode.INPUT if name in inputs else TensorIOMode.OUTPUT

    def get_tensor_profile_shape(self, name: str, profile_index: int) -> list[tuple[int, ...]]:
        """Return the least, usual and largest shape of an input in a profile."""
        return [tuple(shape) for shape in self.header["profiles"][profile_index][name]]

    def get_aliased_input_tensor(self, name: str) -> str | None:
        found: str | None = self.header["aliases"].get(name)
        return found

    def create_runtime_config(self) -> IRuntimeConfig:
        return IRuntimeConfig()

    def create_execution_context(self, runtime_config: IRuntimeConfig) -> IExecutionContext:
        assert runtime_config.strategy is ExecutionContextAllocationStrategy.USER_MANAGED
        assert runtime_config.cache is not None
        return IExecutionContext(self, runtime_config)

    def is_input(self, name: str) -> bool:
        return name in self._inputs


class IExecutionContext:
    def __init__(self, engine: ICudaEngine, config: IRuntimeConfig) -> None:
        self.engine = engine
        self._config = config
        self._addresses: dict[str, int] = {}
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._all_shapes: dict[str, tuple[int, ...]] | None = None
        self._profile: dict[str, list[list[int]]] | None = None
        self._memory = 0
        self._warm = self._captured = False

    def _change(self) -> None:
        assert not self._captured, "a context that has been captured must not change"
        self._warm, self._all_shapes = False, None

    def set_device_memory(self, memory: int, size: int) -> None:
        self._change()
        assert memory % 256 == 0
        assert size >= self.engine.device_memory_size_v2
        self.engine.cuda.check(memory, size, "device")
        self._memory = memory

    def set_optimization_profile_async(self, profile_index: int, stream_handle: int) -> bool:
        self._change()
        self._profile = self.engine.header["profiles"][profile_index]
        self._shapes.clear()
        return True

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        self._change()
        assert self._profile is not None, "no profile has been chosen"
        sizes = self.engine.sizes[name]
        inside = len(sizes) == len(shape) and all(
            isinstance(known, str) or known == size for known, size in zip(sizes, shape, strict=True)
        )
        if name in self._profile:
            least, _, most = self._profile[name]
            inside &= all(low <= size <= high for low, size, high in zip(least, shape, most, strict=True))
        if inside:
            self._shapes[name] = tuple(shape)
        else:
            self.engine.log.log(Severity.ERROR, f"{name}: {shape} is outside the profile")
        return inside

    def set_tensor_address(self, name: str, memory: int) -> bool:
        self._change()
        assert memory % 256 == 0, f"{name}: an address that is not aligned"
        self._addresses[name] = memory
        return name in self.engine.tensors

    def infer_shapes(self) -> list[str]:
        return [name for name in self.engine.tensors if self.engine.is_input(name) and name not in self._shapes]

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        """Return the shape of a tensor; the symbols of an output have the values that they have in the inputs."""
        return self._shapes[name] if name in self._shapes else self._resolved(name)

    def _resolved(self, name: str) -> tuple[int, ...]:
        sizes, symbols = self.engine.sizes, dict[int | str, int]()
        for known, shape in self._shapes.items():
            symbols.update(zip(sizes[known], shape, strict=True))
        if "latents" not in symbols:  # the global transformer's, of all sequences
            symbols["latents"] = symbols.get("batch", 1) * symbols.get("patches", 1)
        return tuple(size if isinstance(size, int) else symbols[size] for size in sizes[name])

    def is_stream_capturable(self, stream: int) -> bool:
        eager = DynamicShapesKernelSpecializationStrategy.EAGER
        settled = self._config.dynamic_shapes_kernel_specialization_strategy is eager
        return bool(self._warm and settled and self.engine.header["capturable"])

    def execute_async_v3(self, stream_handle: int) -> bool:
        engine, cuda = self.engine, self.engine.cuda
        missing = sorted(set(engine.tensors) - set(self._addresses))
        problem = (
            f"no address of {missing}"
            if missing
            else "no memory for activations"
            if not self._memory
            else "no profile"
            if self._profile is None
            else "the default stream"
            if stream_handle == 0
            else None
        )
        for update, cache in engine.header["aliases"].items():
            if not problem and self._addresses[update] != self._addresses[cache]:
                problem = f"{update} and {cache} have different addresses"
        if problem:
            engine.log.log(Severity.ERROR, problem)
            return False
        if cuda.is_capturing(stream_handle):
            if not self._warm:
                cuda.spoil(stream_handle)
                return False
            self._captured = True
        if not self._warm and self._config.cache is not None:
            self._config.cache.kernels += b"+"
        self._warm = True
        addresses = dict(self._addresses)
        if self._all_shapes is None:
            self._all_shapes = {name: self.get_tensor_shape(name) for name in engine.tensors}
        shapes = self._all_shapes
        cuda.enqueue(stream_handle, lambda: _execute(engine, addresses, shapes))
        return True


def _execute(engine: ICudaEngine, addresses: dict[str, int], shapes: dict[str, tuple[int, ...]]) -> None:
    views = {}
    for name, address in addresses.items():
        dtype = engine.numpy_dtypes[name]
        size = math.prod(shapes[name]) * dtype.itemsize
        engine.cuda.check(address, size, "device")
        raw = (ctypes.c_uint8 * size).from_address(address)
        views[name] = np.frombuffer(raw, dtype=np.uint8).view(dtype).reshape(shapes[name])
    feed = {name: _wide(view.copy()) for name, view in views.items() if engine.is_input(name)}
    outputs = [name for name in views if not engine.is_input(name)]
    for name, value in zip(outputs, engine.session.run(outputs, feed), strict=True):
        assert value.shape == shapes[name]
        views[name][...] = value


def _sizes(value: onnx.ValueInfoProto) -> tuple[int | str, ...]:
    dims = value.type.tensor_type.shape.dim
    return tuple(dim.dim_value if dim.HasField("dim_value") else dim.dim_param for dim in dims)


def _without_bf16(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return a graph that the CPU can run: bf16 values become fp32 values that are rounded to bf16."""
    kinds = {value.type.tensor_type.elem_type for value in model.graph.input}
    if TensorProto.BFLOAT16 not in kinds:
        return model
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder) / "source.onnx", Path(folder) / "target.onnx"
        onnx.save(model, source)
        widen(source, target, round_values=True)
        return onnx.load(target)


def _wide(array: np.ndarray) -> np.ndarray:
    return array.astype(np.float32) if array.dtype == ml_dtypes.bfloat16 else array


def _numpy(kind: DataType) -> np.dtype[Any]:
    return np.dtype(ml_dtypes.bfloat16) if kind is DataType.bfloat16 else np.dtype(kind.value)
