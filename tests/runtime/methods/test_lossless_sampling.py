"""Sampled text of the verifying methods is distributed like the autoregressive method's: chi-squared, fixed seeds.

The model is `TableBackend`, whose every continuation has a probability that is known exactly. A smaller test does the
same with a real network.

Every test of a right scheme has its twin: wrong schemes are found out by the same statistic.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from functools import cache
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from fakes.table_backend import (
    Distributions,
    Sampling,
    TableBackend,
    Text,
    enumerate_texts,
    naive_distribution,
    surprise,
    table_logits,
)
from hypothesis import given
from hypothesis import strategies as st
from properties import examples

from fastblt.models.blt import Blt
from fastblt.models.config import BltConfig
from fastblt.models.tokens import BOS_ID, encode
from fastblt.runtime.backends.protocol import Backend, DecoderRows, Floats
from fastblt.runtime.methods import denoising
from fastblt.runtime.sequence.requests import draft_with_block
from fastblt.runtime.sequence.sampling import Distribution, Draft, Sampler
from fastblt.runtime.sequence.session import Session

LENGTH = 5
SAMPLES = 2000
#: A right scheme is refused once in a thousand seeds, and the seed is fixed; the wrong ones are far beyond.
REFUSED = 1e-3
FOUND_OUT = 1e-7
PROMPT = (1, 0)


@pytest.fixture(scope="module")
def table(tiny_config: BltConfig) -> TableBackend:
    return TableBackend(tiny_config)


START = (BOS_ID, *PROMPT)


def nucleus(temperature: float, top_p: float) -> Callable[[Floats], list[float]]:
    return lambda logits: naive_distribution(logits, temperature, top_p=top_p)


@pytest.fixture(scope="module")
def expected(tiny_config: BltConfig) -> Distributions:
    longest = tiny_config.patching.max_patch_length
    assert longest is not None
    return enumerate_texts(lambda prefix: table_logits(prefix, longest), START, LENGTH, nucleus(0.9, 0.9))


def sample_table(table: TableBackend, method: str, seed: int = 1) -> Sampling:
    found = Sampling(Sampler(0.9, 0.9, seed))
    found.run(table, method, START, LENGTH, SAMPLES)
    return found


VERIFYING = (
    "s:2",
    "s:4",
    "s:3+partial",
    "dv:4@one",
    "dv:4@one+block",
    "dv:4@0.4",
    "dv:3@0.9",
    "dv:4@eb1.0",
    "dv:4@ebmax0.5",
    "dv:3@eb0.2+block",
    "dv:4@one+partial",
    "dv:4@0.4+partial",
    "dv:3@0.99+partial+block",
)


@pytest.mark.parametrize("method", ["ar", *VERIFYING])
def test_sampled_text_is_distributed_like_autoregression(
    table: TableBackend, expected: Distributions, method: str
) -> None:
    found = sample_table(table, method)
    assert surprise(found.seen, expected) > REFUSED
    if method != "ar":
        assert 0.1 * found.drafted < found.accepted < 0.9 * found.drafted, "neither nothing nor everything"
        assert found.rounds > 2.2 * SAMPLES, "a text is several rounds long"


def accept_always(self: Sampler, token: int, q: Distribution | None, rows: DecoderRows, index: int) -> int:
    """Verification that verifies nothing."""
    return token


def resample_from_model(self: Sampler, token: int, q: Distribution | None, rows: DecoderRows, index: int) -> int:
    """A rejected token is replaced by a sample of p, not of the positive part of p - q."""
    p = self.distribution(rows, index)
    if q is not None and self._rng.random() * q[token] < p[token]:
        return token
    return self._sample(p)


def compare_with_greatest(self: Sampler, token: int, q: Distribution | None, rows: DecoderRows, index: int) -> int:
    """A token is kept with probability p, not with min(1, p / q)."""
    p = self.distribution(rows, index)
    if q is None:
        return self._sample(p)
    return token if self._rng.random() < p[token] else self._sample(np.maximum(p - q, 0.0) + 1e-12 * p)


@pytest.mark.parametrize("method", ["s:4", "dv:4@one", "dv:4@0.4+partial"])
@pytest.mark.parametrize("wrong", [accept_always, resample_from_model, compare_with_greatest])
def test_wrong_verification_is_found_out(
    table: TableBackend,
    expected: Distributions,
    method: str,
    wrong: Callable[..., int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Sampler, "_verify", wrong)
    assert surprise(sample_table(table, method).seen, expected) < FOUND_OUT


@pytest.mark.parametrize("method", ["dv:3@0.9", "dv:3@eb0.2+block", "dv:3@0.99+partial+block"])
def test_bytes_decided_before_their_predecessors_must_not_be_judged_by_their_distribution(
    table: TableBackend, expected: Distributions, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A scheme that takes a diffusion draft for an autoregressive one is found out."""
    nothing_is_late = SimpleNamespace(accumulate=lambda steps: steps)
    monkeypatch.setattr(denoising, "np", SimpleNamespace(**{**vars(np), "maximum": nothing_is_late}))
    assert surprise(sample_table(table, method).seen, expected) < FOUND_OUT


