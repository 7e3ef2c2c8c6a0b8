"""Stands in for ``onnxruntime``: its CUDA provider runs on the CPU, on the stream of a `FakeCuda`, by CUDA's rules.

A call is queued on the user's stream. The memory and shapes of all later calls under a graph number must be those of
the first, as recorded work would use those whatever is bound.
"""

from __future__ import annotations

import ctypes
import math
from typing import Any

import ml_dtypes
import numpy as np
import onnxruntime as ort
from fakes.cuda import FakeCuda

_TYPES: dict[int, Any] = {1: np.float32, 7: np.int64, 10: np.float16, 16: ml_dtypes.bfloat16}
Bindings = dict[str, tuple[int, tuple[int, ...], int]]


class FakeOnnxRuntime:
    """Implements what fastblt uses of the module.

    Args:
        cuda: runs the work.
        refuse: what fails where CUDA graphs are enabled: ``session`` or ``run``; nothing if empty.
    """

    def __init__(self, cuda: FakeCuda, refuse: str = "") -> None:
        self.cuda = cuda
        self.refuse = refuse
        self.sessions: list[InferenceSession] = []

    @staticmethod
    def SessionOptions() -> Any:
        """Return ONNX Runtime's, with one thread: more would only wait for one another in models this small."""
        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        return options

    def get_available_providers(self) -> list[str]:
        return ["CUDAExecutionProvider", "CPUExecutionProvider"]

    class RunOptions:
        def __init__(self) -> None:
            self.entries: dict[str, str] = {}

        def add_run_config_entry(self, key: str, value: str) -> None:
            self.entries[key] = value

    def InferenceSession(self, path: str, options: Any, providers: list[tuple[str, dict[str, str]]]) -> Any:
        session = InferenceSession(self, path, options, providers)
        self.sessions.append(session)
        return session


class IoBinding:
    def __init__(self) -> None:
        self.inputs: Bindings = {}
        self.outputs: Bindings = {}

    def bind_input(self, name: str, device: str, index: int, kind: int, shape: Any, address: int) -> None:
        assert (device, index) == ("cuda", 0)
        self.inputs[name] = (kind, tuple(shape), address)

    def bind_output(self, name: str, device: str, index: int, kind: int, shape: Any, address: int) -> None:
        assert (device, index) == ("cuda", 0)
        self.outputs[name] = (kind, tuple(shape), address)


class InferenceSession:
    def __init__(
        self, module: FakeOnnxRuntime, path: str, options: Any, providers: list[tuple[str, dict[str, str]]]
    ) -> None:
        name, settings = providers[0]
        self.name, self.cuda, self.refuse = name, module.cuda, module.refuse
        self.records = settings["enable_cuda_graph"] == "1"
        self.stream = int(settings["user_compute_stream"])
        assert self.stream in self.cuda.streams
        if self.records and self.refuse == "session":
            raise RuntimeError("not all nodes are on CUDA")
        self.session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        self.recorded: dict[str, tuple[Bindings, Bindings]] = {}

    def get_providers(self) -> list[str]:
        return [self.name]

    def get_inputs(self) -> list[Any]:
        return list(self.session.get_inputs())

    def get_outputs(self) -> list[Any]:
        return list(self.session.get_outputs())

    def io_binding(self) -> IoBinding:
        return IoBinding()

    def run_with_iobinding(self, io: IoBinding, options: FakeOnnxRuntime.RunOptions) -> None:
        assert options.entries["disable_synchronize_execution_providers"] == "1"
        number = options.entries["gpu_graph_id"]
        bound = dict(io.inputs), dict(io.outputs)
        if number != "-1":
            assert self.records
            if self.refuse == "run":
                # What fails while it is recorded leaves the stream captured.
                self.cuda.cudaStreamBeginCapture(self.stream, 1)
                raise RuntimeError("cannot be captured")
            assert self.recorded.setdefault(number, bound) == bound, "memory of recorded work has moved"
        self.cuda.enqueue(self.stream, lambda: self._execute(*bound))

    def _execute(self, inputs: Bindings, outputs: Bindings) -> None:
        feed = {name: self._view(*bound).copy() for name, bound in inputs.items()}
        for name, value in zip(outputs, self.session.run(list(outputs), feed), strict=True):
            self._view(*outputs[name])[...] = value

    def _view(self, kind: int, shape: tuple[int, ...], address: int) -> np.ndarray:
        dtype = np.dtype(_TYPES[kind])
        size = math.prod(shape) * dtype.itemsize
        self.cuda.check(address, size, "device")
        raw = (ctypes.c_uint8 * size).from_address(address)
        return np.frombuffer(raw, dtype=dtype).reshape(shape)
