"""Wraps the few calls of the CUDA runtime that are needed, through cuda-python (``cuda.bindings.runtime``).

One stream carries everything: uploads, graphs, copies, downloads. The host writes to page-locked memory, which an
upload reads some time later, so each upload has memory of its own until the host has waited for the stream.
"""

from __future__ import annotations

import ctypes
import importlib
import logging
import os
import weakref
from collections.abc import Callable
from typing import Any, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from fastblt.runtime.driver import bindings_for, bindings_problem, driver_cuda
from fastblt.runtime.machine import package_version

#: Tensors in a block of host memory, by name.
Views = dict[str, NDArray[Any]]
#: Address and size of a piece of device memory, in bytes.
Piece = tuple[int, int]
#: What the host writes to in a block.
V = TypeVar("V")

logger = logging.getLogger(__name__)

#: Blocks of one `UploadBlocks` that may be on their way to the device; more make the host wait.
_MOST_BLOCKS = 64
#: Most bytes that rows of one copy may be apart; the driver refuses more.
MOST_PITCH = 2**31 - 1
#: Addresses that graphs are bound to are multiples of this, as device allocations are.
ALIGNMENT = 256


class CudaError(RuntimeError):
    """Reports a call of the CUDA runtime that failed, or a machine without a usable GPU."""


