"""The computed memory equals what a loaded backend has really allocated."""

from __future__ import annotations

import dataclasses
import math
import sys
from collections.abc import Callable
from pathlib import Path

import onnx_ir as ir
import pytest
from fakes.cuda import FakeCuda
from fakes.onnxruntime_cuda import FakeOnnxRuntime
from fakes.tensorrt import FakeTensorRt
from fakes.tensorrt_engine import MEMORY_BYTES

from fastblt.models.config import BltConfig
from fastblt.models.formats.checkpoint import expected_shapes
from fastblt.models.presets import preset
from fastblt.runtime.backends.gpu import loading
from fastblt.runtime.backends.gpu.memory import call_buffers, device_buffers
from fastblt.runtime.bundle.bundle import Bundle
from fastblt.runtime.bundle.engines import engine_folders, load_engine_folder
from fastblt.runtime.bundle.manifest import load_manifest
from fastblt.runtime.doctor.engine_memory import engine_memory
from fastblt.runtime.doctor.memory import exported_shapes, graph_of, weight_bytes


@pytest.mark.parametrize("max_bytes", [1, 200, 4096])
@pytest.mark.parametrize("name", ["tiny_bundle", "tiny_encoder_bundle", "tiny_mixed_bundle"])
def test_buffers_are_those_that_the_backend_allocates_on_the_device(
    request: pytest.FixtureRequest, name: str, max_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle: Path = request.getfixturevalue(name)
    cuda = FakeCuda()
    monkeypatch.setitem(sys.modules, "cuda.bindings.runtime", cuda)
    backend = loading.load_onnxruntime(bundle, "cuda", max_bytes, ort=FakeOnnxRuntime(cuda))
    allocated = sum(memory.size for memory in cuda.allocations.values() if memory.kind == "device")
    # Caches, what crosses the bus, and what a graph reads and writes in one call: 64 rows of it.
    blocks = call_buffers(backend.config, backend.manifest.graphs)
    assert allocated == backend.sequence_bytes
    assert allocated == sum(device_buffers(backend.config, "fp32", max_bytes).values()) + sum(blocks.values())
    small = device_buffers(backend.config, "fp32", 1)
    assert sum(small.values()) <= sum(device_buffers(backend.config, "fp32", max_bytes).values())


@pytest.mark.parametrize("name", ["tiny_checkpoint", "tiny_mixed_checkpoint"])
def test_memory_of_engines_is_what_the_backend_allocates(
    request: pytest.FixtureRequest, compiled: Callable[..., Path], name: str
) -> None:
    bundle = compiled(request.getfixturevalue(name))
    (path,) = engine_folders(bundle)
    folder, opened = load_engine_folder(path), Bundle.open(bundle)
    found = engine_memory(folder, opened.config, opened.manifest)
    assert [memory.max_bytes for memory in found] == list(folder.capacities)
    for memory in found:
        cuda = FakeCuda()
        with pytest.MonkeyPatch.context() as patch:
            patch.setitem(sys.modules, "cuda.bindings.runtime", cuda)
            patch.setitem(sys.modules, "tensorrt_rtx", FakeTensorRt(cuda))
            backend = loading.load_tensorrt(bundle, "tensorrt-rtx", memory.max_bytes)
        allocated = sum(each.size for each in cuda.allocations.values() if each.kind == "device")
        assert backend.max_bytes == memory.max_bytes
        assert memory.activations == MEMORY_BYTES
        assert allocated == memory.buffers + memory.activations
        assert memory.buffers == backend.sequence_bytes
        assert memory.engines == sum(engine.bytes for engine in folder.engines) > memory.weights > 0
        assert memory.total == memory.engines + memory.activations + memory.buffers
    unknown = dataclasses.replace(
        folder, engines=tuple(dataclasses.replace(engine, activation_bytes=None) for engine in folder.engines)
    )
    assert engine_memory(unknown, opened.config, opened.manifest)[0].activations is None


def test_caches_of_16_bits_take_half_and_the_patchers_stay(tiny_config: BltConfig) -> None:
    wide, narrow = (device_buffers(tiny_config, dtype, 1000) for dtype in ("fp32", "bf16"))
    assert narrow["patcher"] == wide["patcher"]
    assert all(2 * narrow[part] == wide[part] for part in ("encoder", "global", "decoder"))


@pytest.mark.parametrize(
    ("config", "bundle"), [("tiny_config", "tiny_bundle"), ("tiny_mixed_config", "tiny_mixed_bundle")]
)
def test_weights_are_the_initializers_of_each_graph(request: pytest.FixtureRequest, config: str, bundle: str) -> None:
    shapes = exported_shapes(expected_shapes(request.getfixturevalue(config)))
    folder: Path = request.getfixturevalue(bundle)
    for part, spec in load_manifest(folder).graphs.items():
        found = {
            name.removesuffix(".T"): value.shape
            for name, value in ir.load(folder / spec.file).graph.initializers.items()
        }
        assert found.keys() & shapes.keys() == {name for name in shapes if graph_of(name) == part}
        assert all(math.prod(found[name]) == math.prod(shapes[name]) for name in found.keys() & shapes.keys())


def test_a_box_needs_a_third_of_the_published_checkpoint() -> None:
    """blt-1b stores 9.27 GB; in bf16, with the patcher in fp32, 3.32 GB of them go to the device."""
    shapes = expected_shapes(preset("blt-1b"))
    device = sum(weight_bytes(n, shape, "bf16") for n, shape in shapes.items() if graph_of(n) != "tables")
    assert device == pytest.approx(3.32e9, rel=0.01)
