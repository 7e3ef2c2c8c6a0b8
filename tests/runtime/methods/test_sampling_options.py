"""Top-k, min-p, biases and bans: exact for sampled text, and AR's bytes for greedy text, with every lossless method."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from fakes.table_backend import Sampling, TableBackend, enumerate_texts, naive_distribution, surprise, table_logits
from properties import THOROUGH

from fastblt.models.blt import Blt
from fastblt.models.config import BltConfig
from fastblt.models.tokens import BOS_ID, BYTE_OFFSET, encode
from fastblt.runtime.backends.protocol import Backend
from fastblt.runtime.blt_runtime import BltRuntime
from fastblt.runtime.sequence.sampling import Sampler

START = (BOS_ID, 1, 0)
LENGTH = 5
SAMPLES = 800 if THOROUGH else 500
#: As in test_lossless_sampling: a right scheme is refused once in a thousand seeds, the wrong ones are far beyond.
REFUSED = 1e-3
FOUND_OUT = 1e-7
OPTIONS: dict[str, dict[str, Any]] = {
    "top-k": {"top_k": 2},
    "min-p": {"min_p": 0.45},
    "bias": {"bias": [0.9, -0.6, 0.3]},
    "ban": {"bias": [0.0, 0.0, -math.inf]},
    "all": {"bias": [-0.4, 0.5, 0.0], "top_k": 2, "top_p": 0.8, "min_p": 0.3},
}


@pytest.fixture(scope="module")
def table(tiny_config: BltConfig) -> TableBackend:
    return TableBackend(tiny_config)


def sample(table: TableBackend, method: str, options: dict[str, Any]) -> Sampling:
    given = options | ({"bias": np.array(options["bias"])} if "bias" in options else {})
    found = Sampling(Sampler(0.9, seed=1, **given))
    found.run(table, method, START, LENGTH, SAMPLES)
    return found


@pytest.mark.parametrize("name", OPTIONS)
def test_sampled_text_is_distributed_as_the_option_says(table: TableBackend, name: str) -> None:
    options = OPTIONS[name]
    longest = table.config.patching.max_patch_length
    assert longest is not None
    expected = enumerate_texts(
        lambda prefix: table_logits(prefix, longest),
        START,
        LENGTH,
        lambda logits: naive_distribution(logits, 0.9, **options),
    )
    for method in ("ar", "s:4", "dv:4@one", "dv:3@0.9+partial"):
        found = sample(table, method, options)
        assert surprise(found.seen, expected) > REFUSED, method
        if method != "ar":
            assert 0.1 * found.drafted < found.accepted < found.drafted, "neither nothing nor everything"
    # The same statistic finds out what leaves the option away.
    assert surprise(sample(table, "s:4", {}).seen, expected) < FOUND_OUT


def test_verification_by_another_distribution_than_the_drafts_is_found_out(
    table: TableBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Drafts drawn with the bias, but judged as if they had been drawn without it."""
    options = OPTIONS["bias"]
    longest = table.config.patching.max_patch_length
    assert longest is not None
    expected = enumerate_texts(
        lambda prefix: table_logits(prefix, longest),
        START,
        LENGTH,
        lambda logits: naive_distribution(logits, 0.9, **options),
    )
    plain = Sampler(0.9)
    monkeypatch.setattr(
        Sampler,
        "draw",
        lambda self, rows, index: (self._sample(self.distribution(rows, index)), plain.distribution(rows, index)),
    )
    assert surprise(sample(table, "s:4", options).seen, expected) < FOUND_OUT


@torch.inference_mode()
def naive_greedy(model: Blt, prompt: bytes, count: int, banned: bytes, bias: dict[int, float]) -> list[int]:
    """The most likely token that is not banned, one after the other; whole sequences of the eager model."""
    ids = encode(prompt).tolist()
    for _ in range(count):
        logits = model(torch.tensor([ids]))[0][0, -1].double()
        for byte, value in bias.items():
            logits[BYTE_OFFSET + byte] += value
        logits[[BYTE_OFFSET + byte for byte in banned]] = -math.inf
        ids.append(int(logits.argmax()))
    return ids[-count:]


def test_greedy_bans_and_biases_are_those_of_autoregression_with_every_method(
    backend: Backend, model_of: Callable[[Backend], Blt]
) -> None:
    runtime, prompt = BltRuntime(backend), b"some words before"
    options: dict[str, Any] = {"stop_at_eos": False}
    free = runtime.generate(prompt, 30, method="ar", **options).data
    options |= {"banned_bytes": free[:12], "logit_bias": {free[-1]: -0.5, 120: 1.5}}
    expected = naive_greedy(model_of(backend), prompt, 30, options["banned_bytes"], options["logit_bias"])
    assert expected[0] != free[0] + BYTE_OFFSET
    methods = ["ar", "s:3", "s:8", "auto"]
    if backend.config.block_size:
        methods += ["dv:4@one", "dv:4@0.4+partial", "dv:3@eb9+block"]
    for method in methods:
        found = runtime.generate(prompt, 30, method=method, **options)
        assert list(found.tokens) == expected, method
        assert not set(found.data) & set(free[:12])
    # Without them the text is what it was: nothing has been left behind.
    assert runtime.generate(prompt, 30, method="s:8", stop_at_eos=False).data == free


@pytest.mark.parametrize("kind", ["eager", "onnxruntime"])
def test_bytes_that_are_banned_never_come_out_of_blocks_either(
    open_backend: Callable[[str, str, int], Backend], kind: str
) -> None:
    runtime = BltRuntime(open_backend(kind, "embedding", 80))
    for temperature in (0.0, 1.5):
        options: dict[str, Any] = {"method": "d:4@0.5", "temperature": temperature, "stop_at_eos": False, "seed": 3}
        banned = runtime.generate(b"abc", 40, **options).data
        found = runtime.generate(b"abc", 40, banned_bytes=banned, **options)
        assert len(found.data) > 20
        assert not set(found.data) & set(banned)


def test_drafts_of_a_biased_greedy_sampler_are_biased_too(backend: Backend) -> None:
    """Up to the first patch end a draft is what verification says: unbiased drafts would hardly ever be kept."""
    runtime = BltRuntime(backend)
    free = runtime.generate(b"some words", 80, method="ar", stop_at_eos=False).data
    kept = []
    for banned in (b"", bytes(set(free))):
        found = runtime.generate(b"some words", 80, method="s:4", banned_bytes=banned, stop_at_eos=False)
        assert found.stats.acceptance is not None
        kept.append(found.stats.acceptance)
    assert kept[1] > 0.5 * kept[0]
