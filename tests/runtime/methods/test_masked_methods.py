"""Texts with a form: every lossless method writes what the autoregressive one writes, forced bytes or not."""

from __future__ import annotations

import json
import re
from collections import Counter
from typing import Any

import numpy as np
import pytest
from fakes.table_backend import surprise

from fastblt.models.tokens import BYTE_OFFSET, EOS_ID, encode
from fastblt.runtime.blt_runtime import BltRuntime
from fastblt.runtime.grammar.error import GrammarError
from fastblt.runtime.grammar.matcher import Matcher
from fastblt.runtime.methods import Method, MethodError
from fastblt.runtime.methods.ar import Autoregressive
from fastblt.runtime.sequence.sampling import Sampler

DRAFTING = ("s:1", "s:4", "s:8", "s:3+partial", "dv:4@one", "dv:4@0.4", "dv:3@eb0.5+block", "dv:4@one+partial", "auto")
SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 6},
        "age": {"type": "integer", "minimum": 0, "maximum": 150},
        "tags": {"type": "array", "items": {"enum": ["red", "green", "grün"]}, "minItems": 1, "maxItems": 3},
    },
    "required": ["name", "age", "tags"],
    "additionalProperties": False,
}
FORMS: dict[str, dict[str, Any]] = {
    "schema": {"response_format": {"type": "json_schema", "json_schema": {"schema": SCHEMA}}},
    "regex": {"regex": "(ab|[c-f]{1,3}é){2,5}!?"},
    "choice": {"choice": ["tiger", "tigers", "日本", "日本語", 'a "quoted"\nline']},
    "grammar": {"grammar": 'start: "(" inner ")"\ninner: start | /[0-9]{1,4}/'},
}


@pytest.mark.parametrize("form", FORMS)
def test_greedy_text_is_that_of_ar_whatever_is_forced(alone: BltRuntime, form: str) -> None:
    for prompt in (b"", b"The record: "):
        expected = alone.generate(prompt, 60, method="ar", **FORMS[form])  # type: ignore[arg-type]
        assert expected.stats.forced == 0
        for method in DRAFTING:
            for forced in (True, False):
                found = alone.generate(prompt, 60, method=method, forced_bytes=forced, **FORMS[form])  # type: ignore[arg-type]
                assert (found.data, found.finish) == (expected.data, expected.finish), (method, forced)
                assert bool(found.stats.forced) <= forced
                assert 0 <= found.stats.accepted <= found.stats.drafted


@pytest.mark.parametrize("method", ["s:8", "dv:4@one", "dv:4@0.4", "auto"])
def test_texts_that_share_calls_are_those_that_grow_alone(alone: BltRuntime, method: str) -> None:
    prompts = [b"", b"The record: ", b"x", b"of the", b"and God said"]
    for form in FORMS.values():
        expected = [alone.generate(prompt, 60, method="ar", **form).data for prompt in prompts]
        assert [text.data for text in alone.generate_many(prompts, 60, method=method, **form)] == expected


def test_a_text_that_ends_by_itself_has_its_form(alone: BltRuntime) -> None:
    found = alone.generate(b"x", 200, method="s:8", temperature=1.0, seed=3, **FORMS["schema"])  # type: ignore[arg-type]
    assert found.finish == "eos"
    assert list(json.loads(found.data)) == ["name", "age", "tags"]
    assert found.stats.forced > 20
    picked = alone.generate(b"x", 200, method="dv:4@one", temperature=1.0, seed=3, **FORMS["regex"])  # type: ignore[arg-type]
    assert picked.finish == "eos"
    assert re.fullmatch(FORMS["regex"]["regex"], picked.text)


def test_forced_bytes_are_marked(alone: BltRuntime) -> None:
    stream = alone.stream(b"", 200, method="s:4", **FORMS["schema"])  # type: ignore[arg-type]
    chunks = list(stream)
    origins = [origin for chunk in chunks for origin in chunk.origins]
    assert origins.count("forced") == stream.stats.forced > 0
    assert origins.count("accepted") == stream.stats.accepted
    data = b"".join(chunk.data for chunk in chunks)
    matcher = Matcher("json_schema", json.dumps(SCHEMA))
    for byte, origin in zip(data, origins, strict=True):
        assert origin != "forced" or matcher.mask().sum() == 1
        assert matcher.advance(BYTE_OFFSET + byte)


def test_log_probabilities_are_the_models_own(alone: BltRuntime) -> None:
    found = alone.generate(b"x", 60, method="s:8", logprobs=True, **FORMS["regex"])  # type: ignore[arg-type]
    np.testing.assert_allclose(found.logprobs, alone.score(b"x", found.data).logprobs, atol=1e-4)


def test_a_bias_that_leaves_nothing_is_an_error(alone: BltRuntime) -> None:
    for method in ("ar", "s:4", "dv:4@one"):
        with pytest.raises(GrammarError, match="found a bias of -inf on every byte that may follow"):
            alone.generate(b"x", 20, method=method, regex="[ab]c", banned_bytes=b"c")
    assert alone.generate(b"x", 20, method="s:4", regex="[ab]c?", banned_bytes=b"ac").data == b"b"


def test_a_method_that_does_not_walk_the_grammar_is_refused(alone: BltRuntime, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Sampler, "advance", lambda self, token: True)
    own: Method = Autoregressive()
    with pytest.raises(MethodError, match=r"found 0 tokens that the grammar has read, expected the 1 of the round"):
        alone.generate(b"x", 20, method=own, regex="ab+")


