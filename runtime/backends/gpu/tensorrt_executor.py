"""Runs a graph as an engine of TensorRT or TensorRT-RTX: execution contexts, addresses, CUDA graphs.

A context must not change once its work has been captured, so each shape class has a context of its own. All contexts
share one buffer for activations, because on one stream they never run at the same time.
"""

from __future__ import annotations

import mmap
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fastblt.runtime.backends.gpu.cuda import CapturedGraph, DeviceMemory, Stream
from fastblt.runtime.backends.gpu.executor import Bound, one_sequence_problem, takes_batches
from fastblt.runtime.backends.gpu.kernel_cache import KernelCache, cache_file
from fastblt.runtime.backends.gpu.sliding import visible_slots
from fastblt.runtime.backends.graph_error import graph_error
from fastblt.runtime.bundle.dtypes import TENSOR_TYPES
from fastblt.runtime.bundle.engines import EngineSpec, compiled_spec
from fastblt.runtime.bundle.manifest import BundleError, GraphSpec, TensorSpec
from fastblt.runtime.bundle.tensorrt_library import TensorRtLibrary


class TensorRtExecutor:
    """Holds one engine.

    Args:
        library: TensorRT or TensorRT-RTX.
        path: the engine's file.
        engine: the engine's entry in the manifest of the engines.
        spec: the graph's entry in the bundle's manifest.
        stream: carries the work.
        slots: of each cache that the text needs; an engine with caches of one size has at least as many.

    Raises:
        BundleError: the library refuses the engine, or the engine is not what the manifests describe.
    """

    def __init__(
        self, library: TensorRtLibrary, path: Path, engine: EngineSpec, spec: GraphSpec, stream: Stream, slots: int
    ) -> None:
        self.spec = compiled_spec(spec, appends=engine.appends)
        self.slots = slots if engine.any_slots else engine.slots
        self.pool_slots = self.usual_pool_slots = engine.pool_slots
        most = (profile.shapes["positions"][2] for profile in engine.profiles)
        self.batch_rows = min((rows for together, rows in most if together > 1), default=0)
        self.path = path
        self._trt, self._stream, self._described = library.module, stream, engine
        self.kernels = KernelCache(cache_file(library.version, stream.cuda.sm, engine.sha256))
        self._log = library.new_log()
        self._runtime = library.module.Runtime(self._log)
        self._engine = self._deserialize()
        self._check()
        self.memory_bytes = int(self._engine.device_memory_size_v2)
        """Device memory that a context needs for activations."""
        self._memory: DeviceMemory | None = None

    def _deserialize(self) -> Any:
        """Load the engine from its file, which is mapped: where CPU and GPU share memory, a copy would count twice.

        IStreamReaderV2 reads pieces as well, but TensorRT 10.7 and 10.8 take a first piece for the whole engine.
        """
        try:
            with self.path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as plan:
                engine = self._runtime.deserialize_cuda_engine(plan)
        except (OSError, RuntimeError, TypeError, ValueError) as error:  # ValueError: the file is empty
            raise BundleError(f"{self.path}: cannot be loaded ({error}; {self._log.text()})") from error
        if engine is None:
            raise BundleError(f"{self.path}: cannot be loaded ({self._log.text()})")
        return engine

    def _check(self) -> None:
        """Compare tensors, profiles and aliased pairs with the manifests."""
        engine = self._engine
        names = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
        expected = [tensor.name for tensor in (*self.spec.inputs, *self.spec.outputs)]
        if sorted(names) != sorted(expected):
            raise BundleError(f"{self.path}: found tensors {sorted(names)}, expected {sorted(expected)}")
        for tensor in self.spec.inputs:
            self._check_tensor(tensor, "INPUT")
        for tensor in self.spec.outputs:
            self._check_tensor(tensor, "OUTPUT")
        if engine.num_optimization_profiles != len(self._described.profiles):
            raise BundleError(
                f"{self.path}: found {engine.num_optimization_profiles} profiles, "
                f"expected {len(self._described.profiles)}"
            )
        for index, profile in enumerate(self._described.profiles):
            for name, expected_shapes in profile.shapes.items():
                shapes = [tuple(shape) for shape in engine.get_tensor_profile_shape(name, index)]
                if shapes != [tuple(shape) for shape in expected_shapes]:
                    raise BundleError(
                        f"{self.path}: profile {profile.name}: input {name}: found {shapes}, "
                        f"expected {[tuple(shape) for shape in expected_shapes]} (least, usual, largest)"
                    )
        for update, cache in self._described.aliases.items():
            aliased = engine.get_aliased_input_tensor(update)
            if aliased != cache:
                raise BundleError(
                    f"{self.path}: {update}: found an update of {aliased}, expected one of {cache} in place"
                )

    def _check_tensor(self, tensor: TensorSpec, mode: str) -> None:
        """Compare direction, type and shape of a tensor with the manifests.

        A size is -1 where calls choose it, and where the library could not derive it; whatever a call is bound to is
        compared with the sizes of that call, see `_check_bound`.
        """
        engine, trt, where = self._engine, self._trt, f"{self.path}: tensor {tensor.name}"
        if engine.get_tensor_mode(tensor.name) != getattr(trt.TensorIOMode, mode):
            raise BundleError(f"{where}: found no {mode.lower()}, expected one")
        kinds = {getattr(trt, name): name for name in TENSOR_TYPES}
        kind = kinds.get(engine.get_tensor_dtype(tensor.name))
        if kind != tensor.dtype:
            raise BundleError(f"{where}: found type {kind}, expected {tensor.dtype}")
        fixed = {"slots": self.slots, "pool_slots": self.pool_slots}
        sizes = [fixed.get(str(size), size) for size in tensor.shape]
        found = list(engine.get_tensor_shape(tensor.name))
        right = all(one in (-1, other) or isinstance(other, str) for one, other in zip(found, sizes, strict=False))
        if len(found) != len(sizes) or not right:
            raise BundleError(f"{where}: found shape {found}, expected {sizes}")

    def share_memory(self, memory: DeviceMemory) -> None:
        """Set the memory for the activations of every context, at least ``memory_bytes``."""
        self._memory = memory

    def visible_slots(self, live: int) -> int:
        """Implement `Executor.visible_slots`: all of them where an engine's caches have one size."""
        return visible_slots(live, self.slots) if self._described.any_slots else self.slots

    def accepts(self, size: str, number: int) -> bool:
        """Implement `Executor.accepts`: the number has to be inside of every profile."""
        axes = {tensor.name: tensor.shape.index(size) for tensor in self.spec.inputs if size in tensor.shape}
        return all(
            profile.shapes[name][0][axis] <= number <= profile.shapes[name][2][axis]
            for profile in self._described.profiles
            for name, axis in axes.items()
        )

    def batch_problem(self, together: int) -> str | None:
        """Implement `Executor.batch_problem`: every number has to be inside of a profile."""
        if not takes_batches(self.spec):
            return one_sequence_problem(self.path)
        ranges = [profile.shapes["positions"] for profile in self._described.profiles]
        missing = [n for n in range(1, together + 1) if not any(low[0] <= n <= high[0] for low, _, high in ranges)]
        if not missing:
            return None
        return (
            f"{self.path}: found an engine for calls of at most {min(missing) - 1} sequences, expected {together}: "
            f"build it again with fastblt compile --sequences {together}"
        )

    def bind(self, tensors: Mapping[str, Bound]) -> TensorRtLaunch:
        """Implement `Executor.bind` with a context of its own."""
        context = self._new_context()
        if context is None:
            raise BundleError(f"{self.path}: no context can be made ({self._log.text()})")
        assert self._memory is not None, "share_memory comes first"
        context.set_device_memory(self._memory.address, self._memory.size)
        profile = self._described.profile_of({name: bound.shape for name, bound in tensors.items()})
        if profile is None:
            shapes = {name: bound.shape for name, bound in tensors.items() if self.spec.input(name)}
            raise BundleError(f"{self.path}: found input shapes {shapes}, expected those of one of its profiles")
        if not context.set_optimization_profile_async(profile, self._stream.handle):
            raise BundleError(f"{self.path}: profile {profile} cannot be chosen ({self._log.text()})")
        for name, bound in tensors.items():
            if self.spec.input(name) and not context.set_input_shape(name, bound.shape):
                raise BundleError(f"{self.path}: input {name}: shape {bound.shape} is refused ({self._log.text()})")
            if not context.set_tensor_address(name, bound.address):
                raise BundleError(f"{self.path}: tensor {name}: its address is refused ({self._log.text()})")
        self._check_bound(context, tensors)
        return TensorRtLaunch(self, context, self._stream)

    def _new_context(self) -> Any:
        """Return a context that uses our memory; with TensorRT-RTX, it compiles kernels for its shapes immediately.

        Otherwise it would compile them in the background, and a CUDA graph would keep the generic kernels of its
        capture.
        """
        trt = self._trt
        strategy = trt.ExecutionContextAllocationStrategy.USER_MANAGED
        if not hasattr(trt, "DynamicShapesKernelSpecializationStrategy"):
            return self._engine.create_execution_context(strategy)
        config = self._engine.create_runtime_config()
        config.set_execution_context_allocation_strategy(strategy)
        config.dynamic_shapes_kernel_specialization_strategy = trt.DynamicShapesKernelSpecializationStrategy.EAGER
        self.kernels.attach(config)
        return self._engine.create_execution_context(config)

    def _check_bound(self, context: Any, tensors: Mapping[str, Bound]) -> None:
        """Compare the shapes of a context with those of the tensors that are bound to it."""
        for tensor in (*self.spec.inputs, *self.spec.outputs):
            if tensor.name not in tensors:
                raise BundleError(f"{self.path}: tensor {tensor.name}: nothing is bound to it")
        missing = context.infer_shapes()
        if missing:
            raise BundleError(f"{self.path}: found no shape or address of {', '.join(missing)}")
        for tensor in self.spec.outputs:
            found, expected = tuple(context.get_tensor_shape(tensor.name)), tensors[tensor.name].shape
            if found != expected:
                raise BundleError(f"{self.path}: output {tensor.name}: found shape {found}, expected {expected}")

    def execute(self, context: Any) -> None:
        """Queue a context once.

        Raises:
            GraphError: TensorRT refuses; the error contains its own message.
        """
        if not context.execute_async_v3(self._stream.handle):
            raise graph_error(self.path, self._log.text())


class TensorRtLaunch:
    """Runs a context with everything bound: directly the first time, then as a CUDA graph where it can be captured."""

    def __init__(self, executor: TensorRtExecutor, context: Any, stream: Stream) -> None:
        self._executor, self._context, self._stream = executor, context, stream
        self._graph: CapturedGraph | None = None
        self._warm = False
        self._capturable = True

    def run(self) -> None:
        """Implement `Launch.run`."""
        if self._graph is None and self._warm and self._capturable:
            self._capture()
        if self._graph is not None:
            self._stream.launch(self._graph)
        else:
            self._executor.execute(self._context)
            if not self._warm:
                self._executor.kernels.keep()
            self._warm = True

    def recordable(self) -> bool:
        """Implement `Launch.recordable`."""
        if not (self._warm and self._capturable):
            return False
        context = self._context
        return not hasattr(context, "is_stream_capturable") or bool(context.is_stream_capturable(self._stream.handle))

    def record(self) -> None:
        """Implement `Launch.record`."""
        self._executor.execute(self._context)

    def _capture(self) -> None:
        """Capture the context's work as a CUDA graph, or note that this cannot be done."""
        self._graph = self._stream.capture(self.record) if self.recordable() else None
        self._capturable = self._graph is not None
