"""The arithmetic of memory against what a loaded backend has really allocated."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnx_ir as ir
import pytest

from fastblt.models.config import BltConfig
from fastblt.models.formats.checkpoint import expected_shapes
from fastblt.models.presets import preset
from fastblt.runtime.backends.onnxruntime import OnnxRuntimeBackend
from fastblt.runtime.buffers import Buffer
from fastblt.runtime.bundle import load_manifest
from fastblt.runtime.memory import device_buffers, graph_of, weight_bytes


def allocated(buffer: Buffer) -> int:
    return int(buffer.array.nbytes)


@pytest.mark.parametrize("max_bytes", [1, 200, 4096])
@pytest.mark.parametrize("decoder_input", ["embedding", "encoder"])
def test_buffers_are_those_that_a_backend_allocates(
    request: pytest.FixtureRequest, decoder_input: str, max_bytes: int
) -> None:
    bundle: Path = request.getfixturevalue("tiny_bundle" if decoder_input == "embedding" else "tiny_encoder_bundle")
    backend: Any = OnnxRuntimeBackend.load(bundle, max_bytes, 1)
    found = {part: sum(map(allocated, graph.caches.buffers.values())) for part, graph in backend.graphs.items()}
    found["encoder"] += sum(map(allocated, (backend._pool, backend._states, backend._patch_embeddings)))
    found["global"] += sum(map(allocated, (backend._latents, backend._latent_kv)))
    assert device_buffers(backend.config, "fp32", max_bytes) == found


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
