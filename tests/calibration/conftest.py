"""Provides traces of the tiny model, and requests that are quick to meet."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from shared_files import SharedFiles

from fastblt.calibration import calibrate
from fastblt.calibration.heldout import load_prompts, load_text
from fastblt.calibration.request import CalibrationRequest, RecordingSetting
from fastblt.calibration.trace_recorder import record
from fastblt.calibration.trace_store import TraceStore, model_digest
from fastblt.runtime.bundle.manifest import load_manifest
from fastblt.runtime.measure.scoring.windows import Text, cut_windows

PROMPTS = tuple(prompt.data[:40] for prompt in load_prompts("web")[:4])
WINDOWS = tuple(cut_windows(Text("web", load_text("web")), 2, 96))
#: Changes for a request whose numbers do not matter.
LEAST = {"prompts": PROMPTS[:1], "windows": WINDOWS[:1], "samples": 16, "new_bytes": 16, "anchors": 1}


@pytest.fixture(autouse=True, scope="package")
def _short_audits() -> Iterator[None]:
    """Audit fewer bytes than the command does; `test_verified_drafts_write_the_same_bytes` generates more of them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(calibrate, "AUDIT_BYTES", 16)
        yield


@pytest.fixture(scope="session")
def setting() -> RecordingSetting:
    return RecordingSetting(PROMPTS, samples=56, new_bytes=24)


@pytest.fixture(scope="session")
def traces(tiny_bundle: Path, setting: RecordingSetting, shared_files: SharedFiles) -> TraceStore:
    """What `request_for` asks for, recorded once."""
    model = model_digest(load_manifest(tiny_bundle))
    folder = shared_files.make("traces-tiny", lambda new: record(tiny_bundle, new, model, setting))
    return record(tiny_bundle, folder, model, setting)


@pytest.fixture(scope="session")
def request_for() -> Callable[..., CalibrationRequest]:
    """``request_for(scheme, **changes)``: one that allows any loss."""

    def make(scheme: str, **changes: object) -> CalibrationRequest:
        given = {"prompts": PROMPTS, "windows": WINDOWS, "samples": 56, "new_bytes": 24, "anchors": 2}
        return CalibrationRequest(scheme, **{"budget": {"bpb": 10.0}, **given, **changes})  # type: ignore[arg-type]

    return make


@pytest.fixture(scope="session")
def least_request(request_for: Callable[..., CalibrationRequest]) -> Callable[..., CalibrationRequest]:
    """``least_request(scheme, **changes)``: the quickest to meet, of one prompt and one window."""

    def make(scheme: str, **changes: object) -> CalibrationRequest:
        return request_for(scheme, **{**LEAST, **changes})

    return make
