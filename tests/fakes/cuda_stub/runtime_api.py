"""Stands in for ``cuda.bindings.runtime``: its functions over the stub, by ctypes; its numbers are the real module's.

The real functions cannot be used: they contain a copy of NVIDIA's runtime that wants NVIDIA's driver. A process that
calls `install` must have the variables of `fakes.cuda_stub.build.environment`.
"""

from __future__ import annotations

import ctypes
import os
import sys
from ctypes import c_char_p, c_int, c_size_t, c_uint, c_ulonglong, c_void_p
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

from cuda.bindings import runtime as real

#: Results that a function returns besides its status, and the types of its arguments.
FUNCTIONS: dict[str, tuple[tuple[Any, ...], tuple[Any, ...]]] = {
    "cudaDeviceGetAttribute": ((c_int,), (c_int, c_int)),
    "cudaDeviceSynchronize": ((), ()),
    "cudaDriverGetVersion": ((c_int,), ()),
    "cudaEventCreateWithFlags": ((c_void_p,), (c_uint,)),
    "cudaEventDestroy": ((), (c_void_p,)),
    "cudaEventRecord": ((), (c_void_p, c_void_p)),
    "cudaEventSynchronize": ((), (c_void_p,)),
    "cudaFree": ((), (c_void_p,)),
    "cudaFreeHost": ((), (c_void_p,)),
    "cudaGetDeviceCount": ((c_int,), ()),
    "cudaGetLastError": ((), ()),
    "cudaGraphDestroy": ((), (c_void_p,)),
    "cudaGraphExecDestroy": ((), (c_void_p,)),
    "cudaGraphInstantiate": ((c_void_p,), (c_void_p, c_ulonglong)),
    "cudaGraphLaunch": ((), (c_void_p, c_void_p)),
    "cudaHostAlloc": ((c_void_p,), (c_size_t, c_uint)),
    "cudaMalloc": ((c_void_p,), (c_size_t,)),
    "cudaMemGetInfo": ((c_size_t, c_size_t), ()),
    "cudaMemcpy2DAsync": ((), (c_void_p, c_size_t, c_void_p, c_size_t, c_size_t, c_size_t, c_int, c_void_p)),
    "cudaMemcpyAsync": ((), (c_void_p, c_void_p, c_size_t, c_int, c_void_p)),
    "cudaMemset": ((), (c_void_p, c_int, c_size_t)),
    "cudaMemsetAsync": ((), (c_void_p, c_int, c_size_t, c_void_p)),
    "cudaMemset2DAsync": ((), (c_void_p, c_size_t, c_int, c_size_t, c_size_t, c_void_p)),
    "cudaPeekAtLastError": ((), ()),
    "cudaRuntimeGetVersion": ((c_int,), ()),
    "cudaSetDevice": ((), (c_int,)),
    "cudaStreamBeginCapture": ((), (c_void_p, c_int)),
    "cudaStreamCreateWithFlags": ((c_void_p,), (c_uint,)),
    "cudaStreamDestroy": ((), (c_void_p,)),
    "cudaStreamEndCapture": ((c_void_p,), (c_void_p,)),
    "cudaStreamIsCapturing": ((c_int,), (c_void_p,)),
    "cudaStreamSynchronize": ((), (c_void_p,)),
}
#: Every library that ONNX Runtime's CUDA provider is linked against; loaded first, they are the ones that it finds.
_LINKED = ("libcudart.so.13", "libcublasLt.so.13", "libcublas.so.13", "libcurand.so.10", "libcuda.so.1")


class RuntimeApi(ModuleType):
    """Implements what fastblt uses of the module; other names are those of the real one.

    Args:
        library: the stub of the CUDA runtime.
    """

    def __init__(self, library: ctypes.CDLL) -> None:
        super().__init__("cuda.bindings.runtime")
        self.library = library
        self.logs = True
        library.cudaGetErrorString.restype = c_char_p
        for name, (results, arguments) in FUNCTIONS.items():
            setattr(self, name, _function(getattr(library, name), results, arguments))

    def __getattr__(self, name: str) -> Any:
        found = getattr(real, name)
        if callable(found) and not isinstance(found, type):
            raise AttributeError(f"the stub of CUDA lacks {name}: add it to fakes/cuda_stub/runtime_api.py")
        return found

    def cudaGetErrorString(self, error: Any) -> tuple[Any, bytes]:
        return real.cudaError_t.cudaSuccess, self.library.cudaGetErrorString(int(error))

    def cudaGetDeviceProperties(self, device: int) -> tuple[Any, Any]:
        found = ctypes.create_string_buffer(4096)  # more than the structure has; its name comes first
        status = self.library.cudaGetDeviceProperties(found, device)
        return real.cudaError_t(status), SimpleNamespace(name=found.value)

    def note(self, text: str) -> None:
        """Write a line to the log."""
        self.library.stub_note(text.encode())

    def log(self, on: bool) -> None:
        """Switch the log on or off."""
        self.logs = on
        self.library.stub_log_to(on)

    def flush(self) -> None:
        """Write what the log holds back to its file."""
        self.library.stub_flush()


def _function(call: Any, results: tuple[Any, ...], arguments: tuple[Any, ...]) -> Any:
    """Return a function that calls the library and returns status and results, as the real module's do."""
    pointers = [ctypes.POINTER(kind) for kind in results]
    call.restype = c_int
    # C functions take what they fill in first, but for these.
    made_last = call.__name__ in ("cudaStreamEndCapture", "cudaStreamIsCapturing")
    call.argtypes = [*arguments, *pointers] if made_last else [*pointers, *arguments]

    def function(*given: Any) -> tuple[Any, ...]:
        found = [kind() for kind in results]
        references = [ctypes.byref(value) for value in found]
        status = call(*given, *references) if made_last else call(*references, *given)
        return (real.cudaError_t(status), *(value.value or 0 for value in found))

    return function


def install() -> RuntimeApi:
    """Put the stub in the place of ``cuda.bindings.runtime`` and return it."""
    folder = Path(os.environ["CUDA_STUB"])
    libraries = [ctypes.CDLL(str(folder / name), mode=ctypes.RTLD_GLOBAL) for name in _LINKED]
    api = RuntimeApi(libraries[0])
    sys.modules["cuda.bindings.runtime"] = api
    return api
