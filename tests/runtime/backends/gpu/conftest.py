"""Provides models that strain the GPU backend's caches."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import pytest
from shared_files import SharedFiles

from fastblt.models.blt import Blt
from fastblt.models.checkpoint import save_checkpoint
from fastblt.models.config import BltConfig


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
