import math

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from numpy.typing import NDArray
from transformers.generation.logits_process import (
    LogitsProcessor,
    MinPLogitsWarper,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from fastblt.runtime.backends.protocol import DecoderRows
from fastblt.runtime.sequence.sampling import Sampler, SamplingError, log_probabilities, probabilities

LOGITS = st.lists(st.floats(-20, 20, width=32), min_size=1, max_size=12)


def rows_of(logits: NDArray[np.float32]) -> DecoderRows:
    """Decoder rows [n, vocab] with whatever a chooser may read."""
    wide = logits.astype(np.float64)
    p = np.exp(wide - wide.max(1, keepdims=True))
    p /= p.sum(1, keepdims=True)
    probability = p.max(1).astype(np.float32)
    return DecoderRows(logits.argmax(1), probability, np.zeros_like(probability), logits)


def naive_nucleus(logits: list[float], temperature: float, top_p: float) -> list[float]:
    """Softmax; then tokens from the most likely one on until their sum reaches ``top_p``; normalized."""
    highest = max(logits)
    weights = [math.exp((x - highest) / temperature) for x in logits]
    p = [w / math.fsum(weights) for w in weights]
    kept: list[int] = []
    for token in sorted(range(len(p)), key=lambda i: -p[i]):
        kept.append(token)
        if math.fsum(p[i] for i in kept) >= top_p:
            break
    total = math.fsum(p[i] for i in kept)
    return [p[i] / total if i in kept else 0.0 for i in range(len(p))]


@given(logits=LOGITS, temperature=st.floats(0.1, 5), top_p=st.floats(0.05, 0.95))
def test_nucleus_equals_naive_loop(logits: list[float], temperature: float, top_p: float) -> None:
    found = probabilities(np.array(logits, dtype=np.float32), temperature, top_p)
    assert found.sum() == pytest.approx(1.0)
    # A sum that is top_p but for rounding may keep one token more or less.
    p = sorted(probabilities(np.array(logits, dtype=np.float32), temperature, 1.0), reverse=True)
    if np.abs(np.cumsum(p) - top_p).min() > 1e-9:
        assert found.tolist() == pytest.approx(naive_nucleus(logits, temperature, top_p), abs=1e-9)


@given(logits=LOGITS, temperature=st.floats(0.1, 5))
def test_nucleus_is_softmax_when_top_p_is_one(logits: list[float], temperature: float) -> None:
    found = probabilities(np.array(logits, dtype=np.float32), temperature, 1.0)
    wide = np.array(logits) / temperature
    expected = np.exp(wide - wide.max()) / np.exp(wide - wide.max()).sum()
    np.testing.assert_allclose(found, expected, rtol=1e-9)


def test_nucleus_is_the_smallest_set_that_reaches_top_p() -> None:
    logits = np.log(np.array([0.1, 0.5, 0.15, 0.25], dtype=np.float32))
    assert probabilities(logits, 1.0, 0.5 - 1e-6).tolist() == [0, 1, 0, 0]
    np.testing.assert_allclose(probabilities(logits, 1.0, 0.6), [0, 2 / 3, 0, 1 / 3], rtol=1e-6)
    np.testing.assert_allclose(probabilities(logits, 1.0, 0.8), [0, 0.5 / 0.9, 0.15 / 0.9, 0.25 / 0.9], rtol=1e-6)
    np.testing.assert_allclose(probabilities(logits, 1.0, 0.95), [0.1, 0.5, 0.15, 0.25], rtol=1e-6)


def test_nucleus_keeps_one_token_when_top_p_is_tiny() -> None:
    assert probabilities(np.zeros(5, dtype=np.float32), 1.0, 1e-9).tolist() == [1, 0, 0, 0, 0]


@pytest.mark.parametrize("temperature", [1e-3, 1e-30, 1e-310])
def test_nucleus_is_greedy_when_temperature_is_tiny(temperature: float) -> None:
    assert probabilities(np.array([3.0, 5.0, 4.0], dtype=np.float32), temperature, 1.0).tolist() == [0, 1, 0]


def test_nucleus_is_finite_when_logits_are_extreme() -> None:
    found = probabilities(np.array([1e30, -1e30, 0.0], dtype=np.float32), 0.5, 0.9)
    assert found.tolist() == [1, 0, 0]


@given(
    logits=LOGITS,
    temperature=st.floats(0.1, 5),
    top_p=st.floats(0.05, 1.0),
    top_k=st.integers(0, 14),
    min_p=st.floats(0.0, 1.0),
)
def test_truncations_follow_one_another_as_in_transformers(
    logits: list[float], temperature: float, top_p: float, top_k: int, min_p: float
) -> None:
    """transformers' own warpers, one after the other; a token on an edge may fall on either side of it."""
    scores = torch.tensor([logits], dtype=torch.float64)
    warpers: list[LogitsProcessor] = [TemperatureLogitsWarper(temperature)]
    warpers += [TopKLogitsWarper(top_k)] if top_k else []
    warpers += [TopPLogitsWarper(top_p)] if top_p < 1.0 else []
    warpers += [MinPLogitsWarper(min_p)] if min_p > 0.0 else []
    edges = []
    for warper in warpers:
        p = np.sort(scores.softmax(-1)[0].numpy())[::-1]
        before = {
            TopKLogitsWarper: np.diff(p[top_k - 1 : top_k + 1]),
            TopPLogitsWarper: np.append(np.cumsum(p) - top_p, np.diff(p[p > 0])),
            MinPLogitsWarper: p - min_p * p[0] if min_p < 1.0 else np.diff(p[p > 0]),
        }
        edges += np.abs(before.get(type(warper), np.ones(1))).tolist()
        scores = warper(torch.zeros(1, 0, dtype=torch.int64), scores)
    assume(min(edges, default=1.0) > 1e-9)
    found = probabilities(np.array(logits, dtype=np.float32), temperature, top_p, top_k, min_p)
    np.testing.assert_allclose(found, scores.softmax(-1)[0].numpy(), atol=1e-9)


def test_top_k_keeps_exactly_k_of_equally_likely_tokens() -> None:
    logits = np.array([1.0, 3.0, 3.0, 3.0], dtype=np.float32)
    assert probabilities(logits, 1.0, top_k=2).tolist() == [0, 0.5, 0.5, 0]
    assert probabilities(logits, 1.0, top_k=1).tolist() == [0, 1, 0, 0]
    assert probabilities(logits, 1.0, top_k=9).tolist() == probabilities(logits, 1.0).tolist()


def test_min_p_keeps_what_is_near_enough_to_the_most_likely_token() -> None:
    logits = np.log(np.array([0.5, 0.3, 0.15, 0.05], dtype=np.float32))
    np.testing.assert_allclose(probabilities(logits, 1.0, min_p=0.5), [0.625, 0.375, 0, 0], rtol=1e-6)
    assert probabilities(logits, 1.0, min_p=1.0).tolist() == [1, 0, 0, 0]
    # After the temperature: the same tokens are further apart.
    assert probabilities(logits, 0.25, min_p=0.5).tolist() == [1, 0, 0, 0]


def test_bias_moves_greedy_and_sampled_choices_and_bans_tokens() -> None:
    rows = rows_of(np.array([[0, 3, 1, 2.5]], dtype=np.float32))
    bias = np.array([0.0, -np.inf, 0.0, 0.0])
    assert not Sampler(bias=bias).takes_best
    assert Sampler(bias=np.zeros(4)).takes_best
    assert [Sampler(bias=b).choose(rows, 0) for b in (bias, np.array([3.5, 0, 0, 0]), np.zeros(4))] == [3, 0, 1]
    assert Sampler(bias=bias).draw(rows, 0) == (3, None)
    p = Sampler(0.7, seed=1, bias=bias).distribution(rows, 0)
    expected = np.exp(np.array([0, -np.inf, 1, 2.5]) / 0.7)
    np.testing.assert_allclose(p, expected / expected.sum(), rtol=1e-6)
    sampler = Sampler(5.0, seed=1, bias=bias)
    assert {sampler.choose(rows, 0) for _ in range(200)} == {0, 2, 3}


def test_greedy_takes_the_best_of_the_row_that_is_asked_for() -> None:
    rows = rows_of(np.array([[0, 3, 1], [5, 1, 2], [0, 1, 9]], dtype=np.float32))
    for sampler in (Sampler(), Sampler(0.0, 0.3, 7)):
        assert sampler.greedy
        assert [sampler.choose(rows, i) for i in (0, 1, 2, -1)] == [1, 0, 2, 2]


@pytest.mark.parametrize(
    ("temperature", "top_p", "message"),
    [
        (-0.1, 1.0, r"temperature: found -0\.1, expected a number >= 0"),
        (math.nan, 1.0, "temperature: found nan"),
        (1.0, 0.0, r"top_p: found 0\.0, expected a number in \(0, 1\]"),
        (1.0, -0.5, r"top_p: found -0\.5"),
        (1.0, 1.01, r"top_p: found 1\.01"),
        (1.0, math.nan, "top_p: found nan"),
        (0.0, 2.0, r"top_p: found 2\.0"),
    ],
)
def test_parameters_out_of_range_are_refused(temperature: float, top_p: float, message: str) -> None:
    with pytest.raises(SamplingError, match=message):
        Sampler(temperature, top_p, 0)


def test_log_probabilities_are_exact_where_float32_overflows() -> None:
    logits = np.array([[1000.0, 0.0], [3.0, 3.0]], dtype=np.float32)
    found = log_probabilities(logits, np.array([1, 0]))
    assert found.dtype == np.float64
    assert found.tolist() == pytest.approx([-1000.0, -math.log(2)], rel=1e-12)


def draw(seed: int | None, count: int, temperature: float = 1.0, top_p: float = 1.0) -> list[int]:
    logits = np.random.default_rng(0).normal(size=(3, 260)).astype(np.float32)
    rows, choose = rows_of(logits), Sampler(temperature, top_p, seed).choose
    return [choose(rows, i % 3) for i in range(count)]


def test_samples_are_a_function_of_the_seed() -> None:
    assert draw(1, 50) == draw(1, 50)
    assert draw(1, 50) != draw(2, 50)
    assert draw(None, 50) != draw(None, 50)


@pytest.mark.parametrize(("temperature", "top_p"), [(1.0, 1.0), (0.7, 1.0), (1.5, 0.8), (1.0, 0.6)])
def test_samples_have_the_probabilities_of_the_nucleus(temperature: float, top_p: float) -> None:
    """Chi-squared with a fixed seed: 6 standard deviations above its mean is far out of any doubt."""
    logits = np.array([[9, 9, 9, 9, 9, 9], [1.0, 2.5, -1.0, 0.5, 2.0, 0.0]], dtype=np.float32)
    rows, choose = rows_of(logits), Sampler(temperature, top_p, 123).choose
    count = 6000
    seen = np.bincount([choose(rows, 1) for _ in range(count)], minlength=6)
    expected = count * np.array(naive_nucleus(logits[1].tolist(), temperature, top_p))
    kept = expected > 0
    assert not seen[~kept].any()
    assert kept.sum() >= (2 if top_p < 1 else 6)
    freedom = int(kept.sum()) - 1
    statistic = float(((seen - expected)[kept] ** 2 / expected[kept]).sum())
    assert statistic < freedom + 6 * math.sqrt(2 * freedom)
    # The test would see a wrong temperature.
    wrong = count * np.array(naive_nucleus(logits[1].tolist(), temperature * 1.15, top_p))
    if (wrong > 0).sum() == kept.sum() and freedom:
        assert float(((seen - wrong)[kept] ** 2 / wrong[kept]).sum()) > statistic


@pytest.mark.parametrize("worst", [math.nan, math.inf])
def test_logits_that_are_no_numbers_are_refused(worst: float) -> None:
    logits = np.array([[0.0, worst, 1.0]], dtype=np.float32)
    rows = rows_of(np.zeros((1, 3), dtype=np.float32))._replace(logits=logits)
    with pytest.raises(SamplingError, match=f"logits: found {worst} as the greatest one, expected a finite number"):
        Sampler(1.0).choose(rows, 0)
