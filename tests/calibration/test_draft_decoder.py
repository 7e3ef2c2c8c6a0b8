"""A draft decoder is quantized with the other graphs, from calls of blocks, and judged by the bytes that it guesses."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from fastblt.calibration import calibrate as calibrate_module
from fastblt.calibration.calibrate import calibrate
from fastblt.calibration.report import JSON_FILE, MARKDOWN_FILE
from fastblt.calibration.request import CalibrationRequest, RecordingSetting
from fastblt.calibration.sensitivity import WHOLE_GRAPH
from fastblt.calibration.trace_recorder import MASKED_STRATA, record
from fastblt.calibration.trace_store import TraceStore, model_digest
from fastblt.models.tokens import MASK_ID
from fastblt.runtime.blt_runtime import BltRuntime
from fastblt.runtime.bundle.bundle import Bundle
from fastblt.runtime.bundle.manifest import load_manifest

PROMPT = b"In the beginning God created the heaven"


@pytest.fixture(scope="module")
def traces(tiny_mixed_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> TraceStore:
    model = model_digest(load_manifest(tiny_mixed_bundle))
    folder = tmp_path_factory.mktemp("mixed") / "traces"
    return record(tiny_mixed_bundle, folder, model, RecordingSetting((PROMPT,), 16, 24))


def test_calls_of_blocks_are_those_of_the_draft_decoder(traces: TraceStore) -> None:
    kinds = {
        part: {sample.stratum for sample in traces.samples if sample.part == part} for part in ("decoder", "draft")
    }
    assert kinds["draft"] <= set(MASKED_STRATA)
    assert "masked-100" in kinds["draft"]
    assert kinds["decoder"] == {"prefill", "byte", "chunk"}
    for sample, arrays in traces.read("draft"):
        assert (arrays["ids"] == MASK_ID).any()
        assert arrays["ids"].shape[1] == sample.rows
        # Keys and values of the text that the decoder has read, and nothing from the block's first row on.
        assert np.abs(arrays["key_0"][:, :, : int(arrays["write_index"][0])]).sum() > 0
        assert not arrays["key_0"][:, :, int(arrays["write_index"][0]) :].any()


def test_draft_decoder_is_quantized(
    tiny_mixed_bundle: Path,
    traces: TraceStore,
    least_request: Callable[..., CalibrationRequest],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    sets, whole = calibrate_module._sets, ("draft", WHOLE_GRAPH)
    monkeypatch.setattr(calibrate_module, "_sets", lambda groups: [each for each in sets(groups) if each[:2] == whole])
    out = tmp_path / "out"
    request = least_request("int8", ranges="minmax", sensitivity=True, prompts=(PROMPT,), new_bytes=24)
    calibrate(tiny_mixed_bundle, out, request, traces=traces.folder)
    manifest, source = Bundle.open(out).manifest, load_manifest(tiny_mixed_bundle)
    assert manifest.quantized_parts == ("encoder", "global", "decoder", "draft")
    assert manifest.graphs["draft"].weight_bytes < source.graphs["draft"].weight_bytes * 0.4
    report = json.loads((out / JSON_FILE).read_text())
    losses = {row["part"]: row["loss"] for row in report["sensitivity"]}
    assert list(losses) == ["draft"]
    # All graphs together lose it: the others hardly change what is guessed.
    assert losses["draft"] == pytest.approx(report["quality"]["losses"]["masked"], abs=0.02)
    assert "of the draft graph: masked accuracy" in (out / MARKDOWN_FILE).read_text()
    runtime = BltRuntime.from_pretrained(out, max_bytes=120)
    expected = runtime.generate(PROMPT, 40, method="ar").data
    assert runtime.generate(PROMPT, 40, method="dv:4@one").data == expected
