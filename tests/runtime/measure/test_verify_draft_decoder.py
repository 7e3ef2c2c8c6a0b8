"""`verify` compares the graph of a draft decoder by its own name, and records calls of it for Polygraphy."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from fakes.cuda import FakeCuda

from fastblt.runtime.backends.gpu.graph import DeviceGraph
from fastblt.runtime.measure.verify import polygraphy_files
from fastblt.runtime.measure.verify.run import VerifyReport, VerifyRequest, run_verify

PROMPT = b"In the beginning God created the heaven and the earth. " * 14


@pytest.fixture
def verify(compiled: Callable[..., Path], tiny_mixed_checkpoint: Path, gpu: FakeCuda) -> Callable[[str], VerifyReport]:
    """``verify(method)``: the report of a method, on a stand-in GPU."""
    bundle = compiled(tiny_mixed_checkpoint)

    def run(method: str) -> VerifyReport:
        request = VerifyRequest(methods=(method,), prompts=1, max_new_bytes=12)
        return run_verify(bundle, request, [PROMPT], [("one", PROMPT)])

    return run


def test_outputs_of_the_draft_decoder_are_compared(verify: Callable[[str], VerifyReport]) -> None:
    report = verify("dv:4@one")
    assert report.passed
    seen = {(found.graph, found.output): found.calls for found in report.comparisons}
    outputs = ("logits", "probability", "entropy", "best")
    assert {output for graph, output in seen if graph == "draft"} == set(outputs)
    # Caches are the decoder's; byte states are what it reads.
    assert seen.keys() >= {("decoder", "key cache"), ("decoder", "logits"), ("encoder", "states")}
    assert list(dict.fromkeys(graph for graph, _ in seen)) == ["patcher", "encoder", "global", "decoder", "draft"]


def test_draft_decoder_that_computes_something_else_is_named(
    verify: Callable[[str], VerifyReport], monkeypatch: pytest.MonkeyPatch
) -> None:
    launch = DeviceGraph.launch
    monkeypatch.setattr(DeviceGraph, "launch", lambda self: None if self.spec.file == "draft.onnx" else launch(self))
    report = verify("d:4@0.7")
    assert {found.graph for found in report.wrong} >= {"draft"}
    assert not any(found.output in ("logits", "entropy", "best") for found in report.wrong if found.graph != "draft")


def test_calls_of_the_draft_decoder_are_recorded(tiny_mixed_bundle: Path, tmp_path: Path) -> None:
    calls = polygraphy_files.write_polygraphy_files(tiny_mixed_bundle, tmp_path / "files", PROMPT)
    found = {call.part: call for call in calls}
    assert list(found) == ["patcher", "encoder", "global", "decoder", "draft"]
    assert [call.rows for call in calls if call.part == "draft"] == [4]
    assert "ids:[1,4]" in found["draft"].commands("bundle")[-1]
    assert found["draft"].graph == "draft.onnx"
