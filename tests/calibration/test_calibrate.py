"""Quantizes the tiny models from traces to finished bundles."""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from fakes.arrivals import arrivals, check_arrivals
from fakes.batch_twins import Play
from hypothesis import given
from hypothesis import strategies as st
from properties import examples
from shared_files import SharedFiles

from fastblt.calibration import calibrate as calibrate_module
from fastblt.calibration.calibrate import calibrate
from fastblt.calibration.precision import CalibrationError
from fastblt.calibration.report import JSON_FILE, MARKDOWN_FILE, PICTURE_FILE
from fastblt.calibration.request import CalibrationRequest
from fastblt.calibration.trace_store import TraceStore
from fastblt.models.atomic_folder import replacing_folder
from fastblt.models.tokens import encode
from fastblt.runtime.backends.cpu.backend import OnnxRuntimeBackend
from fastblt.runtime.backends.cpu.sessions import session_options
from fastblt.runtime.backends.eager.backend import EagerBackend
from fastblt.runtime.backends.eager.bundle_weights import load_eager_model
from fastblt.runtime.blt_runtime import BltRuntime
from fastblt.runtime.bundle.bundle import Bundle
from fastblt.runtime.bundle.manifest import load_manifest
from fastblt.runtime.bundle.target import TargetError
from fastblt.runtime.sequence.session import Session

Make = Callable[..., CalibrationRequest]
SCHEMES = ("w8", "w4", "int8", "fp8")
TEXT = b"In the beginning God created the heaven and the earth. And the earth was waste and void;"


@pytest.fixture(scope="module")
def quantize(
    tiny_bundle: Path, traces: TraceStore, request_for: Make, shared_files: SharedFiles
) -> Callable[[str], Path]:
    """``quantize(scheme)``: the tiny bundle in a scheme, in a folder of that name."""

    def make(scheme: str) -> Path:
        def write(folder: Path) -> None:
            calibrate(tiny_bundle, folder / scheme, request_for(scheme), traces=traces.folder)

        return shared_files.make(f"quantized-{scheme}", write) / scheme

    return make


@pytest.fixture(scope="module", params=SCHEMES)
def quantized(request: pytest.FixtureRequest, quantize: Callable[[str], Path]) -> Path:
    """The tiny bundle in each scheme."""
    return quantize(request.param)


def operators(bundle: Path, part: str, folder: Path) -> list[str]:
    """What ONNX Runtime makes of a graph."""
    manifest = load_manifest(bundle)
    options = session_options(manifest, 1)
    options.optimized_model_filepath = str(folder / "optimized.onnx")
    ort.InferenceSession(bundle / manifest.graphs[part].file, options, providers=["CPUExecutionProvider"])
    return [node.op_type for node in onnx.load(folder / "optimized.onnx").graph.node]


def test_bundle_says_what_was_done(quantized: Path, tiny_bundle: Path) -> None:
    manifest, source = load_manifest(quantized), load_manifest(tiny_bundle)
    Bundle.open(quantized)
    assert manifest.quantization is not None
    assert manifest.quantization["scheme"] == quantized.name
    assert manifest.quantized_parts == ("encoder", "global", "decoder")
    assert manifest.quantization["quality"]["after"]["bits_per_byte"] > 0
    assert manifest.quantization["quality"]["losses"]["boundaries"] == 0, "the patcher stays as it is"
    report = json.loads((quantized / JSON_FILE).read_text())
    assert report["layers"] == manifest.quantization["graphs"]
    assert set(report["quality"]["after"]["acceptance"]) >= {"s:4", "s:8"}
    assert "| bits per byte |" in (quantized / MARKDOWN_FILE).read_text()
    assert (quantized / PICTURE_FILE).read_bytes().startswith(b"\x89PNG")
    for part, spec in manifest.graphs.items():
        before = source.graphs[part].weight_bytes
        assert spec.weight_bytes == before if part == "patcher" else spec.weight_bytes < before * 0.4


def test_products_are_fused(quantized: Path, tmp_path: Path) -> None:
    expected = {"w8": "MatMulNBits", "w4": "MatMulNBits", "int8": "MatMulIntegerToFloat", "fp8": "MatMul"}
    for part in ("encoder", "global", "decoder"):
        found = operators(quantized, part, tmp_path)
        layers = load_manifest(quantized).quantization["graphs"][part]  # type: ignore[index]
        assert found.count(expected[quantized.name]) == len(layers)
        if quantized.name != "fp8":
            assert "MatMul" not in found


def test_graphs_compute_what_the_rounded_weights_say(quantized: Path) -> None:
    """The eager model of the same rounded weights, and graphs whose inputs are not rounded."""
    if quantized.name not in ("w8", "w4"):
        pytest.skip("inputs are quantized: there is no eager model of that")
    manifest = load_manifest(quantized)
    exact = OnnxRuntimeBackend.load(quantized, 200, None, session_options(manifest, 1, exact=True))
    eager = EagerBackend(load_eager_model(quantized, "cpu"), 200)
    logits = []
    for backend in (exact, eager):
        session = Session(backend)
        session.append(encode(TEXT)[session.length :])
        logits.append(session.score().logits.copy())
    np.testing.assert_allclose(logits[0], logits[1], atol=2e-4)


