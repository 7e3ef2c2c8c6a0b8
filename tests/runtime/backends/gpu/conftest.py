"""Provides models that strain the GPU backend's caches, and backends with several slots."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import pytest
from fakes.batches import FORMS, load_form
from fakes.cuda import FakeCuda
from shared_files import SharedFiles

from fastblt.models.blt import Blt
from fastblt.models.checkpoint import save_checkpoint
from fastblt.models.config import BltConfig
from fastblt.runtime.backends.gpu.backend import DeviceBackend


@pytest.fixture(scope="session")
def long_patches(
    compiled: Callable[..., Path],
    make_model: Callable[..., Blt],
    tiny_encoder_config: BltConfig,
    shared_files: SharedFiles,
) -> Path:
    """Compile a bundle whose patches never close."""
    patching = dataclasses.replace(tiny_encoder_config.patching, threshold=1e9, max_patch_length=None)
    model = make_model(dataclasses.replace(tiny_encoder_config, patching=patching))
    return compiled(shared_files.make("long-patches", lambda folder: save_checkpoint(folder, model)))


Load = Callable[..., DeviceBackend]


@pytest.fixture
def load(request: pytest.FixtureRequest, compiled: Callable[..., Path], gpu: FakeCuda) -> Load:
    """``load(form, sequences, row_floor=1)``: a backend for one of `FORMS` on the stand-in GPU."""

    def make(name: str, sequences: int, row_floor: int = 1) -> DeviceBackend:
        form = FORMS[name]
        bundle = compiled(request.getfixturevalue(form.checkpoint), **form.options)
        return load_form(form, bundle, gpu, sequences, row_floor)

    return make