def test_most_bytes_of_ordered_blocks_are_judged_by_their_distribution(table: TableBackend) -> None:
    """Were none of them, the tests of p / q above would be about nothing; were all of them, about no late byte."""
    for method, low, high in (("dv:4@one", 1.0, 1.0), ("dv:4@0.4", 0.3, 0.9), ("dv:4@eb1.0", 0.3, 0.9)):
        known = total = 0
        for seed in range(30):
            session, sampler = Session(table), Sampler(0.9, 0.9, seed)
            session.append(PROMPT)
            session.score()
            session.append([1])
            rule = denoising.parse_rule(method.partition("@")[2])
            draft = session.run(denoising.denoise_block(sampler, 4, rule, draft_with_block, clean_first=True))
            known += sum(q is not None for q in draft.proposals)
            total += 4
        assert low <= known / total <= high, method


PROMPT_TEXT = b"some text before"


NETWORK_T, NETWORK_P = 0.4, 0.35


@pytest.fixture(scope="module")
def network(
    open_backend: Callable[[str, str, int], Backend], tiny_model: Blt, tiny_encoder_model: Blt
) -> Callable[[str], tuple[Backend, Distributions]]:
    """``network(decoder_input)``: a real one behind ONNX Runtime, and its probabilities by eager whole sequences."""
    prompt = tuple(encode(PROMPT_TEXT).tolist())

    @cache
    def load(decoder_input: str) -> tuple[Backend, Distributions]:
        model = {"embedding": tiny_model, "encoder": tiny_encoder_model}[decoder_input]

        @torch.inference_mode()
        def row(prefix: Text) -> Floats:
            logits: Floats = model(torch.tensor([prefix]))[0][0, -1].numpy()
            return logits

        expected = enumerate_texts(row, prompt, 4, nucleus(NETWORK_T, NETWORK_P))
        return open_backend("onnxruntime", decoder_input, 80), expected

    return load


@pytest.mark.parametrize(
    ("decoder_input", "method"),
    [
        ("encoder", "s:2"),
        ("embedding", "s:2"),
        ("embedding", "dv:4@one"),
        ("embedding", "dv:4@0.02+partial"),
        ("embedding", "dv:4@eb11"),
    ],
)
def test_sampled_text_of_a_network_is_distributed_like_autoregression(
    network: Callable[[str], tuple[Backend, Distributions]], decoder_input: str, method: str
) -> None:
    backend, expected = network(decoder_input)
    found = Sampling(Sampler(NETWORK_T, NETWORK_P, 3))
    found.run(backend, method, tuple(encode(PROMPT_TEXT).tolist()), 4, 500)
    assert surprise(found.seen, expected) > REFUSED
    assert 0.02 * found.drafted < found.accepted < 0.9 * found.drafted