@pytest.mark.parametrize("rows", [1, 2, 3, 7])
def test_rows_are_the_same_to_the_bit_in_calls_of_any_size(quantized: Path, rows: int) -> None:
    """What makes verified drafts exact although inputs are rounded to 8 bits."""
    backend = BltRuntime.from_pretrained(quantized, max_bytes=200).backend
    tokens = encode(TEXT)
    found = []
    for step in (1, rows):
        session = Session(backend)
        pieces = []
        while session.length < len(tokens):
            session.append(tokens[session.length : session.length + step])
            pieces.append(session.score().logits.copy())
        found.append(np.concatenate(pieces))
    np.testing.assert_array_equal(found[0], found[1])


def test_rows_are_the_same_to_the_bit_in_calls_of_many_sequences(quantized: Path) -> None:
    backend = OnnxRuntimeBackend.load(quantized, 200, 1)
    Play(backend, backend.new_batch(4), 4, seed=1).run(25)


@pytest.fixture(scope="module")
def quantized_runtime(quantized: Path) -> BltRuntime:
    return BltRuntime.from_pretrained(quantized, max_bytes=600, threads=1, sequences=24, reuse_prompts=False)


@examples(3)
@given(st.data())
def test_texts_that_grow_together_are_those_of_texts_alone(quantized_runtime: BltRuntime, data: st.DataObject) -> None:
    check_arrivals(quantized_runtime, quantized_runtime, data.draw(arrivals(("ar", "s:4", "dv:4@one", "d:4@0.7"))))


def test_verified_drafts_write_the_same_bytes(quantized: Path) -> None:
    runtime = BltRuntime.from_pretrained(quantized, max_bytes=300)
    expected = runtime.generate(TEXT, 150, method="ar").data
    for method in ("s:4", "s:16", "dv:4@one", "dv:4@0.3+partial", "auto"):
        assert runtime.generate(TEXT, 150, method=method).data == expected, method


def test_model_that_reads_byte_states_is_quantized_too(
    tiny_encoder_bundle: Path, least_request: Make, tmp_path: Path
) -> None:
    calibrate(tiny_encoder_bundle, tmp_path / "out", least_request("w4", patcher=True, new_bytes=8))
    manifest = load_manifest(tmp_path / "out")
    assert manifest.quantized_parts == ("patcher", "encoder", "global", "decoder")
    runtime = BltRuntime.from_pretrained(tmp_path / "out", max_bytes=300)
    assert runtime.generate(TEXT, 100, method="s:8").data == runtime.generate(TEXT, 100, method="ar").data


@pytest.mark.parametrize(("dtype", "lowered"), [("bf16", False), ("fp16", False), ("fp32", True), ("bf16", True)])
def test_other_types_and_lowered_graphs_are_quantized(
    dtype: str,
    lowered: bool,
    tiny_checkpoint: Path,
    exported: Callable[..., Path],
    least_request: Make,
    tmp_path: Path,
) -> None:
    request = least_request("w4", new_bytes=8)
    result = calibrate(exported(tiny_checkpoint, dtype=dtype, lowered=lowered), tmp_path / "out", request)
    assert result.after.bits_per_byte == pytest.approx(result.before.bits_per_byte, rel=0.2)
    manifest = load_manifest(tmp_path / "out")
    assert (manifest.dtype, manifest.operators) == (dtype, "lowered" if lowered else "standard")
    for part in manifest.quantized_parts:
        model = onnx.load(tmp_path / "out" / manifest.graphs[part].file)
        onnx.checker.check_model(model)
        kinds = {node.op_type for node in model.graph.node}
        assert "DequantizeLinear" in kinds


def test_some_layers_stay_more_exact_when_the_budget_is_small(
    tiny_bundle: Path, quantize: Callable[[str], Path], traces: TraceStore, request_for: Make, tmp_path: Path
) -> None:
    uniform = load_manifest(quantize("w4")).quantization
    assert uniform is not None
    assert uniform["quality"]["losses"]["agreement"] > 0
    budget = {"agreement": uniform["quality"]["losses"]["agreement"] / 2}
    mixed = calibrate(tiny_bundle, tmp_path / "mixed", request_for("w4", budget=budget), traces=traces.folder)
    assert mixed.losses["agreement"] <= budget["agreement"]
    labels = {label for layers in mixed.precisions.values() for label in layers.values()}
    assert labels & {"w4/32", "w4/16"}
    assert mixed.precisions != uniform["graphs"]
    assert {row.group for row in mixed.sensitivities} >= {"*", "decoder.layers.0", "global_transformer.layers.1"}
    assert "quantized alone" in (tmp_path / "mixed" / MARKDOWN_FILE).read_text()


