"""What a model will need is computed before anything is allocated, and compared with what the machine has."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from fakes.cuda import FakeCuda
from fakes.lying_bundles import change, linked
from fakes.onnxruntime_cuda import FakeOnnxRuntime

from fastblt.models.blt import Blt
from fastblt.runtime.backends.cpu import backend as cpu_backend
from fastblt.runtime.backends.cpu.backend import OnnxRuntimeBackend
from fastblt.runtime.backends.cpu.buffers import BINDING_BYTES, BINDINGS_KEPT, Buffer, ControlInput, buffer_bytes
from fastblt.runtime.backends.eager import torch_backend
from fastblt.runtime.backends.eager.backend import EagerBackend
from fastblt.runtime.backends.entry import LoadRequest
from fastblt.runtime.backends.gpu import loading
from fastblt.runtime.backends.gpu.memory import device_buffers
from fastblt.runtime.backends.memory import check_fits, sequences_that_fit
from fastblt.runtime.backends.protocol import Backend, CapacityError
from fastblt.runtime.backends.registry import load_backend
from fastblt.runtime.bundle.bundle import Bundle
from fastblt.runtime.bundle.manifest import MANIFEST_FILE

MEGABYTE = 10**6


def buffers_of(owner: object) -> Iterator[Buffer]:
    for value in vars(owner).values():
        if isinstance(value, Buffer):
            yield value
        elif isinstance(value, ControlInput):
            yield value.buffer


@pytest.mark.parametrize("max_bytes", [1, 50, 4096])
@pytest.mark.parametrize("bundle", ["tiny_bundle", "tiny_encoder_bundle"])
def test_bytes_are_those_that_the_backend_allocates(
    request: pytest.FixtureRequest, bundle: str, max_bytes: int
) -> None:
    backend = OnnxRuntimeBackend.load(request.getfixturevalue(bundle), max_bytes, 1)
    sequence = backend.new_sequence()
    caches = [buffer for graph in sequence.graphs.values() for buffer in graph.caches.buffers.values()]
    others = [buffer for graph in sequence.graphs.values() for buffer in buffers_of(graph)]
    found = sum(buffer.bytes for buffer in (*caches, *others, *buffers_of(sequence.buffers)))
    bindings = len(sequence.graphs) * BINDINGS_KEPT * BINDING_BYTES
    assert found + bindings == buffer_bytes(backend.config, 4, max_bytes) == backend.sequence_bytes
    assert all(buffer.bytes == buffer.array.nbytes for buffer in caches)


def test_eager_allocates_what_is_computed(either_model: Blt) -> None:
    backend = EagerBackend(either_model, 100)
    sequence = backend.new_sequence()
    caches = sum(cache.keys.nbytes + cache.values.nbytes for cache in sequence._caches.values())
    found = caches + sequence._states.nbytes + sequence._latent_kv.nbytes
    assert found == torch_backend.buffer_bytes(either_model.config, 4, 100) == backend.sequence_bytes


@pytest.fixture
def cpu(tiny_bundle: Path) -> Callable[[int], Backend]:
    return lambda max_bytes: OnnxRuntimeBackend.load(tiny_bundle, max_bytes, 1)


@pytest.fixture
def eager(tiny_model: Blt) -> Callable[[int], Backend]:
    return lambda max_bytes: EagerBackend(tiny_model, max_bytes, 1)


@pytest.mark.parametrize(("kind", "module"), [("cpu", cpu_backend), ("eager", torch_backend)])
def test_text_that_no_memory_holds_is_refused_with_the_longest_that_fits(
    request: pytest.FixtureRequest, kind: str, module: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    load: Callable[[int], Backend] = request.getfixturevalue(kind)
    monkeypatch.setattr(module, "host_memory", lambda: 20 * MEGABYTE)
    with pytest.raises(CapacityError, match=r"^max_bytes: found 100000000, .* at most \d+ with the") as caught:
        load(100_000_000)
    longest = int(str(caught.value).partition("expected at most ")[2].split()[0])
    load(longest)
    with pytest.raises(CapacityError, match=f"expected at most {longest} "):
        load(longest + 1)
    monkeypatch.setattr(module, "host_memory", lambda: MEGABYTE // 10)
    with pytest.raises(CapacityError, match=r"^memory: found 0\.00 GB on this machine, expected .* fastblt quantize"):
        load(1)
    monkeypatch.setattr(module, "host_memory", lambda: None)
    load(100)


def test_memory_of_the_gpu_is_compared(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cuda = FakeCuda()
    monkeypatch.setitem(sys.modules, "cuda.bindings.runtime", cuda)
    cuda.used_by_others = cuda.memory - 30 * MEGABYTE
    with pytest.raises(CapacityError, match=r"^max_bytes: found 1000000, .* expected at most \d+ with the 0\.03 GB of"):
        loading.load_onnxruntime(tiny_bundle, "cuda", 1_000_000, ort=FakeOnnxRuntime(cuda))
    assert not [each for each in cuda.allocations.values() if each.kind == "device"]
    loading.load_onnxruntime(tiny_bundle, "cuda", 100, ort=FakeOnnxRuntime(cuda))
    cuda.integrated = True  # the host frees what it caches
    cuda.used_by_others = cuda.memory
    loading.load_onnxruntime(tiny_bundle, "cuda", 100, ort=FakeOnnxRuntime(cuda))


def test_gpu_holds_whole_graphs_and_the_host_maps_their_tables(
    tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A graph with embedding tables inside is larger than the weights that a call reads."""
    bundle = linked(tiny_bundle, tmp_path / "bundle")
    change(bundle / MANIFEST_FILE, lambda data: [graph.update(weight_bytes=0) for graph in data["graphs"].values()])
    opened = Bundle.open(bundle)
    assert opened.manifest.weight_bytes == 0
    size = sum((bundle / graph.file).stat().st_size for graph in opened.manifest.graphs.values())
    assert opened.graph_bytes == size
    cuda = FakeCuda()
    monkeypatch.setitem(sys.modules, "cuda.bindings.runtime", cuda)
    cuda.used_by_others = cuda.memory - size - sum(device_buffers(opened.config, "fp32", 1).values()) + 1
    with pytest.raises(CapacityError, match=r"^memory: found .* on the GPU"):
        loading.load_onnxruntime(bundle, "cuda", 1, ort=FakeOnnxRuntime(cuda))
    monkeypatch.setattr(cpu_backend, "host_memory", lambda: buffer_bytes(opened.config, 4, 1))
    OnnxRuntimeBackend.load(bundle, 1, 1)


