"""Provides an earlier bundle to replace, and reports what was compiled: sizes and build seconds of engines."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from properties import THOROUGH
from shared_files import SharedFiles

from fastblt.models.blt import Blt
from fastblt.models.checkpoint import save_checkpoint
from fastblt.models.presets import preset
from fastblt.runtime.bundle.engines import EngineFolder


@pytest.fixture
def report_engines(record_property: Callable[[str, object], None]) -> Callable[[str, EngineFolder], None]:
    """``report_engines(name, folder)``: list a folder of engines at the end of the run."""

    def report(name: str, folder: EngineFolder) -> None:
        for engine in folder.engines:
            sms = ", ".join(str(sm) for sm in folder.sms)
            line = (
                f"{name}, {folder.dtype}, {folder.operators}, SM {sms}: {engine.file} {engine.bytes / 1e6:.1f} MB "
                f"in {engine.build_seconds:.1f} s, {len(engine.aliases)} caches in place"
            )
            record_property("engine", line)

    return report


@pytest.fixture(scope="session")
def small_stacks(shipped_checkpoint: Path, make_model: Callable[..., Blt], shared_files: SharedFiles) -> Path:
    """A checkpoint to compile: the sizes of the shipped one, and one layer a stack, for the others are like it.

    The nightly profile compiles the shipped one itself.
    """
    if THOROUGH:
        return shipped_checkpoint
    config = preset("blt-d-8m")
    stacks = {name: getattr(config, name) for name in ("patcher", "encoder", "global_transformer", "decoder")}
    cut = {name: dataclasses.replace(stack, layers=1) for name, stack in stacks.items()}
    model = make_model(dataclasses.replace(config, **cut))
    return shared_files.make("small-stacks", lambda folder: save_checkpoint(folder, model))


@pytest.fixture
def old_bundle(tiny_encoder_bundle: Path, tmp_path: Path) -> Path:
    """A complete bundle of another model; nothing else is in its parent folder."""
    folder = tmp_path / "out" / "bundle"
    shutil.copytree(tiny_encoder_bundle, folder)
    return folder
