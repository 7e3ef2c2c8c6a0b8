from __future__ import annotations

import re
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from fakes.cuda import FakeCuda, Status

from fastblt.runtime.backends.gpu import cuda as cuda_module
from fastblt.runtime.backends.gpu import loading
from fastblt.runtime.backends.gpu.cuda import (
    Cuda,
    CudaError,
    DeviceMemory,
    PinnedMemory,
    Stream,
    UploadBlocks,
    load_api,
)
from fastblt.runtime.bundle.tensorrt_library import TensorRtError


def upload_blocks(stream: Stream) -> UploadBlocks:
    return UploadBlocks(stream, 256, lambda memory: {"all": memory})


def test_missing_driver_is_one_error() -> None:
    class NoDriver(FakeCuda):
        def cudaGetDeviceCount(self) -> tuple[Status, int]:  # noqa: N802
            return Status.cudaErrorInvalidValue, 0

    with pytest.raises(CudaError, match=r"cuda: found no usable GPU \(cudaGetDeviceCount: cudaErrorInvalidValue\)"):
        Cuda(NoDriver())


def test_missing_gpu_is_one_error() -> None:
    with pytest.raises(CudaError, match="cuda: found 0 GPUs, expected one with the number 0"):
        Cuda(FakeCuda(devices=0))


def test_missing_package_is_one_error_with_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cuda.bindings.runtime", None)
    with pytest.raises(CudaError, match=r"found no usable cuda-python .*pip install 'fastblt\[gpu\]'"):
        load_api()


def test_compute_capability_is_read() -> None:
    assert [Cuda(FakeCuda(sm)).sm for sm in (86, 89, 120)] == [86, 89, 120]


def test_memory_is_freed_when_it_is_dropped() -> None:
    api = FakeCuda()
    cuda = Cuda(api)
    held = DeviceMemory(cuda, 1000), PinnedMemory(cuda, 1000)
    assert len(api.allocations) == 2
    del held
    assert api.allocations == {}


def test_failed_allocation_is_named() -> None:
    class Full(FakeCuda):
        def cudaMalloc(self, size: int) -> tuple[Status, int]:  # noqa: N802
            return Status.cudaErrorMemoryAllocation, 0

    with pytest.raises(CudaError, match="cudaMalloc: cudaErrorMemoryAllocation"):
        DeviceMemory(Cuda(Full()), 1000)


def test_uploads_keep_their_memory_until_the_host_has_waited() -> None:
    api = FakeCuda()
    stream = Stream(Cuda(api))
    target, back = DeviceMemory(stream.cuda, 1024), PinnedMemory(stream.cuda, 1024)
    blocks = upload_blocks(stream)
    for index in range(4):
        source, views = blocks.take()
        views["all"][:] = index + 1
        stream.upload(target.address + 256 * index, source, 256)
    stream.download(back.address, target.address, 1024)
    assert not back.bytes.any() or (back.bytes == 0xFF).any()  # nothing has happened yet
    stream.synchronize()
    assert back.bytes.reshape(4, 256).tolist() == [[index + 1] * 256 for index in range(4)]


def test_blocks_are_used_again_after_the_host_has_waited_and_are_few() -> None:
    stream = Stream(Cuda(FakeCuda()))
    blocks = upload_blocks(stream)
    first = [blocks.take()[0] for _ in range(3)]
    assert len(set(first)) == 3
    stream.synchronize()
    assert [blocks.take()[0] for _ in range(3)] == first
    addresses = {blocks.take()[0] for _ in range(200)}
    assert len(addresses) == 64
    assert stream.synchronizations == 1 + (3 + 200) // 64


