"""Which bytes of a block are decided in which step, and what is known of how they came about."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastblt.models.config import BltConfig
from fastblt.models.tokens import MASK_ID
from fastblt.runtime.backends.protocol import DecoderRows, Floats, Ids
from fastblt.runtime.methods import MethodError, parse_method
from fastblt.runtime.methods.block_argument import BlockArgument
from fastblt.runtime.methods.denoising import (
    Confidence,
    EntropyBounded,
    MaximumBounded,
    OneStep,
    Rule,
    denoise_block,
    parse_rule,
)
from fastblt.runtime.sequence.requests import DenoiseRequest, draft_with_block
from fastblt.runtime.sequence.sampling import Draft, Sampler

VALUES = st.lists(st.floats(0, 1, width=32), min_size=1, max_size=16)


def floats(*values: float) -> Floats:
    return np.array(values, dtype=np.float32)


@pytest.mark.parametrize(
    ("probability", "alpha", "expected"),
    [
        ([0.9, 0.2, 0.8], 0.5, [0, 2]),
        ([0.9, 0.2, 0.8], 0.85, [0]),
        ([0.5, 0.25, 0.75], 0.5, [2]),  # greater, not equal
        ([0.1, 0.4, 0.3], 0.5, [1]),  # none is sure: the most probable one
        ([0.4, 0.4, 0.3], 0.5, [0]),  # of equals the first
        ([0.5, 0.5], 0.5, [0]),
        ([0.1], 0.7, [0]),
        ([0.1, 0.2], 0.0, [0, 1]),
    ],
)
def test_confidence_decides_sure_bytes_or_the_surest(
    probability: list[float], alpha: float, expected: list[int]
) -> None:
    found = Confidence(alpha)(floats(*probability), floats(*[9.0] * len(probability)))
    assert found.tolist() == expected


@pytest.mark.parametrize(
    ("entropy", "gamma", "expected"),
    [
        ([0.5, 0.25, 1.0, 0.125], 1.0, [3, 1, 0]),  # 0.125 + 0.25 + 0.5 = 0.875, with 1.0 too much
        ([0.5, 0.25, 1.0, 0.125], 0.875, [3, 1, 0]),  # the bound itself is allowed
        ([0.5, 0.25, 1.0, 0.125], 0.8, [3, 1]),
        ([0.5, 0.25, 1.0, 0.125], 0.1, [3]),  # at least one
        ([0.5, 0.25, 1.0, 0.125], 0.0, [3]),
        ([0.5, 0.25, 1.0, 0.125], 2.0, [3, 1, 0, 2]),
        ([0.5, 0.25, 0.25], 0.25, [1]),  # of equals the first
        ([2.0, 2.0], 1.0, [0]),
        ([0.0, 0.0, 0.0], 0.0, [0, 1, 2]),
    ],
)
def test_entropy_bound_is_of_the_sum_from_the_lowest_on(
    entropy: list[float], gamma: float, expected: list[int]
) -> None:
    found = EntropyBounded(gamma)(floats(*[0.1] * len(entropy)), floats(*entropy))
    assert found.tolist() == expected


@pytest.mark.parametrize(
    ("entropy", "gamma", "expected"),
    [
        ([0.5, 0.25, 1.0, 0.125], 0.8, [3, 1, 0]),  # 0.125 + 0.25, and 0.5 does not count
        ([0.5, 0.25, 1.0, 0.125], 0.875, [3, 1, 0, 2]),  # the bound itself is allowed
        ([0.5, 0.25, 1.0, 0.125], 0.125, [3, 1]),
        ([0.5, 0.25, 1.0, 0.125], 0.1, [3]),
        ([2.0, 3.0], 0.0, [0]),
        ([2.0, 0.0], 0.0, [1, 0]),  # one byte after what is certain loses nothing, however uncertain
        ([0.5, 0.25, 0.25], 0.25, [1, 2]),  # of equals the first
        ([9.0], 0.0, [0]),
    ],
)
def test_bound_of_the_cited_sampler_leaves_out_the_highest(
    entropy: list[float], gamma: float, expected: list[int]
) -> None:
    found = MaximumBounded(gamma)(floats(*[0.1] * len(entropy)), floats(*entropy))
    assert found.tolist() == expected


#: Multiples of 1/16, of which sums are exact.
EXACT = st.integers(0, 80).map(lambda n: n / 16)


@given(entropy=st.lists(EXACT, min_size=1, max_size=9), gamma=EXACT)
def test_bound_of_the_cited_sampler_is_that_of_the_largest_set_that_fits(entropy: list[float], gamma: float) -> None:
    """The reference tries every number of most certain bytes."""
    surest = sorted(range(len(entropy)), key=lambda i: (entropy[i], i))
    sets = [surest[:count] for count in range(1, len(entropy) + 1)]
    fitting = [s for s in sets if sum(entropy[i] for i in s) - max(entropy[i] for i in s) <= gamma]
    found = MaximumBounded(gamma)(floats(*entropy), floats(*entropy)).tolist()
    assert found == max(fitting, key=len)
    assert set(EntropyBounded(gamma)(floats(*entropy), floats(*entropy)).tolist()) <= set(found)


@given(probability=VALUES)
def test_one_step_decides_everything(probability: list[float]) -> None:
    assert OneStep()(floats(*probability), floats(*probability)).tolist() == list(range(len(probability)))


@given(values=VALUES, bound=st.floats(0, 0.99), kind=st.sampled_from([Confidence, EntropyBounded, MaximumBounded]))
def test_every_rule_decides_at_least_one_byte_and_none_twice(
    values: list[float], bound: float, kind: Callable[[float], Rule]
) -> None:
    found = kind(bound)(floats(*values), floats(*values)).tolist()
    assert 1 <= len(found) == len(set(found))
    assert set(found) <= set(range(len(values)))


@given(entropy=VALUES, gamma=st.floats(0, 8, width=32))
def test_entropy_bound_is_the_longest_run_that_fits(entropy: list[float], gamma: float) -> None:
    found = EntropyBounded(gamma)(floats(*entropy), floats(*entropy)).tolist()
    values = [entropy[i] for i in found]
    rest = sorted(set(range(len(entropy))) - set(found), key=lambda i: entropy[i])
    assert values == sorted(values)
    assert all(entropy[i] >= values[-1] for i in rest)
    assert len(found) == 1 or sum(values) <= gamma * (1 + 1e-5)
    assert not rest or sum(values) + entropy[rest[0]] >= gamma * (1 - 1e-5)


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("one", OneStep()),
        ("0.7", Confidence(0.7)),
        ("0", Confidence(0.0)),
        (".5", Confidence(0.5)),
        ("eb1.0", EntropyBounded(1.0)),
        ("eb0", EntropyBounded(0.0)),
        ("eb20", EntropyBounded(20.0)),
        ("ebmax1.0", MaximumBounded(1.0)),
        ("ebmax0", MaximumBounded(0.0)),
    ],
)
def test_rule_is_parsed(text: str, rule: Rule) -> None:
    assert parse_rule(text) == rule


@pytest.mark.parametrize(
    "text",
    [
        "",
        "two",
        "1",
        "1.0",
        "-0.1",
        "eb",
        "eb-1",
        "ebinf",
        "nan",
        "ebnan",
        "inf",
        "0,7",
        "ebmax",
        "ebmax-1",
        "ebmaxinf",
        "max1.0",
    ],
)
def test_bad_rule_is_named_with_the_choices(text: str) -> None:
    with pytest.raises(MethodError, match=r"expected one \(all at once\), a confidence in \[0, 1\)") as caught:
        parse_rule(text)
    assert repr(text) in str(caught.value)


@pytest.mark.parametrize(
    ("text", "size", "rule", "latent", "clean_first"),
    [
        ("d:8", 8, Confidence(0.7), None, True),
        ("d:4@eb1.0", 4, EntropyBounded(1.0), None, True),
        ("d:4@ebmax1.0", 4, MaximumBounded(1.0), None, True),
        ("d:4@eb1.0+closed", 4, EntropyBounded(1.0), "closed", True),
        ("d:16@0.5+block", 16, Confidence(0.5), None, False),
        ("d:16+block+closed", 16, Confidence(0.7), "closed", False),
        ("dv:8", 8, OneStep(), None, True),
        ("dv:8@one", 8, OneStep(), None, True),
        ("dv:1@0.3+partial", 1, Confidence(0.3), "partial", True),
        ("dv:8@eb1.5+partial+block", 8, EntropyBounded(1.5), "partial", False),
    ],
)
def test_argument_is_size_rule_and_options(
    text: str, size: int, rule: Rule, latent: str | None, clean_first: bool
) -> None:
    method = parse_method(text)
    assert method.name == text
    assert method.lossless == text.startswith("dv")
    assert method.argument == BlockArgument(text, size, rule, latent, clean_first)  # type: ignore[attr-defined, arg-type]


@pytest.mark.parametrize("method", ["d", "dv"])
@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("", "found block size ''"),
        ("0@one", "found block size '0'"),
        ("x", "found block size 'x'"),
        ("-4@one", "found block size '-4'"),
        ("²@one", "found block size '²'"),
        ("٤@one", "found block size '٤'"),
        (" 4@one", "found block size ' 4'"),
        ("4@two", "unmasking rule 'two': expected"),
        ("4@0.5@0.6", "unmasking rule '0.5@0.6'"),
        ("4@one+open", "found options ['open'], expected closed or partial, and block"),
        ("4@one+closed+partial", "found options ['closed', 'partial']"),
        ("4@one+block+block", "found options ['block', 'block']"),
        ("4@one+", "found options ['']"),
    ],
)
def test_bad_argument_is_quoted(method: str, argument: str, message: str) -> None:
    with pytest.raises(MethodError) as caught:
        parse_method(f"{method}:{argument}")
    assert message in str(caught.value)
    assert repr(f"{method}:{argument}") in str(caught.value)


@pytest.mark.parametrize("method", ["d:4@0.7", "dv:4@one"])
def test_model_without_mask_row_is_refused(method: str, tiny_config: BltConfig, tiny_encoder_config: BltConfig) -> None:
    with pytest.raises(MethodError, match=rf"'{method}': tiny-encoder has no \[MASK\] row, expected a BLT-D model"):
        parse_method(method).check(tiny_encoder_config)
    parse_method(method).check(tiny_config)


@pytest.mark.parametrize("method", ["d:5@0.7", "dv:5@one", "dv:64"])
def test_block_larger_than_the_trained_ones_is_refused(method: str, tiny_config: BltConfig) -> None:
    with pytest.raises(MethodError, match=r"found blocks of \d+ bytes, expected at most 4, which tiny was trained on"):
        parse_method(method).check(tiny_config)


class Scribe:
    """In the place of a session: rows of a block by its step, and what it is shown."""

    def __init__(self, steps: list[tuple[list[float], list[int]]]) -> None:
        self.steps = steps
        self.shown: list[list[int]] = []

    def _rows(self, block: Ids) -> DecoderRows:
        self.shown.append(block.tolist())
        probability, best = self.steps[len(self.shown) - 1]
        return rows_of(probability, best)

    def run(self, size: int, rule: str, *, clean_first: bool, sampler: Sampler | None = None) -> Draft:
        steps = denoise_block(sampler or Sampler(), size, parse_rule(rule), draft_with_block, clean_first=clean_first)
        answer: Any = None
        while True:
            try:
                request = steps.send(answer)
            except StopIteration as end:
                found: Draft = end.value
                return found
            assert isinstance(request, DenoiseRequest)
            rows = self._rows(request.block)
            answer = (rows_of([0.5, 0.5], [8, 9]), rows) if request.with_last else rows


def rows_of(probability: list[float], best: list[int]) -> DecoderRows:
    """Rows whose entropy is 1 - probability; a sample of temperature 1 is nearly always the best token."""
    logits = np.zeros((len(best), 12), dtype=np.float32)
    logits[np.arange(len(best)), best] = 40.0
    p = floats(*probability)
    return DecoderRows(np.array(best), p, 1 - p, logits)


M = MASK_ID
FOUR = [([0.1, 0.9, 0.3, 0.8], [4, 5, 6, 7]), ([0.2, 0.0, 0.4, 0.0], [5, 0, 7, 0]), ([0.9, 0, 0, 0], [6, 0, 0, 0])]


def test_bytes_are_decided_by_the_rule_and_seen_in_the_next_step() -> None:
    scribe = Scribe(FOUR)
    draft = scribe.run(4, "0.5", clean_first=False)
    assert scribe.shown == [[M, M, M, M], [M, 5, M, 7], [M, 5, 7, 7]]
    assert draft.tokens == [6, 5, 7, 7]


def test_first_byte_comes_from_the_row_before_the_block() -> None:
    scribe = Scribe(FOUR)
    draft = scribe.run(4, "0.5", clean_first=True)
    assert scribe.shown == [[M, M, M, M], [9, 5, M, 7]]
    assert draft.tokens == [9, 5, 7, 7]


def test_rule_is_asked_about_masked_bytes_only() -> None:
    """The second step's bounds would take decided bytes, whose entropies are lowest, otherwise."""
    scribe = Scribe([([0.1, 0.6, 0.5, 0.9], [4, 5, 6, 7]), ([0.3, 0.9, 0.2, 1.0], [8, 8, 8, 8]), *FOUR[1:]])
    scribe.run(4, "eb0.3", clean_first=False)
    assert scribe.shown[1:] == [[M, M, M, 7], [M, 8, M, 7], [M, 8, 7, 7]]


