"""Texts of schemas and expressions that are in use: they have their form, and drafts write what masked `ar` writes."""

from __future__ import annotations

import json
from typing import Any

import jsonschema
import pytest
import regex
from fakes.masked_texts import json_format

from fastblt.calibration.schemas import load_expressions, load_schemas
from fastblt.runtime.blt_runtime import BltRuntime

SCHEMAS, EXPRESSIONS = load_schemas(), load_expressions()
DRAFTING = ("s:8", "dv:4@one", "dv:4@0.4", "auto")
#: Random weights seldom end a string, an array or an object.
ENDING = {ord(mark): 8.0 for mark in '"]}'}
NEW_BYTES = 128


def judge(schema: dict[str, Any]) -> Any:
    return jsonschema.validators.validator_for(schema)(schema)


def test_texts_of_real_schemas_are_valid_and_those_of_masked_ar(alone: BltRuntime) -> None:
    ended = forced = 0
    for name, schema in SCHEMAS.items():
        options: dict[str, Any] = {"response_format": json_format(schema), "logit_bias": ENDING}
        expected = alone.generate(b"", NEW_BYTES, method="ar", **options)
        for method in DRAFTING:
            found = alone.generate(b"", NEW_BYTES, method=method, **options)
            assert (found.data, found.finish) == (expected.data, expected.finish), (name, method)
            forced += found.stats.forced
        unforced = alone.generate(b"", NEW_BYTES, method="s:8", forced_bytes=False, **options)
        assert (unforced.data, unforced.stats.forced) == (expected.data, 0), name
        if expected.finish == "eos":
            judge(schema).validate(json.loads(expected.data))
            ended += 1
    assert ended >= 24, "half of the texts are long enough to end"
    assert forced > 1000


@pytest.mark.parametrize("method", ["ar", "s:8", "dv:4@0.4"])
def test_sampled_texts_of_real_schemas_are_valid(alone: BltRuntime, method: str) -> None:
    ended = set()
    for number, (name, schema) in enumerate(SCHEMAS.items()):
        text = alone.generate(
            b"", NEW_BYTES, method=method, temperature=1.5, seed=number, response_format=json_format(schema),
            logit_bias=ENDING,
        )  # fmt: skip
        if text.finish == "eos":
            judge(schema).validate(json.loads(text.data))
            ended.add(name)
        else:
            assert len(text.data) == NEW_BYTES, name
    assert len(ended) >= 24


@pytest.mark.parametrize("name", EXPRESSIONS)
def test_texts_of_expressions_match_whatever_the_method(alone: BltRuntime, name: str) -> None:
    expression = EXPRESSIONS[name]
    expected = alone.generate(b"x", 300, method="ar", regex=expression)
    assert expected.finish == "eos"
    texts = [expected.data]
    for method in DRAFTING:
        assert alone.generate(b"x", 300, method=method, regex=expression).data == expected.data, method
        for seed in range(3):
            text = alone.generate(b"x", 300, method=method, temperature=1.0, seed=seed, regex=expression)
            assert text.finish == "eos"
            texts.append(text.data)
    for data in texts:
        assert regex.fullmatch(expression, data.decode("utf-8")), data
    assert len(set(texts)) > 1