PATTERN = "(a[bc]|[de]{1,2}gh)(x?y|é)"
PROMPT = b"we "
SAMPLES = 800


def expected_texts(runtime: BltRuntime, prompt: bytes, temperature: float) -> dict[tuple[int, ...], float]:
    """The probability of every text of `PATTERN`: products over rows that are masked and normalized."""
    known: dict[tuple[int, ...], float] = {}
    matcher = Matcher("regex", PATTERN)

    def visit(text: tuple[int, ...], weight: float) -> None:
        with runtime.session() as session:
            session.append(np.concatenate([encode(prompt, bos=False), np.array(text, dtype=np.int64)]))
            logits = session.score().logits[-1].astype(np.float64) / temperature
        p = np.exp(logits - logits.max()) * matcher.mask()
        p /= p.sum()
        for token in np.flatnonzero(p).tolist():
            if token == EOS_ID:
                known[text] = weight * p[token]
                continue
            assert matcher.advance(token)
            visit((*text, token), weight * p[token])
            matcher.rewind(len(text))

    visit((), 1.0)
    return known


def sample(runtime: BltRuntime, method: str, *, forced: bool = True) -> Counter[tuple[int, ...]]:
    """How often each text was written, by its tokens."""
    seen: Counter[tuple[int, ...]] = Counter()
    for seed in range(SAMPLES):
        text = runtime.generate(
            PROMPT, 20, method=method, temperature=2.0, seed=seed, regex=PATTERN, forced_bytes=forced
        )
        assert text.finish == "eos"
        seen[tuple(BYTE_OFFSET + byte for byte in text.data)] += 1
    return seen


@pytest.mark.slow
def test_sampled_texts_are_distributed_as_those_of_the_masked_model(
    alone: BltRuntime, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = expected_texts(alone, PROMPT, 2.0)
    assert sum(expected.values()) == pytest.approx(1.0)
    assert len(expected) > 20
    for method, forced in (("ar", True), ("s:4", True), ("s:4", False), ("dv:4@one", True), ("dv:4@0.02", True)):
        assert surprise(sample(alone, method, forced=forced), expected) > 1e-3, (method, forced)
    monkeypatch.setattr(Sampler, "_verify", lambda self, token, q, rows, index: token)
    assert surprise(sample(alone, "s:4"), expected) < 1e-7, "drafts that nobody verifies are found out"


def only(name: str, value: object) -> dict[str, object]:
    return {"type": "object", "properties": {name: value}, "required": [name], "additionalProperties": False}


#: One of four letters, and one of two: what follows the latter may have no end, and exceeds a step's bounds.
ENDLESS = {
    "anyOf": [
        *(only(f"{letter}a", {"$ref": "#/$defs/loop"}) for letter in "pqrs"),
        *(only(f"{letter}b", {"const": 1}) for letter in "pqrs"),
    ],
    "$defs": {"loop": only("c", {"$ref": "#/$defs/loop"})},
}
DEAD_ENDS: dict[str, dict[str, Any]] = {
    "bounds of a step": {"response_format": {"type": "json_schema", "json_schema": {"schema": ENDLESS}}},
    "banned bytes": {"regex": "[a-z]{4}([p-s]X|[t-w]Y)", "banned_bytes": b"X"},
}


def outcome(
    runtime: BltRuntime, prompt: bytes, method: str, form: dict[str, Any], count: int = 30
) -> tuple[bytes, str]:
    """Return a text and what ended it, an error included."""
    try:
        found = runtime.generate(prompt, count, method=method, **form)
    except GrammarError as error:
        return b"", str(error)
    return found.data, found.finish


@pytest.mark.parametrize("end", DEAD_ENDS)
def test_only_texts_that_run_into_a_dead_end_are_errors(alone: BltRuntime, end: str) -> None:
    """Drafts run into it more often: those that are rejected there leave the text alone."""
    form, seen = DEAD_ENDS[end], Counter[str]()
    for number in range(24):
        prompt = b"prompt %d " % number
        expected = outcome(alone, prompt, "ar", form)
        seen[expected[1]] += 1
        for method in ("s:4", "dv:4@one", "dv:4@0.4", "auto"):
            assert outcome(alone, prompt, method, form) == expected, (prompt, method)
    assert len(seen) > 1, "some prompts lead to an error, and some do not"


def test_texts_that_end_before_banned_bytes_are_no_errors(alone: BltRuntime) -> None:
    """A round that drafts as far as there decides nothing behind the text's end."""
    form, finishes = DEAD_ENDS["banned bytes"], Counter[str]()
    for count in (3, 4, 5, 6):
        for number in range(12):
            prompt = b"prompt %d " % number
            expected = outcome(alone, prompt, "ar", form, count)
            finishes[expected[1]] += 1
            for method in ("s:4", "s:8", "lookup:4", "dv:4@one", "dv:4@0.4", "auto"):
                assert outcome(alone, prompt, method, form, count) == expected, (prompt, method, count)
                if expected[1] == "length":
                    found = alone.generate(prompt, count, method=method, logprobs=True, **form)
                    assert (found.data, len(found.logprobs)) == (expected[0], count)
    assert finishes["length"] > 20