class Grid:
    """Gives the next of some numbers instead of a random one, and notes how many were wanted."""

    def __init__(self, *numbers: float) -> None:
        self.numbers = numbers
        self.used = 0

    def random(self) -> float:
        self.used += 1
        return self.numbers[self.used - 1]


def judged(p: Distribution, q: Distribution | None, token: int, points: int) -> Distribution:
    """Distribution of the byte that comes out where a drafted one stands, integrated over all random numbers."""
    sampler, rows = Sampler(1.0, 1.0, 0), rows_of(np.log(p)[None].astype(np.float32))
    found = np.zeros(len(p))
    middles = (np.arange(points) + 0.5) / points
    for first in middles:
        for second in middles:
            sampler._rng = grid = Grid(first, second)  # type: ignore[assignment]
            kept, following = sampler.verify(Draft([token], [q]), 0, rows)
            assert (following is None) == (kept == 1)
            if grid.used == 1:
                found[token if following is None else following] += points
                break
            assert following is not None or q is None
            found[token if following is None else following] += 1
    return found / points**2


def rows_of(logits: Floats) -> DecoderRows:
    zeros = np.zeros(len(logits), dtype=np.float32)
    return DecoderRows(logits.argmax(1), zeros, zeros, logits)


WEIGHTS = st.lists(st.integers(0, 20), min_size=4, max_size=4).filter(lambda w: sum(w) > 0)


@examples(12)
@given(p=WEIGHTS, q=WEIGHTS)
def test_judged_byte_has_the_distribution_of_the_model(p: list[int], q: list[int]) -> None:
    points = 40
    model, draft = ((np.array(w) + 1e-9) / (np.array(w) + 1e-9).sum() for w in (p, q))
    found = sum(draft[x] * judged(model, draft, x, points) for x in range(4))
    np.testing.assert_allclose(found, model, atol=2.5 / points)


@examples(12)
@given(p=WEIGHTS, token=st.integers(0, 3))
def test_judged_byte_of_unknown_origin_has_the_distribution_of_the_model(p: list[int], token: int) -> None:
    """Whatever was drafted."""
    model = (np.array(p) + 1e-9) / (np.array(p) + 1e-9).sum()
    np.testing.assert_allclose(judged(model, None, token, 40), model, atol=2.5 / 40)


@examples(30)
@given(p=WEIGHTS, data=st.data())
def test_byte_drawn_from_the_model_itself_is_always_kept(p: list[int], data: st.DataObject) -> None:
    logits = np.log(np.array(p) + 1e-9)[None].astype(np.float32)
    sampler, rows = Sampler(1.0, 1.0, data.draw(st.integers(0, 99))), rows_of(logits)
    token, q = sampler.draw(rows, 0)
    assert sampler.verify(Draft([token], [q]), 0, rows) == (1, None)


def test_verification_continues_where_it_stopped_and_ends_with_a_free_byte() -> None:
    """The same bytes whether the rows come at once or in parts."""
    random = np.random.default_rng(0)
    rows = rows_of(random.normal(size=(4, 5)).astype(np.float32))
    ends = Counter[int]()
    for seed in range(60):
        q = [sampler_q(random) for _ in range(3)]
        draft = Draft([int(random.choice(5, p=p)) for p in q], [q[0], None, q[2]])
        whole = Sampler(1.0, 1.0, seed).verify(draft, 0, rows)
        for cut in range(1, 4):
            sampler = Sampler(1.0, 1.0, seed)
            kept, following = sampler.verify(draft, 0, rows.part(0, cut))
            if following is None:
                assert kept == cut
                kept, following = sampler.verify(draft, kept, rows.part(cut))
            assert (kept, following) == whole
        assert whole[1] is not None
        ends[whole[0]] += 1
    assert set(ends) == {0, 1, 2, 3}


def sampler_q(random: np.random.Generator) -> Distribution:
    q: Distribution = random.random(5)
    return q / q.sum()
