from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fakes.cuda import FakeCuda
from fakes.tensorrt import FakeTensorRt

from fastblt.export.bundle_writer import export_bundle
from fastblt.export.engine_compiler import Request, compile_bundle
from fastblt.models.blt import Blt
from fastblt.models.checkpoint import save_checkpoint
from fastblt.models.config import BltConfig
from fastblt.runtime.tensorrt_library import TensorRtLibrary

CAPACITIES = (256, 1000)


@pytest.fixture
def make_gpu(monkeypatch: pytest.MonkeyPatch) -> Callable[..., FakeCuda]:
    """``make_gpu(sm=89, ...)``: from now on a machine with one GPU, cuda-python and TensorRT-RTX."""

    def make(**options: Any) -> FakeCuda:
        cuda = FakeCuda(**options)
        monkeypatch.setitem(sys.modules, "cuda.bindings.runtime", cuda)
        monkeypatch.setitem(sys.modules, "tensorrt_rtx", FakeTensorRt(cuda))
        return cuda

    return make


@pytest.fixture
def gpu(make_gpu: Callable[..., FakeCuda]) -> FakeCuda:
    """A machine with one GPU, cuda-python and TensorRT-RTX."""
    return make_gpu()


@pytest.fixture(scope="session")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """``compiled(checkpoint, **options of export)``: a bundle with engines that the stand-in runs."""

    def make(checkpoint: Path, **options: Any) -> Path:
        bundle = tmp_path_factory.mktemp("compiled") / "bundle"
        export_bundle(checkpoint, bundle, verify=False, **options)
        library = TensorRtLibrary("tensorrt-rtx", FakeTensorRt(FakeCuda()))
        compile_bundle(bundle, library, Request((89,), CAPACITIES))
        return bundle

    return make


@pytest.fixture(scope="session")
def long_patches(
    compiled: Callable[..., Path],
    make_model: Callable[..., Blt],
    tiny_encoder_config: BltConfig,
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    """A bundle whose patches never close."""
    patching = dataclasses.replace(tiny_encoder_config.patching, threshold=1e9, max_patch_length=None)
    model = make_model(dataclasses.replace(tiny_encoder_config, patching=patching))
    checkpoint = tmp_path_factory.mktemp("long-patches") / "checkpoint"
    save_checkpoint(checkpoint, model)
    return compiled(checkpoint)
