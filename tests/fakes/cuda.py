"""Stands in for ``cuda.bindings.runtime`` on machines without a GPU, and enforces the rules of the real module.

Device memory is host memory that only copies and graphs may touch. Work is queued and done as late as possible: when
the host waits. So a result that is read too early is still the old one, and an upload whose source is overwritten too
early carries the new bytes. While a stream is captured, nothing runs, and calls that a capture forbids fail.
"""

from __future__ import annotations

import bisect
import ctypes
import itertools
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any

import numpy as np

Work = Callable[[], object]
_ALIGNMENT = 256


class Status(IntEnum):
    cudaSuccess = 0
    cudaErrorInvalidValue = 1
    cudaErrorMemoryAllocation = 2
    cudaErrorStreamCaptureUnsupported = 900
    cudaErrorStreamCaptureInvalidated = 901


class cudaMemcpyKind(IntEnum):
    cudaMemcpyHostToDevice = 1
    cudaMemcpyDeviceToHost = 2
    cudaMemcpyDeviceToDevice = 3


class cudaStreamCaptureStatus(IntEnum):
    cudaStreamCaptureStatusNone = 0
    cudaStreamCaptureStatusActive = 1
    cudaStreamCaptureStatusInvalidated = 2


class cudaStreamCaptureMode(IntEnum):
    cudaStreamCaptureModeThreadLocal = 1


class cudaDeviceAttr(IntEnum):
    cudaDevAttrComputeCapabilityMajor = 75
    cudaDevAttrComputeCapabilityMinor = 76
    cudaDevAttrIntegrated = 18


@dataclass
class Allocation:
    kind: str
    address: int
    size: int
    owner: Any


@dataclass
class StreamState:
    queue: list[Work] = field(default_factory=list)
    recording: list[Work] | None = None
    invalid: bool = False


