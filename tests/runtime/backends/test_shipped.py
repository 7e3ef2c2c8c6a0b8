"""The exported checkpoint generates the same text as eager PyTorch, after text that it was not trained on."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from properties import THOROUGH

from fastblt.calibration.heldout import CORPORA, load_prompts, load_text
from fastblt.models.blt import Blt
from fastblt.models.checkpoint import load_checkpoint
from fastblt.models.tokens import encode
from fastblt.runtime.backends.eager.backend import EagerBackend
from fastblt.runtime.blt_runtime import BltRuntime
from fastblt.runtime.bundle.manifest import load_manifest
from fastblt.runtime.measure.audit.comparison import audit
from fastblt.runtime.measure.audit.ties import TIE_BOUND
from fastblt.runtime.sequence.session import Session

NEW_BYTES = 96
#: The nightly profile takes one more.
PROMPTS_PER_CORPUS = 3 if THOROUGH else 2
TEXT_BYTES = 512
"""Of each of the four corpora."""


@pytest.fixture(scope="module")
def shipped_model(shipped_checkpoint: Path) -> Blt:
    """Load the eager model."""
    return load_checkpoint(shipped_checkpoint)


@pytest.fixture(scope="module")
def eager(shipped_model: Blt) -> BltRuntime:
    """Load the eager model, incremental."""
    return BltRuntime(EagerBackend(shipped_model, 2048))


@pytest.fixture(scope="module")
def onnx(demo_bundle: Path) -> BltRuntime:
    """Load the exported model."""
    return BltRuntime.from_pretrained(demo_bundle, provider="cpu", max_bytes=2048, threads=1)


@pytest.fixture(scope="module")
def prompts() -> list[tuple[str, bytes]]:
    """Return the first prompts of each corpus."""
    return [(p.id, p.data) for corpus in CORPORA for p in load_prompts(corpus)[:PROMPTS_PER_CORPUS]]


def test_every_method_writes_the_text_of_eager_autoregression(
    eager: BltRuntime, onnx: BltRuntime, prompts: list[tuple[str, bytes]]
) -> None:
    methods = ("ar", "s:2", "s:8", "dv:8@one", "dv:8@0.3", "dv:8@eb1.5+partial", "d:8@0.7", "auto")
    rows = audit(eager, [(onnx, method) for method in methods], prompts, NEW_BYTES, TIE_BOUND["fp32"])
    for row in rows:
        assert row.prompts == len(prompts) == 4 * PROMPTS_PER_CORPUS
        assert row.faults == [], row
        # A tie of two logits happens once in thousands of bytes, if at all.
        assert row.identical >= row.prompts - 1, row
        assert row.bytes > 0.5 * NEW_BYTES * row.prompts


@pytest.mark.parametrize("corpus", CORPORA)
def test_text_equals_eager_when_the_prompt_is_longer_than_windows_and_calls(
    eager: BltRuntime, onnx: BltRuntime, corpus: str
) -> None:
    prompt = load_text(corpus)[:1500]
    expected = eager.generate(prompt, 48, method="ar")
    for method in ("ar", "s:8"):
        assert onnx.generate(prompt, 48, method=method).data == expected.data


def bits(logits: NDArray[np.float32], targets: NDArray[np.int64]) -> float:
    """Sum the code lengths of tokens, in bits."""
    wide = torch.from_numpy(logits).double().log_softmax(-1)
    return -float(wide[torch.arange(len(targets)), torch.from_numpy(targets)].sum()) / float(np.log(2))


def test_bits_per_byte_equal_eager_on_held_out_text(shipped_model: Blt, onnx: BltRuntime) -> None:
    found = expected = 0.0
    random = np.random.default_rng(0)
    for corpus in CORPORA:
        ids = encode(load_text(corpus)[:TEXT_BYTES])
        with torch.inference_mode():
            whole = shipped_model(torch.from_numpy(ids[:-1]).unsqueeze(0))[0][0]
        expected += bits(whole.numpy(), ids[1:])
        session, logits = Session(onnx.backend), []
        while session.scored < len(ids) - 1:
            if session.length == session.scored:
                session.append(ids[session.length : min(session.length + int(random.integers(1, 90)), len(ids) - 1)])
            logits.append(session.score().logits.copy())
        found += bits(np.concatenate(logits), ids[1:])
    count = len(CORPORA) * TEXT_BYTES
    assert found / count == pytest.approx(expected / count, abs=1e-3)
    assert found / count < 3, "the shipped model is trained: a uniform guess takes 8 bits"


def test_shipped_bundle_is_verified_and_small(demo_bundle: Path, shipped_checkpoint: Path) -> None:
    manifest = load_manifest(demo_bundle)
    assert max(entry["max_error"] for entry in manifest.verification) < 2e-5
    checkpoint = sum(p.stat().st_size for p in shipped_checkpoint.iterdir())
    assert checkpoint <= 16e6
    stored = (shipped_checkpoint / "model.safetensors").stat().st_size
    assert sum(entry["bytes"] for entry in manifest.files.values()) < 4 * stored