def test_longest_text_is_exact() -> None:
    def buffers(size: int) -> int:
        return 10 * size

    check_fits(500, buffers, 50, 1000, "x")
    check_fits(500, buffers, 5000, None, "x")
    with pytest.raises(CapacityError, match="expected at most 50 with"):
        check_fits(500, buffers, 51, 1000, "x")
    with pytest.raises(CapacityError, match="memory: found"):
        check_fits(991, buffers, 2, 1000, "x")


def test_as_many_sequences_as_half_of_the_rest_holds() -> None:
    def fit(wanted: int | None, available: int | None, max_bytes: int = 10) -> int:
        return sequences_that_fit(400, lambda size: 10 * size, max_bytes, wanted, available, "x")

    assert [fit(None, available) for available in (500, 599, 999, 1000, 2**40, None)] == [1, 1, 2, 3, 64, 64]
    assert [fit(6, available) for available in (1000, 2**40, None)] == [6, 6, 6]
    with pytest.raises(CapacityError, match=r"^sequences: found 7 for max_bytes=10, .* expected at most 6 with the"):
        fit(7, 1000)
    with pytest.raises(CapacityError, match=r"^max_bytes: found 61, "):
        fit(None, 1000, 61)


@pytest.mark.parametrize(("kind", "module"), [("cpu", cpu_backend), ("eager", torch_backend)])
def test_sequences_are_counted_before_anything_is_loaded(
    tiny_bundle: Path, kind: str, module: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = {"cpu": "onnxruntime", "eager": "eager"}[kind]
    request = LoadRequest(tiny_bundle, max_bytes=1000, sequences=3)
    backend = load_backend(name, request)
    assert backend.sequences == 3
    each = backend.sequence_bytes
    default = load_backend(name, replace(request, sequences=None)).sequences
    assert 1 <= default <= 64
    monkeypatch.setattr(module, "host_memory", lambda: 2 * each + 20 * MEGABYTE)
    few = int((2 * each + 20 * MEGABYTE) // each)
    with pytest.raises(CapacityError, match=rf"^sequences: found {few + 1} for max_bytes=1000"):
        load_backend(name, replace(request, sequences=few + 1))


@pytest.mark.parametrize("wrong", [0, -1, 4097, True, 2.0])
def test_number_of_sequences_is_checked(tiny_bundle: Path, wrong: Any) -> None:
    with pytest.raises(ValueError, match=r"^sequences: found"):
        LoadRequest(tiny_bundle, sequences=wrong)


def test_nothing_outside_of_a_buffer_is_ever_bound(tiny_bundle: Path) -> None:
    sequence = OnnxRuntimeBackend.load(tiny_bundle, 50, 1).new_sequence()
    binding = sequence._decoder_binding(sequence._decoder, 10, 1, 3, 1)
    buffer = sequence.buffers.latent_kv
    rows = len(buffer.array)
    binding.point("latent_kv", (1, *buffer.row_shape), buffer, 5)
    for count, row in ((1, rows), (2, rows - 1), (1, -1), (rows + 1, 0)):
        with pytest.raises(ValueError, match=r"latent_kv: float32 .* is not inside its buffer"):
            binding.point("latent_kv", (count, *buffer.row_shape), buffer, row)
    with pytest.raises(ValueError, match="latent_kv: float32"):  # int64 in the buffer
        binding.point("latent_kv", (1, *buffer.row_shape), sequence.buffers.best.buffer)
