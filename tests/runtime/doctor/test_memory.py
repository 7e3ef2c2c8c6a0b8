"""The computed memory equals what a loaded backend has really allocated."""

from __future__ import annotations

import sys
from pathlib import Path

import onnx_ir as ir
import pytest
from fakes.cuda import FakeCuda
from fakes.onnxruntime_cuda import FakeOnnxRuntime

from fastblt.models.config import BltConfig
from fastblt.models.formats.checkpoint import expected_shapes
from fastblt.models.presets import preset
from fastblt.runtime.backends.gpu import loading
from fastblt.runtime.backends.gpu.memory import device_buffers
from fastblt.runtime.bundle.manifest import load_manifest
from fastblt.runtime.doctor.memory import graph_of, weight_bytes


@pytest.mark.parametrize("max_bytes", [1, 200, 4096])
@pytest.mark.parametrize("decoder_input", ["embedding", "encoder"])
def test_buffers_are_those_that_the_backend_allocates_on_the_device(
    request: pytest.FixtureRequest, decoder_input: str, max_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle: Path = request.getfixturevalue("tiny_bundle" if decoder_input == "embedding" else "tiny_encoder_bundle")
    cuda = FakeCuda()
    monkeypatch.setitem(sys.modules, "cuda.bindings.runtime", cuda)
    backend = loading.load_onnxruntime(bundle, "cuda", max_bytes, ort=FakeOnnxRuntime(cuda))
    allocated = sum(memory.size for memory in cuda.allocations.values() if memory.kind == "device")
    # What crosses the bus, and what a graph reads and writes in one call: 64 rows of it.
    blocks = allocated - sum(device_buffers(backend.config, "fp32", max_bytes).values())
    assert 0 <= blocks < 600_000
    small = device_buffers(backend.config, "fp32", 1)
    assert sum(small.values()) <= sum(device_buffers(backend.config, "fp32", max_bytes).values())


def test_caches_of_16_bits_take_half_and_the_patchers_stay(tiny_config: BltConfig) -> None:
    wide, narrow = (device_buffers(tiny_config, dtype, 1000) for dtype in ("fp32", "bf16"))
    assert narrow["patcher"] == wide["patcher"]
    assert all(2 * narrow[part] == wide[part] for part in ("encoder", "global", "decoder"))


def test_weights_are_the_initializers_of_each_graph(tiny_bundle: Path, tiny_config: BltConfig) -> None:
    shapes = expected_shapes(tiny_config)
    for part, spec in load_manifest(tiny_bundle).graphs.items():
        names = {name.removesuffix(".T") for name in ir.load(tiny_bundle / spec.file).graph.initializers}
        assert names & set(shapes) == {name for name in shapes if graph_of(name) == part}


def test_a_box_needs_a_third_of_the_published_checkpoint() -> None:
    """blt-1b stores 9.27 GB; in bf16, with the patcher in fp32, 3.32 GB of them go to the device."""
    shapes = expected_shapes(preset("blt-1b"))
    device = sum(weight_bytes(n, shape, "bf16") for n, shape in shapes.items() if graph_of(n) != "tables")
    assert device == pytest.approx(3.32e9, rel=0.01)