@pytest.mark.parametrize(
    ("size", "rule", "clean_first", "calls"),
    [
        (4, "one", True, 1),
        (4, "one", False, 1),
        (4, "eb0", True, 3),  # byte 0 and another one, then one by one
        (4, "eb0", False, 4),
        (1, "eb0", True, 1),
        (1, "0.99", False, 1),
        (3, "0.99", True, 2),
        (4, "eb9", False, 1),
    ],
)
def test_decoder_calls_of_a_block(size: int, rule: str, clean_first: bool, calls: int) -> None:
    scribe = Scribe([([0.5] * size, [4] * size)] * 4)
    scribe.run(size, rule, clean_first=clean_first)
    assert len(scribe.shown) == calls
    assert all(MASK_ID in block for block in scribe.shown)


def known(draft: Draft) -> list[bool]:
    return [draft.proposal(i) is not None for i in range(len(draft.tokens))]


def test_greedy_drafts_have_no_proposals() -> None:
    assert known(Scribe(FOUR).run(4, "0.5", clean_first=False)) == [False] * 4


@pytest.mark.parametrize(
    ("clean_first", "rule", "expected"),
    [
        # Steps of the bytes: 2, 0, 1, 0.
        (False, "0.5", [True, False, False, False]),
        # 0, 0, 1, 0: only the last was decided before one that stands before it.
        (True, "0.5", [True, True, True, False]),
        (True, "one", [True] * 4),
        (False, "one", [True] * 4),
    ],
)
def test_proposals_are_of_bytes_drawn_given_all_before_them(clean_first: bool, rule: str, expected: list[bool]) -> None:
    draft = Scribe(FOUR).run(4, rule, clean_first=clean_first, sampler=Sampler(1.0, 1.0, 0))
    assert known(draft) == expected


@given(order=st.permutations(range(6)), each=st.integers(1, 3))
def test_byte_has_a_proposal_exactly_if_nothing_before_it_was_decided_later(order: list[int], each: int) -> None:
    """The bytes of lowest entropy first, any order, one or more a step."""
    step_of = {byte: i // each for i, byte in enumerate(order)}
    probability = [0.99 if step_of[byte] == 0 else 0.01 for byte in range(6)]
    steps = [
        ([0.99 if step_of[byte] == step else 0.01 for byte in range(6)], list(range(step, step + 6)))
        for step in range(1 + max(step_of.values()))
    ]
    assert steps[0][0] == probability
    draft = Scribe(steps).run(6, "0.5", clean_first=False, sampler=Sampler(1.0, 1.0, 0))
    assert draft.tokens == [step_of[byte] + byte for byte in range(6)]
    for byte in range(6):
        ordered = all(step_of[before] <= step_of[byte] for before in range(byte))
        q = draft.proposal(byte)
        assert (q is not None) == ordered
        assert q is None or q.argmax() == draft.tokens[byte]
