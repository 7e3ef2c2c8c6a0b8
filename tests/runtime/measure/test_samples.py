"""The same text by several methods."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from fastblt.runtime.blt_runtime import BltRuntime
from fastblt.runtime.measure.samples import write_samples
from fastblt.runtime.methods import MethodError

PROMPT = b"A prompt"


@pytest.fixture(scope="module")
def runtime(tiny_bundle: Path) -> BltRuntime:
    return BltRuntime.from_pretrained(tiny_bundle, max_bytes=256, threads=1)


def test_each_method_writes_its_text_and_ar_comes_first(runtime: BltRuntime) -> None:
    steps: list[tuple[int, int, str]] = []
    ar, drafted, other = write_samples(runtime, ["s:4", "ar", "d:4@one"], PROMPT, 40, lambda *step: steps.append(step))
    assert [ar.method, drafted.method, other.method] == ["ar", "s:4", "d:4@one"]
    assert ar.data == runtime.generate(PROMPT, 40, method="ar").data
    assert ar.digest == drafted.digest == hashlib.sha256(ar.data).hexdigest()
    assert (ar.lossless, drafted.lossless, other.lossless) == (True, True, False)
    assert (ar.same_bytes, drafted.same_bytes) == (len(ar.data), len(ar.data))
    assert other.data[: other.same_bytes] == ar.data[: other.same_bytes]
    assert other.data[other.same_bytes :][:1] != ar.data[other.same_bytes :][:1] or other.data == ar.data
    assert {origin for chunk in drafted.chunks for origin in chunk.origins} >= {
        "accepted"
    } or drafted.stats.accepted == 0
    assert [name for _, _, name in steps] == ["ar", "s:4", "d:4@one"]


def test_nothing_is_generated_where_the_model_cannot_run_a_method(tiny_encoder_bundle: Path) -> None:
    runtime = BltRuntime.from_pretrained(tiny_encoder_bundle, max_bytes=256, threads=1)
    steps: list[str] = []
    with pytest.raises(MethodError):
        write_samples(runtime, ["d:4@one"], PROMPT, 8, lambda _, __, name: steps.append(name))
    assert steps == []
