"""The stub of CUDA follows CUDA's rules: what a capture forbids, where copies may go, how much memory there is."""

from __future__ import annotations

import ctypes
import inspect
import re
from pathlib import Path

import pytest

from fastblt.runtime.backends.gpu.cuda import Cuda, CudaError, DeviceMemory, PinnedMemory, Stream

pytest.importorskip("cuda.bindings.runtime")

from fakes.cuda_stub.runtime_api import FUNCTIONS, RuntimeApi, real


@pytest.fixture(scope="module")
def api(cuda_stub: Path) -> RuntimeApi:
    return RuntimeApi(ctypes.CDLL(str(cuda_stub / "libcudart.so.13")))


@pytest.fixture
def stream(api: RuntimeApi) -> Stream:
    return Stream(Cuda(api))


def test_copies_reach_the_device_and_come_back(stream: Stream) -> None:
    memory, pinned = DeviceMemory(stream.cuda, 256), PinnedMemory(stream.cuda, 256)
    pinned.bytes[:] = range(256)
    stream.upload(memory.address, pinned.address, 256)
    assert stream.read((memory.address, 256)).tolist() == list(range(256))


def test_copy_beyond_an_allocation_fails(stream: Stream) -> None:
    memory, pinned = DeviceMemory(stream.cuda, 256), PinnedMemory(stream.cuda, 512)
    with pytest.raises(CudaError, match="cudaMemcpyAsync: invalid argument"):
        stream.upload(memory.address, pinned.address, 257)


def test_recorded_copies_are_done_when_launched(stream: Stream) -> None:
    memory, pinned = DeviceMemory(stream.cuda, 256), PinnedMemory(stream.cuda, 256)
    pinned.bytes[:] = 7
    graph = stream.capture(lambda: stream.upload(memory.address, pinned.address, 256))
    assert graph is not None
    assert not stream.read((memory.address, 256)).any()
    stream.launch(graph)
    assert (stream.read((memory.address, 256)) == 7).all()


@pytest.mark.parametrize(
    ("name", "arguments"),
    [("cudaMalloc", (256,)), ("cudaHostAlloc", (256, 0)), ("cudaDeviceSynchronize", ())],
)
def test_what_a_capture_forbids_makes_it_invalid(stream: Stream, name: str, arguments: tuple[int, ...]) -> None:
    assert stream.capture(lambda: stream.cuda(name, *arguments)) is None
    # Also where the error is ignored.
    assert stream.capture(lambda: getattr(stream.cuda.api, name)(*arguments)) is None
    stream.synchronize()


def test_stream_that_is_recorded_cannot_be_waited_for(stream: Stream) -> None:
    assert stream.capture(stream.synchronize) is None
    stream.synchronize()


def test_memory_ends(api: RuntimeApi, monkeypatch: pytest.MonkeyPatch) -> None:
    cuda = Cuda(api)
    free, total = cuda("cudaMemGetInfo")
    monkeypatch.setenv("CUDA_STUB_MEMORY", str(total - free + 1000))
    assert cuda.available_memory() == 1000
    with pytest.raises(CudaError, match="cudaMalloc: out of memory"):
        cuda("cudaMalloc", 1001)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("CUDA_STUB_DRIVER", "12040", "driver version is insufficient"),
        ("CUDA_STUB_DEVICES", "0", "no CUDA-capable device"),
    ],
)
def test_machine_without_a_usable_gpu(
    api: RuntimeApi, monkeypatch: pytest.MonkeyPatch, name: str, value: str, message: str
) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(CudaError, match=message):
        Cuda(api)


def test_compute_capability_is_chosen(api: RuntimeApi, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_STUB_SM", "87")
    assert Cuda(api).sm == 87


@pytest.mark.parametrize("name", FUNCTIONS)
def test_function_takes_as_many_arguments_as_the_real_one(name: str) -> None:
    first_line = (inspect.getdoc(getattr(real, name)) or "").splitlines()[0]
    found = re.fullmatch(rf"{name}\((.*)\)", first_line)
    assert found, first_line
    assert len(FUNCTIONS[name][1]) == len([item for item in found[1].split(",") if item.strip()])


def test_numbers_are_the_real_module_s(api: RuntimeApi) -> None:
    assert api.cudaMemcpyKind is real.cudaMemcpyKind
    assert api.cudaHostAllocDefault == real.cudaHostAllocDefault
    with pytest.raises(AttributeError, match="lacks cudaMalloc3D"):
        _ = api.cudaMalloc3D