def aligned(size: int) -> int:
    """Return ``size`` rounded up to a multiple of `ALIGNMENT`."""
    return -(-size // ALIGNMENT) * ALIGNMENT


def load_api() -> Any:
    """Import the module ``cuda.bindings.runtime``.

    Raises:
        CudaError: it is not installed.
    """
    try:
        return importlib.import_module("cuda.bindings.runtime")
    except ImportError as error:
        driver = driver_cuda()
        remedy = bindings_for(driver) if driver else "pip install 'fastblt[gpu]'"
        raise CudaError(f"cuda: found no usable cuda-python ({error}), expected it: {remedy}") from error


class Cuda:
    """Makes the runtime's calls on one device and turns their errors into `CudaError`.

    Args:
        api: ``cuda.bindings.runtime``, or a stand-in.
        device: ordinal of the GPU.

    Raises:
        CudaError: there is no such GPU, or the driver is missing or too old.
    """

    def __init__(self, api: Any, device: int = 0) -> None:
        self.api = api
        self.device = device
        try:
            count = self("cudaGetDeviceCount")
        except CudaError as error:
            driver, bindings = driver_cuda(), package_version("cuda-bindings")
            problem = bindings_problem(driver, bindings, str(error)) if driver and bindings else None
            if problem is not None and problem.remedy:
                raise CudaError(f"cuda: {problem}") from error
            raise CudaError(f"cuda: found no usable GPU ({error}), expected one and its driver") from error
        if not 0 <= device < count:
            raise CudaError(f"cuda: found {count} GPUs, expected one with the number {device}")
        self("cudaSetDevice", device)
        attribute = api.cudaDeviceAttr
        major = self("cudaDeviceGetAttribute", attribute.cudaDevAttrComputeCapabilityMajor, device)
        minor = self("cudaDeviceGetAttribute", attribute.cudaDevAttrComputeCapabilityMinor, device)
        self.sm = 10 * int(major) + int(minor)
        """Compute capability, e.g. 89."""

    def __call__(self, name: str, *arguments: Any) -> Any:
        """Call a function of the runtime and return what it returns besides its status.

        Raises:
            CudaError: the status is not success.
        """
        found = getattr(self.api, name)(*arguments)
        if found[0] != 0:
            raise CudaError(f"{name}: {self._describe(found[0])}")
        return found[1] if len(found) == 2 else found[1:]

    def available_memory(self) -> int:
        """Return the bytes of device memory that can be allocated.

        That is what is free; all memory where the GPU shares it with the host, which frees its caches when needed, and
        on Windows, where the driver moves memory out.
        """
        free, total = self("cudaMemGetInfo")
        shared = self("cudaDeviceGetAttribute", self.api.cudaDeviceAttr.cudaDevAttrIntegrated, self.device)
        return int(total if shared or os.name == "nt" else free)

    def _describe(self, status: Any) -> str:
        _, text = self.api.cudaGetErrorString(status)
        return text.decode() if isinstance(text, bytes) else str(text)


class DeviceMemory:
    """Holds zeroed memory on the device, which is freed with the object.

    Zeros matter: a slot that a mask hides still meets a softmax weight of 0, and 0 * NaN would be NaN.
    """

    def __init__(self, cuda: Cuda, size: int) -> None:
        self.size = max(size, ALIGNMENT)
        try:
            self.address = int(cuda("cudaMalloc", self.size))
        except CudaError as error:
            free, _ = cuda("cudaMemGetInfo")
            raise CudaError(
                f"memory: found {free / 1e9:,.2f} GB free on the GPU, expected {self.size / 1e9:,.2f} GB ({error}): "
                "end other programs on it, ask for fewer bytes, or make the model smaller with fastblt quantize"
            ) from error
        weakref.finalize(self, cuda.api.cudaFree, self.address)
        # The zeros go to the default stream, which ours does not wait for.
        cuda("cudaMemset", self.address, 0, self.size)
        cuda("cudaDeviceSynchronize")


class PinnedMemory:
    """Holds page-locked memory of the host, which is freed with the object."""

    def __init__(self, cuda: Cuda, size: int) -> None:
        self.size = size
        self.address = int(cuda("cudaHostAlloc", size, cuda.api.cudaHostAllocDefault))
        weakref.finalize(self, cuda.api.cudaFreeHost, self.address)
        raw = (ctypes.c_uint8 * size).from_address(self.address)
        self.bytes: NDArray[np.uint8] = np.ctypeslib.as_array(raw)
        """The memory as uint8 [size]."""


class UploadBlocks(Generic[V]):
    """Lends page-locked blocks of one size for uploads; none is lent again before the host has waited for the stream.

    Args:
        stream: carries the uploads.
        size: of a block, in bytes.
        views: makes what the host writes to from a block's memory, uint8 [size]; called once per block.
    """

    def __init__(self, stream: Stream, size: int, views: Callable[[NDArray[np.uint8]], V]) -> None:
        self._stream, self._size, self._views = stream, max(size, 1), views
        self._blocks: list[tuple[PinnedMemory, V]] = []
        self._next = 0
        self._waits = -1

    def take(self) -> tuple[int, V]:
        """Return the address and the views of a block that no upload reads any more."""
        if self._next == _MOST_BLOCKS:
            self._stream.synchronize()
        if self._waits != self._stream.synchronizations:
            self._waits, self._next = self._stream.synchronizations, 0
        if self._next == len(self._blocks):
            memory = PinnedMemory(self._stream.cuda, self._size)
            self._blocks.append((memory, self._views(memory.bytes)))
        memory, views = self._blocks[self._next]
        self._next += 1
        return memory.address, views


class CapturedGraph:
    """Holds recorded work that can be launched again; it is destroyed with the object."""

    def __init__(self, cuda: Cuda, graph: Any) -> None:
        self.executable = cuda("cudaGraphInstantiate", graph, 0)
        weakref.finalize(self, cuda.api.cudaGraphExecDestroy, self.executable)


class Stream:
    """Queues work in order; only `synchronize`, `read` and `write` make the host wait."""

    def __init__(self, cuda: Cuda) -> None:
        self.cuda = cuda
        self._stream = cuda("cudaStreamCreateWithFlags", cuda.api.cudaStreamNonBlocking)
        weakref.finalize(self, cuda.api.cudaStreamDestroy, self._stream)
        self.handle = int(self._stream)
        self.synchronizations = 0
        """Number of times that the host has waited."""
        kinds = cuda.api.cudaMemcpyKind
        self._to_device, self._to_host = kinds.cudaMemcpyHostToDevice, kinds.cudaMemcpyDeviceToHost
        self._on_device = kinds.cudaMemcpyDeviceToDevice

    def upload(self, target: int, source: int, size: int) -> None:
        """Queue a copy from page-locked memory to the device."""
        self.cuda("cudaMemcpyAsync", target, source, size, self._to_device, self._stream)

    def download(self, target: int, source: int, size: int) -> None:
        """Queue a copy from the device to page-locked memory; read it after `synchronize`."""
        self.cuda("cudaMemcpyAsync", target, source, size, self._to_host, self._stream)

    def copy(self, target: int, source: int, size: int) -> None:
        """Queue a copy on the device; source and target must not overlap."""
        self.cuda("cudaMemcpyAsync", target, source, size, self._on_device, self._stream)

    def copy_rows(self, target: int, target_pitch: int, source: int, source_pitch: int, width: int, rows: int) -> None:
        """Queue a copy on the device of ``rows`` rows of ``width`` bytes each.

        Rows begin ``target_pitch`` bytes apart at the target and ``source_pitch`` bytes apart at the source.
        """
        if max(target_pitch, source_pitch) > MOST_PITCH:
            for row in range(rows):
                self.copy(target + row * target_pitch, source + row * source_pitch, width)
            return
        self.cuda(
            "cudaMemcpy2DAsync", target, target_pitch, source, source_pitch, width, rows, self._on_device, self._stream
        )

    def zero_rows(self, target: int, pitch: int, width: int, rows: int) -> None:
        """Queue that ``rows`` rows of ``width`` bytes, which begin ``pitch`` bytes apart, become zero."""
        if rows == 1 or pitch > MOST_PITCH:
            for row in range(rows):
                self.cuda("cudaMemsetAsync", target + row * pitch, 0, width, self._stream)
        else:
            self.cuda("cudaMemset2DAsync", target, pitch, 0, width, rows, self._stream)

    def clear(self, memory: DeviceMemory) -> None:
        """Queue that memory becomes zero."""
        self.zero_rows(memory.address, memory.size, memory.size, 1)

    def synchronize(self) -> None:
        """Wait for everything that is queued."""
        self.cuda("cudaStreamSynchronize", self._stream)
        self.synchronizations += 1

    def works(self) -> bool:
        """Wait for everything that is queued, and return whether the device still answers after an error."""
        self.cuda.api.cudaGetLastError()  # clears an error of a single call; those of a lost device stay
        try:
            self.synchronize()
        except CudaError:
            return False
        return True

    def read(self, *pieces: Piece) -> NDArray[np.uint8]:
        """Wait once, and return a copy of pieces of device memory one after the other, uint8 [bytes]."""
        pinned = PinnedMemory(self.cuda, sum(size for _, size in pieces))
        done = 0
        for address, size in pieces:
            self.download(pinned.address + done, address, size)
            done += size
        self.synchronize()
        return pinned.bytes.copy()

    def write(self, data: NDArray[np.uint8], *pieces: Piece) -> None:
        """Copy uint8 [bytes] to pieces of device memory one after the other, and wait once."""
        pinned = PinnedMemory(self.cuda, data.size)
        pinned.bytes[:] = data
        done = 0
        for address, size in pieces:
            self.upload(address, pinned.address + done, size)
            done += size
        self.synchronize()

    def capture(self, work: Callable[[], None]) -> CapturedGraph | None:
        """Record what ``work`` queues instead of running it; return None where it cannot be recorded."""
        mode = self.cuda.api.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        self.cuda("cudaStreamBeginCapture", self._stream, mode)
        failure: BaseException | None = None
        try:
            work()
        except BaseException as error:  # whatever is raised, the capture must end
            failure = error
        try:
            graph = self.cuda("cudaStreamEndCapture", self._stream)
            captured = CapturedGraph(self.cuda, graph) if failure is None else None
            self.cuda("cudaGraphDestroy", graph)
        except CudaError as error:
            # Clears the error that a failed capture leaves behind.
            self.cuda.api.cudaGetLastError()
            failure, captured = failure or error, None
            self.stop_capturing()
        if failure is not None and not isinstance(failure, Exception):
            raise failure
        if failure is not None:
            logger.warning("not captured as a CUDA graph, run without: %s", failure)
        return captured

    def stop_capturing(self) -> None:
        """End a capture that an error has left open: whatever is queued during one fails or does not run.

        Raises:
            CudaError: it cannot be ended, and the stream cannot be used again.
        """
        if not self._captures():
            return
        self.cuda.api.cudaStreamEndCapture(self._stream)
        self.cuda.api.cudaGetLastError()
        if self._captures():
            raise CudaError("cudaStreamEndCapture: found a stream that is still captured, expected the capture to end")

    def _captures(self) -> bool:
        """Return whether what is queued is recorded."""
        return int(self.cuda("cudaStreamIsCapturing", self._stream)) != 0

    def launch(self, graph: CapturedGraph) -> None:
        """Queue recorded work."""
        self.cuda("cudaGraphLaunch", graph.executable, self._stream)
