"""All scores of a model: the graphs against the eager backend and against another model, and the same at every call."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np
import pytest

from fastblt.models.blt import Blt
from fastblt.models.config import BltConfig
from fastblt.models.tokens import encode
from fastblt.runtime.backends.eager.backend import EagerBackend
from fastblt.runtime.backends.protocol import Backend
from fastblt.runtime.blt_runtime import BltRuntime
from fastblt.runtime.measure.scoring.comparison import BOUNDS, compare
from fastblt.runtime.measure.scoring.figures import sum_up
from fastblt.runtime.measure.scoring.plan import SamplingPoint, ScoringPlan
from fastblt.runtime.measure.scoring.scores import count_steps, score
from fastblt.runtime.methods import parse_method


@pytest.fixture(scope="module")
def small() -> ScoringPlan:
    return ScoringPlan(
        drafts=(parse_method("s:4"), parse_method("dv:4@one")),
        blocks=(parse_method("d:4@0.5"),),
        mask_size=4,
        mask_rates=(0.5, 1.0),
        sampling=(SamplingPoint(parse_method("ar"), 0.9, None), SamplingPoint(parse_method("d:4@eb1.0"), 0.9, 1.0)),
        new_bytes=24,
    )


def test_graphs_agree_with_eager_and_another_model_does_not(
    open_backend: Callable[[str, str, int], Backend],
    make_model: Callable[..., Blt],
    tiny_config: BltConfig,
    small: ScoringPlan,
) -> None:
    runtimes = {
        "onnxruntime": BltRuntime(open_backend("onnxruntime", "embedding", 128)),
        "eager": BltRuntime(open_backend("eager", "embedding", 128)),
        "other": BltRuntime(EagerBackend(make_model(tiny_config, seed=1), 128)),
    }
    texts = {name: [encode(np.random.default_rng(seed).bytes(64))] for name, seed in (("a", 0), ("b", 1))}
    told: list[int] = []
    found = {
        name: score(runtime, texts, [b"In the", b"def "], small, lambda *each: told.append(each))
        for name, runtime in runtimes.items()
    }
    steps = count_steps(texts, small)
    assert [each[:2] for each in told] == 3 * [(done, steps) for done in range(steps + 1)]
    checks = compare(found["onnxruntime"], found["eager"], BOUNDS["fp32"])
    assert all(check.agree for check in checks), checks
    assert {check.figure: check.compared for check in checks} == {
        "bits_per_byte": 3, "patches": 2, "drafts": 2 * 4 * 2, "masked": 2 * 4 * 4, "blocks": 2 * 4,
        "generation": 4, "diversity": 4,
    }  # fmt: skip
    wrong = {check.figure for check in compare(found["other"], found["eager"], BOUNDS["fp32"]) if not check.agree}
    assert wrong >= {"bits_per_byte", "patches", "generation", "diversity"}


def test_scores_are_the_same_at_every_call(tiny_model: Blt, small: ScoringPlan) -> None:
    runtime = BltRuntime(EagerBackend(tiny_model, 128))
    texts = {"a": [encode(bytes(range(60, 124)))]}
    one, two = (score(runtime, texts, [b"a"], small) for _ in range(2))
    assert sum_up(one) == sum_up(two)
    other = score(runtime, texts, [b"a"], dataclasses.replace(small, seed=1))
    assert other.windows["a"][0].nats == one.windows["a"][0].nats
    assert other.windows["a"][0].masked != one.windows["a"][0].masked
    assert other.sampled != one.sampled