def test_recorded_work_runs_when_launched_and_not_before() -> None:
    stream = Stream(Cuda(FakeCuda()))
    a, b = DeviceMemory(stream.cuda, 256), DeviceMemory(stream.cuda, 256)
    back = PinnedMemory(stream.cuda, 256)
    blocks = upload_blocks(stream)
    source, views = blocks.take()
    views["all"][:] = 7
    stream.upload(a.address, source, 256)
    graph = stream.capture(lambda: stream.copy(b.address, a.address, 256))
    assert graph is not None
    for expected in (0, 7):
        stream.download(back.address, b.address, 256)
        stream.synchronize()
        assert np.unique(back.bytes).tolist() == [expected]
        stream.launch(graph)


@pytest.mark.parametrize("forbidden", ["synchronize", "allocate", "raise"])
def test_capture_ends_and_returns_nothing_when_it_cannot_be_recorded(forbidden: str) -> None:
    stream = Stream(Cuda(FakeCuda()))

    def work() -> None:
        if forbidden == "synchronize":
            stream.synchronize()
        elif forbidden == "allocate":
            DeviceMemory(stream.cuda, 100)
        else:
            raise ValueError("not today")

    assert stream.capture(work) is None
    stream.synchronize()  # the stream is usable again


def test_module_that_is_used_is_the_installed_one(monkeypatch: pytest.MonkeyPatch) -> None:
    module = SimpleNamespace()
    monkeypatch.setitem(sys.modules, "cuda.bindings.runtime", module)
    assert load_api() is module


def test_capture_ends_when_it_is_interrupted() -> None:
    api = FakeCuda()
    stream = Stream(Cuda(api))

    def work() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stream.capture(work)
    assert not api.is_capturing(stream.handle)


class FailingEnd(FakeCuda):
    """Does not end a capture the first times that it is asked to, as from another thread."""

    failures = 1

    def cudaStreamEndCapture(self, stream: int) -> tuple[Status, int]:  # noqa: N802
        if self.failures > 0:
            self.failures -= 1
            return Status.cudaErrorStreamCaptureInvalidated, 0
        return super().cudaStreamEndCapture(stream)


def test_capture_whose_end_fails_is_ended_again() -> None:
    api = FailingEnd()
    stream = Stream(Cuda(api))
    assert stream.capture(lambda: None) is None
    assert not api.is_capturing(stream.handle)
    stream.synchronize()


def test_capture_that_does_not_end_is_an_error() -> None:
    api = FailingEnd()
    api.failures = 9
    with pytest.raises(CudaError, match="cudaStreamEndCapture: found a stream that is still captured"):
        Stream(Cuda(api)).capture(lambda: None)


def test_old_driver_is_one_error_with_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    class OldDriver(FakeCuda):
        def cudaGetDeviceCount(self) -> tuple[Status, int]:  # noqa: N802
            return Status.cudaErrorInvalidValue, 0

    monkeypatch.setattr(cuda_module, "driver_cuda", lambda: "12.6")
    monkeypatch.setattr(cuda_module, "package_version", lambda name: "13.5.0")
    expected = (
        "cuda: found a driver for CUDA 12.6, expected one for CUDA 13, which cuda-bindings 13.5.0 needs: "
        "update the driver, or pip install 'cuda-bindings==12.8.*'"
    )
    with pytest.raises(CudaError, match=f"^{re.escape(expected)}$"):
        Cuda(OldDriver())


def test_memory_that_is_not_there_is_one_error() -> None:
    class Full(FakeCuda):
        def cudaMalloc(self, size: int) -> tuple[Status, int]:  # noqa: N802
            return Status.cudaErrorMemoryAllocation, 0

    with pytest.raises(CudaError, match=r"^memory: found [\d.,]+ GB free on the GPU, expected 3\.00 GB .*quantize$"):
        DeviceMemory(Cuda(Full()), 3 * 10**9)


def test_package_of_another_cuda_is_refused_before_an_engine_is_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loading, "driver_cuda", lambda: "12.8")
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", SimpleNamespace(__version__="1.7.1"))
    with pytest.raises(TensorRtError, match=r"^tensorrt-rtx: found tensorrt-rtx-cu13, .* expected tensorrt-rtx-cu12: "):
        loading.load_tensorrt(tmp_path, "tensorrt-rtx", 64)
