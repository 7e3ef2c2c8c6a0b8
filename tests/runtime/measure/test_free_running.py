"""Texts that a model generates on its own: how they are made, how diverse they are and how far they agree."""

from __future__ import annotations

import pytest

from fastblt.models.blt import Blt
from fastblt.runtime.backends.eager.backend import EagerBackend
from fastblt.runtime.blt_runtime import BltRuntime
from fastblt.runtime.measure.agreement import common_prefix
from fastblt.runtime.measure.scoring.free_running import generate_all, type_token_ratio


def test_type_token_ratio_is_of_words_between_white_space() -> None:
    assert type_token_ratio(b"a b\na\t a, b") == pytest.approx(3 / 5)
    assert type_token_ratio(b" \n") is None


def test_common_prefix() -> None:
    assert common_prefix(b"abcd", b"abXd") == 2
    assert common_prefix(b"ab", b"abc") == common_prefix(b"abc", b"ab") == 2


def test_generated_texts_are_those_of_the_runtime(tiny_model: Blt) -> None:
    runtime, prompts = BltRuntime(EagerBackend(tiny_model, 100)), [b"one", b"two"]
    found = generate_all(runtime, prompts, 30, "d:4@eb1.0", top_p=0.8, gamma=1.0, seed=7)
    single = [
        runtime.generate(prompt, 30, method="d:4@eb1.0", temperature=1.0, top_p=0.8, seed=7 + i)
        for i, prompt in enumerate(prompts)
    ]
    assert found.texts == tuple(generation.data for generation in single)
    assert found.decoder_calls == sum(generation.stats.nfe["decoder"] for generation in single)
    scores = [runtime.score(prompt, generation.data) for prompt, generation in zip(prompts, single, strict=True)]
    assert found.nats == pytest.approx(-sum(score.total for score in scores))
    greedy = generate_all(runtime, prompts, 30, "ar")
    assert greedy.texts == tuple(runtime.generate(prompt, 30, method="ar").data for prompt in prompts)
    assert found.texts != greedy.texts