class FakeCuda:
    """Implements the functions that fastblt calls.

    Args:
        sm: compute capability of the GPU, e.g. 89.
        late: do queued work when the host waits; False: immediately. Programs must work either way.
        forbid_capture: let every capture fail, as if a kernel could not be captured.
        devices: number of GPUs.
    """

    cudaMemcpyKind = cudaMemcpyKind
    cudaStreamCaptureMode = cudaStreamCaptureMode
    cudaStreamCaptureStatus = cudaStreamCaptureStatus
    cudaDeviceAttr = cudaDeviceAttr
    cudaHostAllocDefault = 0
    cudaStreamNonBlocking = 1

    def __init__(self, sm: int = 89, *, late: bool = True, forbid_capture: bool = False, devices: int = 1) -> None:
        self.sm, self.late, self.forbid_capture, self.devices = sm, late, forbid_capture, devices
        self.memory, self.used_by_others, self.integrated = 24 * 2**30, 0, False
        """Device memory, what other programs use of it, in bytes, and whether it is the host's."""
        self.allocations: dict[int, Allocation] = {}
        self._addresses: list[int] = []
        """Of the allocations, ascending."""
        self.streams: dict[int, StreamState] = {}
        self.graphs: dict[int, list[Work]] = {}
        self.executables: dict[int, list[Work]] = {}
        self.default_stream: list[Work] = []
        self.most_pitch = 2**31 - 1
        """Most bytes that rows of a copy or a fill may be apart."""
        self.late_memset = True
        """Whether the default stream works as late as the host waits for it, or at once."""
        self.launches = 0
        self.waits = 0
        self._handles = itertools.count(0x1000)

    # --- memory ---

    def _allocate(self, kind: str, size: int) -> tuple[Status, int]:
        if self._capturing():
            return Status.cudaErrorStreamCaptureUnsupported, 0
        # Bytes that nobody has written are NaNs.
        owner = np.full(size + _ALIGNMENT, 0xFF, dtype=np.uint8)
        address = -(-int(owner.ctypes.data) // _ALIGNMENT) * _ALIGNMENT
        self.allocations[address] = Allocation(kind, address, size, owner)
        bisect.insort(self._addresses, address)
        return Status.cudaSuccess, address

    def _free(self, kind: str, address: int) -> tuple[Status]:
        found = self.allocations.pop(int(address), None)
        if found:
            self._addresses.remove(found.address)
        return (Status.cudaSuccess if found and found.kind == kind else Status.cudaErrorInvalidValue,)

    def cudaMalloc(self, size: int) -> tuple[Status, int]:
        return self._allocate("device", size)

    def cudaFree(self, devPtr: int) -> tuple[Status]:
        return self._free("device", devPtr)

    def cudaHostAlloc(self, size: int, flags: int) -> tuple[Status, int]:
        return self._allocate("pinned", size)

    def cudaFreeHost(self, ptr: int) -> tuple[Status]:
        return self._free("pinned", ptr)

    def cudaMemset(self, devPtr: int, value: int, count: int) -> tuple[Status]:
        if self._capturing():
            return (Status.cudaErrorStreamCaptureUnsupported,)
        # This goes to the default stream, which other streams do not wait for: it is done at once, before what they
        # have queued, or when the host waits for the device, too late for what they did in the meantime.
        work = self._set(devPtr, count, value, count, 1)
        if self.late_memset:
            self.default_stream.append(work)
        else:
            work()
        return (Status.cudaSuccess,)

    def cudaMemsetAsync(self, devPtr: int, value: int, count: int, stream: int) -> tuple[Status]:
        return self.cudaMemset2DAsync(devPtr, count, value, count, 1, stream)

    def cudaMemset2DAsync(
        self, devPtr: int, pitch: int, value: int, width: int, height: int, stream: int
    ) -> tuple[Status]:
        if height > 1 and pitch > self.most_pitch:
            return (Status.cudaErrorInvalidValue,)
        return (self.enqueue(stream, self._set(devPtr, pitch, value, width, height)),)

    def _set(self, target: int, pitch: int, value: int, width: int, height: int) -> Work:
        assert width <= pitch
        self.check(target, (height - 1) * pitch + width, "device")
        return lambda: [ctypes.memset(target + row * pitch, value, width) for row in range(height)]

    def cudaDeviceSynchronize(self) -> tuple[Status]:
        if self._capturing():
            return (Status.cudaErrorStreamCaptureUnsupported,)
        for stream in list(self.streams):
            self._run(self.streams[stream].queue)
        self._run(self.default_stream)
        return (Status.cudaSuccess,)

    @staticmethod
    def _run(queue: list[Work]) -> None:
        works, queue[:] = list(queue), []
        for work in works:
            work()

    def check(self, address: int, size: int, kind: str) -> None:
        """Fail unless a range of bytes is inside one allocation of a kind, ``device`` or ``pinned``."""
        index = bisect.bisect_right(self._addresses, address) - 1
        assert index >= 0, f"{size} bytes at {address:#x} are in no allocation"
        found = self.allocations[self._addresses[index]]
        assert address + size <= found.address + found.size, f"{size} bytes at {address:#x} are in no allocation"
        assert found.kind == kind, f"{size} bytes at {address:#x} are {found.kind} memory, expected {kind}"

    # --- copies ---

    def cudaMemcpyAsync(self, dst: int, src: int, count: int, kind: int, stream: int) -> tuple[Status]:
        return self.cudaMemcpy2DAsync(dst, count, src, count, count, 1, kind, stream)

    def cudaMemcpy2DAsync(
        self, dst: int, dpitch: int, src: int, spitch: int, width: int, height: int, kind: int, stream: int
    ) -> tuple[Status]:
        ends = {
            cudaMemcpyKind.cudaMemcpyHostToDevice: ("pinned", "device"),
            cudaMemcpyKind.cudaMemcpyDeviceToHost: ("device", "pinned"),
            cudaMemcpyKind.cudaMemcpyDeviceToDevice: ("device", "device"),
        }
        source, target = ends[cudaMemcpyKind(kind)]
        if width > min(dpitch, spitch) or height < 1 or (height > 1 and max(dpitch, spitch) > self.most_pitch):
            return (Status.cudaErrorInvalidValue,)
        span = (height - 1) * spitch + width, (height - 1) * dpitch + width

        def work() -> None:
            self.check(src, span[0], source)
            self.check(dst, span[1], target)
            if src + span[0] > dst and dst + span[1] > src:
                rows = np.arange(height)
                apart = (dst + rows * dpitch)[:, None] - (src + rows * spitch)
                assert (np.abs(apart) >= width).all(), "a copy onto itself"
            for row in range(height):
                ctypes.memmove(dst + row * dpitch, src + row * spitch, width)

        return (self.enqueue(stream, work),)

    # --- streams ---

    def cudaStreamCreateWithFlags(self, flags: int) -> tuple[Status, int]:
        handle = next(self._handles)
        self.streams[handle] = StreamState()
        return Status.cudaSuccess, handle

    def cudaStreamDestroy(self, stream: int) -> tuple[Status]:
        self.streams.pop(int(stream), None)
        return (Status.cudaSuccess,)

    def enqueue(self, stream: int, work: Work) -> Status:
        """Queue work on a stream, or record it while the stream is captured."""
        state = self.streams[int(stream)]
        if state.recording is not None:
            state.recording.append(work)
        elif self.late:
            state.queue.append(work)
        else:
            work()
        return Status.cudaSuccess

    def cudaStreamSynchronize(self, stream: int) -> tuple[Status]:
        state = self.streams[int(stream)]
        if state.recording is not None:
            state.invalid = True
            return (Status.cudaErrorStreamCaptureUnsupported,)
        self.waits += 1
        self._run(state.queue)
        self._run(self.default_stream)
        return (Status.cudaSuccess,)

    # --- capture ---

    def _capturing(self) -> bool:
        """Return whether any stream is captured; the captures then fail, since a forbidden call was made."""
        found = [state for state in self.streams.values() if state.recording is not None]
        for state in found:
            state.invalid = True
        return bool(found)

    def is_capturing(self, stream: int) -> bool:
        """Return whether a stream is captured."""
        return self.streams[int(stream)].recording is not None

    def cudaStreamIsCapturing(self, stream: int) -> tuple[Status, cudaStreamCaptureStatus]:
        state, kinds = self.streams[int(stream)], cudaStreamCaptureStatus
        if state.recording is None:
            return Status.cudaSuccess, kinds.cudaStreamCaptureStatusNone
        invalid = kinds.cudaStreamCaptureStatusInvalidated
        return Status.cudaSuccess, invalid if state.invalid else kinds.cudaStreamCaptureStatusActive

    def spoil(self, stream: int) -> None:
        """Let the capture of a stream fail."""
        self.streams[int(stream)].invalid = True

    def cudaStreamBeginCapture(self, stream: int, mode: int) -> tuple[Status]:
        state = self.streams[int(stream)]
        if state.recording is not None:
            return (Status.cudaErrorStreamCaptureInvalidated,)
        state.recording, state.invalid = [], self.forbid_capture
        return (Status.cudaSuccess,)

    def cudaStreamEndCapture(self, stream: int) -> tuple[Status, int]:
        state = self.streams[int(stream)]
        recorded, state.recording = state.recording, None
        if recorded is None or state.invalid:
            return Status.cudaErrorStreamCaptureInvalidated, 0
        handle = next(self._handles)
        self.graphs[handle] = recorded
        return Status.cudaSuccess, handle

    def cudaGraphInstantiate(self, graph: int, flags: int) -> tuple[Status, int]:
        handle = next(self._handles)
        self.executables[handle] = self.graphs[graph]
        return Status.cudaSuccess, handle

    def cudaGraphDestroy(self, graph: int) -> tuple[Status]:
        return (Status.cudaSuccess if self.graphs.pop(graph, None) is not None else Status.cudaErrorInvalidValue,)

    def cudaGraphExecDestroy(self, graphExec: int) -> tuple[Status]:
        self.executables.pop(graphExec, None)
        return (Status.cudaSuccess,)

    def cudaGraphLaunch(self, graphExec: int, stream: int) -> tuple[Status]:
        self.launches += 1
        for work in self.executables[graphExec]:
            self.enqueue(stream, work)
        return (Status.cudaSuccess,)

    # --- device ---

    def cudaGetDeviceCount(self) -> tuple[Status, int]:
        return Status.cudaSuccess, self.devices

    def cudaSetDevice(self, device: int) -> tuple[Status]:
        return (Status.cudaSuccess,)

    def cudaDeviceGetAttribute(self, attr: int, device: int) -> tuple[Status, int]:
        major, minor = divmod(self.sm, 10)
        values = {
            cudaDeviceAttr.cudaDevAttrComputeCapabilityMajor: major,
            cudaDeviceAttr.cudaDevAttrComputeCapabilityMinor: minor,
            cudaDeviceAttr.cudaDevAttrIntegrated: int(self.integrated),
        }
        return Status.cudaSuccess, values[cudaDeviceAttr(attr)]

    def cudaMemGetInfo(self) -> tuple[Status, int, int]:
        used = sum(memory.size for memory in self.allocations.values() if memory.kind == "device")
        return Status.cudaSuccess, self.memory - used - self.used_by_others, self.memory

    def cudaGetErrorString(self, error: int) -> tuple[Status, bytes]:
        return Status.cudaSuccess, Status(error).name.encode()

    def cudaGetLastError(self) -> tuple[Status]:
        return (Status.cudaSuccess,)
