"""Log-probabilities of given text: those of one pass of the eager model over the whole sequence."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fastblt.calibration.heldout import load_text
from fastblt.models.blt import Blt
from fastblt.models.tokens import BOS_ID, decode, encode
from fastblt.runtime.backends.protocol import MAX_ROWS, Backend, CapacityError
from fastblt.runtime.blt_runtime import BltRuntime
from fastblt.runtime.measure.scoring.windows import Text, cut_windows

ModelOf = Callable[[Backend], Blt]
OpenBackend = Callable[[str, str, int], Backend]
RANDOM = np.random.default_rng(0).bytes(3 * MAX_ROWS)


@torch.inference_mode()
def eager_logprobs(model: Blt, prompt: bytes, continuation: bytes) -> list[float]:
    ids = encode(prompt + continuation)
    logits = model(torch.from_numpy(ids[:-1])[None])[0][0].double().log_softmax(-1)
    every = logits[torch.arange(len(ids) - 1), torch.from_numpy(ids[1:])].tolist()
    return every[len(prompt) :]


@pytest.mark.parametrize(
    ("prompt", "size"), [(0, 1), (0, 40), (1, 1), (1, 30), (40, 30), (MAX_ROWS + 9, 20), (5, MAX_ROWS + 30)]
)
def test_score_is_that_of_the_whole_sequence(backend: Backend, model_of: ModelOf, prompt: int, size: int) -> None:
    before, after = RANDOM[:prompt], RANDOM[prompt : prompt + size]
    found = BltRuntime(backend).score(before, after)
    assert found.data == after
    assert found.logprobs.dtype == np.float64
    assert found.logprobs.shape == (size,)
    assert found.greedy.dtype == np.bool_
    assert found.greedy.shape == (size,)
    expected = eager_logprobs(model_of(backend), before, after)
    np.testing.assert_allclose(found.logprobs, expected, atol=2e-4, rtol=0)
    assert found.total == pytest.approx(sum(expected), rel=1e-5)
    assert found.bits_per_byte == pytest.approx(-sum(expected) / math.log(2) / size, rel=1e-5)


@pytest.mark.parametrize("method", ["ar", "s:4", "auto"])
def test_score_of_generated_bytes_is_their_logprobs(backend: Backend, method: str) -> None:
    runtime = BltRuntime(backend)
    found = runtime.generate(b"some words", 40, method=method, logprobs=True)
    score = runtime.score(b"some words", found.data)
    np.testing.assert_allclose(score.logprobs, found.logprobs, atol=2e-4, rtol=0)
    assert score.greedy.all()
    other = runtime.score(b"some words", bytes([found.data[0] ^ 1]) + found.data[1:])
    assert not other.greedy[0]


def test_text_and_ids_are_scored_as_their_bytes(open_backend: OpenBackend) -> None:
    runtime = BltRuntime(open_backend("onnxruntime", "embedding", 80), reuse_prompts=False)
    expected = runtime.score("naïve ".encode(), "café".encode())
    ids = np.array([BOS_ID, *encode("naïve ", bos=False)])
    for prompt, continuation in (("naïve ", "café"), (ids, "café"), (ids, "café".encode())):
        found = runtime.score(prompt, continuation)
        assert found.data == "café".encode()
        assert found.logprobs.tolist() == expected.logprobs.tolist()


def test_empty_continuation_is_certain(open_backend: OpenBackend) -> None:
    runtime = BltRuntime(open_backend("onnxruntime", "embedding", 80))
    for prompt in (b"", b"abc"):
        found = runtime.score(prompt, b"")
        assert (found.data, found.logprobs.shape, found.total, found.bits_per_byte) == (b"", (0,), 0.0, None)


def test_score_fits_the_capacity_or_is_refused(open_backend: OpenBackend) -> None:
    runtime = BltRuntime(open_backend("onnxruntime", "embedding", 20))
    assert len(runtime.score(b"x" * 12, b"y" * 8).logprobs) == 8
    with pytest.raises(CapacityError, match="found 12 bytes and a continuation of 9, expected at most max_bytes=20"):
        runtime.score(b"x" * 12, b"y" * 9)


def test_continuation_that_is_not_text_is_refused(open_backend: OpenBackend) -> None:
    runtime = BltRuntime(open_backend("onnxruntime", "embedding", 20))
    wrong: Any = [5, 6]
    with pytest.raises(ValueError, match="continuation: found list, expected bytes or text"):
        runtime.score(b"abc", wrong)


def test_bits_per_byte_of_the_shipped_model_are_the_documented_ones(demo_bundle: Path) -> None:
    results = json.loads((Path(__file__).parents[2] / "docs" / "results" / "eval.json").read_text(encoding="utf-8"))
    rows = results["backends"]["onnxruntime"]["figures"]["text"]
    (documented,) = [row for row in rows if row["data"] == "web"]
    windows = cut_windows(Text("web", load_text("web")), documented["windows"], results["setting"]["window_bytes"])
    runtime = BltRuntime.from_pretrained(demo_bundle, provider="cpu", max_bytes=600, threads=1)
    scores = [runtime.score(b"", decode(ids)) for ids in windows]
    count = sum(len(score.data) for score in scores)
    assert count == documented["bytes"]
    bits = -sum(score.total for score in scores) / math.log(2) / count
    assert bits == pytest.approx(documented["bits_per_byte"], rel=1e-4)
