"""Provides an earlier bundle to replace, and reports what was compiled: sizes and build seconds of engines."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

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


@pytest.fixture
def old_bundle(tiny_encoder_bundle: Path, tmp_path: Path) -> Path:
    """A complete bundle of another model; nothing else is in its parent folder."""
    folder = tmp_path / "out" / "bundle"
    shutil.copytree(tiny_encoder_bundle, folder)
    return folder
