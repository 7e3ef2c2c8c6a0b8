from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from properties import THOROUGH

from fastblt.calibration.heldout import CORPORA, load_text
from fastblt.export.emulation import emulate_bf16
from fastblt.runtime.blt_runtime import BltRuntime
from fastblt.runtime.bundle.manifest import load_manifest
from fastblt.runtime.measure.scoring.figures import Figures, sum_up
from fastblt.runtime.measure.scoring.plan import ScoringRequest, make_scoring_plan
from fastblt.runtime.measure.scoring.scores import score
from fastblt.runtime.measure.scoring.windows import OVERALL, Text, cut_windows

#: Of 512 bytes, of each text; the nightly profile takes three times as many.
WINDOWS = 6 if THOROUGH else 2
REQUEST = ScoringRequest(
    k=(4, 8), draft_rules=("one",), rules=(), mask_rates=(), top_p=(1.0,), gamma=(), anchors=32, new_bytes=2
)


def figures(bundle: Path) -> Figures:
    """Bits per byte, and acceptance of BLT-S and BLT-DV, over the same places of held-out text."""
    runtime = BltRuntime.from_pretrained(bundle, max_bytes=512)
    windows = {corpus: cut_windows(Text(corpus, load_text(corpus)), WINDOWS, 512) for corpus in CORPORA}
    return sum_up(score(runtime, windows, [b"The "], make_scoring_plan(REQUEST, runtime.config)))


def bits(found: Figures) -> float:
    return next(row.bits_per_byte for row in found.text if row.data == OVERALL)


def acceptance(found: Figures) -> dict[str, float]:
    return {row.method: row.acceptance for row in found.drafts if row.data == OVERALL and row.acceptance is not None}


@pytest.fixture(scope="module")
def exact(demo_bundle: Path) -> Figures:
    return figures(demo_bundle)


@pytest.fixture(scope="module")
def half(exported: Callable[..., Path], bf16_twin: Path, shipped_checkpoint: Path) -> dict[str, Path]:
    """What runs on a CPU of each half precision."""
    return {"fp16": exported(shipped_checkpoint, dtype="fp16"), "bf16": bf16_twin}


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["fp16", "bf16"])
def test_quality_is_that_of_fp32_when_exported_in_half_precision(
    dtype: str, exact: Figures, half: dict[str, Path]
) -> None:
    """Bits per byte within 0.5 %, acceptance within one point, over the same 256 drafts of each method."""
    found = figures(half[dtype])
    assert bits(found) == pytest.approx(bits(exact), rel=0.005)
    expected = acceptance(exact)
    assert set(expected) >= {"s:4", "s:8"}
    for method, rate in acceptance(found).items():
        assert rate == pytest.approx(expected[method], abs=0.01), method


def test_values_are_rounded_as_bf16_when_emulated(
    exported: Callable[..., Path], shipped_checkpoint: Path, tmp_path: Path
) -> None:
    manifest = emulate_bf16(exported(shipped_checkpoint, dtype="bf16"), tmp_path / "twin")
    assert load_manifest(tmp_path / "twin") == manifest
    assert manifest.dtype == "bf16"
    runtime = BltRuntime.from_pretrained(tmp_path / "twin", max_bytes=100, sequences=1)
    runtime.generate(b"In the beginning", 20, method="ar")
    with runtime.session() as session:
        caches = session.sequence.graphs["decoder"].caches.buffers  # type: ignore[attr-defined]
    for buffer in caches.values():
        assert buffer.array.dtype == np.float32
        assert buffer.array.any()
        # bf16 is the upper half of fp32: the lower half of every cached value is 0.
        assert not (buffer.array.view(np.uint32) & 0xFFFF).any()
    for spec in manifest.graphs.values():
        model = onnx.load(tmp_path / "twin" / spec.file)
        kinds = {v.type.tensor_type.elem_type for v in (*model.graph.input, *model.graph.output)}
        assert onnx.TensorProto.BFLOAT16 not in kinds