def test_nothing_is_left_when_too_much_is_lost(
    tiny_bundle: Path, traces: TraceStore, request_for: Make, tmp_path: Path
) -> None:
    request = request_for("w4", budget={"agreement": 0.0}, uniform=True)
    with pytest.raises(CalibrationError, match=r"w4, uniform: found a loss of agreement .*, allowed: agreement 0"):
        calibrate(tiny_bundle, tmp_path / "out", request, traces=traces.folder)
    assert not any(tmp_path.iterdir())


def test_earlier_bundle_stays_when_too_much_is_lost(
    tiny_bundle: Path, quantize: Callable[[str], Path], traces: TraceStore, request_for: Make, tmp_path: Path
) -> None:
    shutil.copytree(quantize("w8"), tmp_path / "out")
    before = load_manifest(tmp_path / "out")
    request = request_for("w4", budget={"agreement": 0.0}, uniform=True)
    with pytest.raises(CalibrationError, match="found a loss"):
        calibrate(tiny_bundle, tmp_path / "out", request, traces=traces.folder, force=True)
    assert load_manifest(tmp_path / "out") == before
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_traces_are_kept_and_used_again(tiny_bundle: Path, least_request: Make, tmp_path: Path) -> None:
    folder = tmp_path / "traces"
    told: list[tuple[int, int, str]] = []

    def tell(done: int, total: int, what: str) -> None:
        told.append((done, total, what))

    request = least_request("int8", ranges="mse")
    calibrate(tiny_bundle, tmp_path / "a", request, traces=folder, on_progress=tell)
    assert any(what.startswith("recording") for _, _, what in told)
    assert [done for done, _, _ in told] == sorted(done for done, _, _ in told)
    assert {total for _, total, _ in told} == {told[-1][0]}
    told.clear()
    calibrate(tiny_bundle, tmp_path / "b", request, traces=folder, on_progress=tell)
    assert not any(what.startswith("recording") for _, _, what in told)
    assert load_manifest(tmp_path / "a").files["decoder.onnx"] == load_manifest(tmp_path / "b").files["decoder.onnx"]


def test_source_is_untouched_when_the_result_is_changed(tiny_bundle: Path, least_request: Make, tmp_path: Path) -> None:
    calibrate(tiny_bundle, tmp_path / "out", least_request("w8", rounding="rtn"))
    with (tmp_path / "out" / "embeddings.safetensors").open("r+b") as file:
        file.write(b"\0" * 64)
    Bundle.open(tiny_bundle)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"samples": 3}, "--samples: found 3, expected at least 16"),
        ({"rounding": "up"}, "--rounding: found 'up', expected auto, rtn, gptq"),
        ({"ranges": "wide"}, "--range: found 'wide', expected auto, minmax"),
        ({"windows": ()}, "held-out text: found none"),
    ],
)
def test_requests_that_cannot_be_met_are_named(changes: dict[str, object], message: str, request_for: Make) -> None:
    with pytest.raises(CalibrationError, match=message):
        CalibrationRequest(**{**vars(request_for("w4")), **changes})


def test_bundles_that_cannot_be_quantized_are_named(
    tiny_bundle: Path, quantize: Callable[[str], Path], request_for: Make, tmp_path: Path
) -> None:
    with pytest.raises(CalibrationError, match=r"w8: found a bundle that is quantized already \(w8\)"):
        calibrate(quantize("w8"), tmp_path / "again", request_for("w4"))
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.txt").write_text("years of work")
    for force in (False, True):
        with pytest.raises(TargetError, match="exists and is not a bundle"):
            calibrate(tiny_bundle, tmp_path / "thesis", request_for("w4"), force=force)
    shutil.copytree(tiny_bundle, tmp_path / "other")
    with pytest.raises(TargetError, match="other: found a bundle, expected a new name; --force replaces it"):
        calibrate(tiny_bundle, tmp_path / "other", request_for("w4"))
    with pytest.raises(CalibrationError, match="found the bundle itself"):
        calibrate(tiny_bundle, tiny_bundle, request_for("w4"))


def test_what_a_killed_quantization_left_is_removed_by_the_next(
    tiny_bundle: Path, request_for: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def begin(calibration: Any, out: Path, traces: Path | None) -> None:
        (calibration.scratch / "half").write_bytes(b"half")
        with replacing_folder(out) as new:
            (new / "half").write_bytes(b"half")
            if os.getpid() != test:
                os.kill(os.getpid(), signal.SIGKILL)
            assert len(list(tmp_path.glob(".*"))) == 2, "its own two folders"
            raise CalibrationError("beyond the budget")

    test = os.getpid()
    monkeypatch.setattr(calibrate_module._Calibration, "run", begin)
    process = os.fork()
    if process == 0:
        calibrate(tiny_bundle, tmp_path / "out", request_for("w8"))
    assert os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) == -signal.SIGKILL
    assert len(list(tmp_path.glob(".out.*"))) == 2
    with pytest.raises(CalibrationError, match="beyond the budget"):
        calibrate(tiny_bundle, tmp_path / "out", request_for("w8"))
    assert list(tmp_path.iterdir()) == []
