"""Traces of the tiny model, and requests that are quick."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from fastblt.calibration.calibrate import CalibrationRequest
from fastblt.calibration.heldout import load_prompts, load_text
from fastblt.calibration.trace_recorder import RecordingSetting, record
from fastblt.calibration.trace_store import TraceStore, model_digest
from fastblt.runtime.bundle.manifest import load_manifest
from fastblt.runtime.measure.scoring.windows import Text, cut_windows

PROMPTS = tuple(prompt.data[:40] for prompt in load_prompts("web")[:4])
WINDOWS = tuple(cut_windows(Text("web", load_text("web")), 2, 96))


@pytest.fixture(scope="session")
def setting() -> RecordingSetting:
    return RecordingSetting(PROMPTS, samples=56, new_bytes=24)


@pytest.fixture(scope="session")
def traces(tiny_bundle: Path, setting: RecordingSetting, tmp_path_factory: pytest.TempPathFactory) -> TraceStore:
    model = model_digest(load_manifest(tiny_bundle))
    return record(tiny_bundle, tmp_path_factory.mktemp("traces") / "tiny", model, setting)


@pytest.fixture(scope="session")
def request_for() -> Callable[..., CalibrationRequest]:
    """``request_for(scheme, **changes)``: one that allows any loss."""

    def make(scheme: str, **changes: object) -> CalibrationRequest:
        given = {"budget": {"bpb": 10.0}, "samples": 56, "new_bytes": 24, "anchors": 2} | changes
        return CalibrationRequest(scheme, PROMPTS, WINDOWS, **given)  # type: ignore[arg-type]

    return make
