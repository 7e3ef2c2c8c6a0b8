"""What a request may say about the form of its text, and the one error that it gets otherwise."""

from __future__ import annotations

import json
import re
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from fastblt.models import limits
from fastblt.models.tokens import BYTE_OFFSET, EOS_ID
from fastblt.runtime.grammar import library
from fastblt.runtime.grammar.constraint import constraint_of
from fastblt.runtime.grammar.error import GrammarError
from fastblt.runtime.methods import MethodError
from fastblt.runtime.request import GenerationRequest


def schema_format(schema: object) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"name": "it", "schema": schema}}


def chain(depth: int) -> object:
    schema: object = {}
    for _ in range(depth):
        schema = {"properties": {"a": schema}}
    return schema


def demanding(**properties: object) -> dict[str, object]:
    return {"type": "object", "properties": properties, "required": [*properties], "additionalProperties": False}


#: Alternatives of `oneOf` that llguidance cannot tell apart, though those of the last two never fit together.
OVERLAPPING: tuple[list[object], ...] = (
    [{"type": "integer"}, {"type": "number"}],
    [demanding(a={"type": "string"}), {"type": "object"}],
    [{"const": 1}, {"const": 2}],
    [{"type": "string", "maxLength": 3}, {"type": "string", "minLength": 4}],
)
#: Every text of these would have to go on forever.
ENDLESS: tuple[dict[str, object], ...] = (
    demanding(child={"$ref": "#"}),
    {"type": "array", "items": {"$ref": "#"}, "minItems": 1, "maxItems": 2},
    {
        "$ref": "#/$defs/a",
        "$defs": {
            "a": demanding(b={"$ref": "#/$defs/b"}),
            "b": {"type": "array", "items": {"$ref": "#/$defs/a"}, "minItems": 1},
        },
    },
)
IMPOSSIBLE: tuple[tuple[dict[str, Any], str], ...] = (
    ({"regex": "("}, "found an invalid expression (unclosed group)"),
    ({"regex": ""}, "expected text that is not empty"),
    ({"regex": "\ud800"}, "surrogate"),
    ({"grammar": "start: a\na: a"}, "no text fits"),
    ({"grammar": "begin: /a/"}, "start"),
    ({"grammar": "start: missing"}, "missing"),
    ({"choice": []}, "expected a list of texts"),
    ({"choice": "yes"}, "expected a list of texts"),
    ({"choice": ["yes", ""]}, "expected text that is not empty"),
    ({"choice": ["x"] * 2000}, "expected at most 1024"),
    ({"response_format": {"type": "xml"}}, "expected a type among"),
    ({"response_format": "json_object"}, "expected a type among"),
    ({"response_format": schema_format(False)}, "expected an object"),
    ({"response_format": schema_format({"allOf": [{"type": "string"}, {"type": "number"}]})}, "Unsatisfiable"),
    ({"response_format": schema_format({"enum": []})}, "json_schema: "),
    ({"response_format": schema_format({"$ref": "http://127.0.0.1:9/x"})}, "not present"),
    ({"response_format": schema_format({"not": {"type": "string"}})}, 'found "not", expected a schema without'),
    ({"response_format": schema_format({"if": {}, "then": {}})}, 'found "if", "then", expected a schema'),
    ({"response_format": schema_format({"pattern": "("})}, "found an invalid expression (unclosed group), expected a"),
    ({"response_format": schema_format({"$ref": "#"})}, "no text fits"),
    ({"response_format": schema_format({"properties": {"a": {"$ref": "#/$defs/NoExtension"}}})}, "does not exist"),
    ({"grammar": "start: ff_tokens"}, 'unknown name: "ff_tokens"'),
    ({"response_format": schema_format({"a": float("nan")})}, "expected JSON"),
    ({"response_format": schema_format({"a": b""})}, "expected JSON"),
    ({"response_format": schema_format({"not": {}, "x-guidance": {"lenient": True}})}, 'found "not", expected a schem'),
    *(({"response_format": schema_format({"oneOf": each})}, "found oneOf with altern") for each in OVERLAPPING),
    *(({"response_format": schema_format(each)}, "found bytes that must follow without end") for each in ENDLESS),
)


@pytest.mark.parametrize(("fields", "reason"), IMPOSSIBLE, ids=lambda value: json.dumps(value, default=str)[:50])
def test_what_has_no_text_gets_one_error(fields: dict[str, Any], reason: str) -> None:
    with pytest.raises(GrammarError, match=re.escape(reason)) as found:
        GenerationRequest(**fields)
    assert "\n" not in str(found.value)
    assert len(str(found.value)) < 500


@pytest.mark.parametrize(
    ("alternatives", "texts"),
    [
        ([{"type": "string", "maxLength": 1}, {"type": "boolean"}], ['"a"', "true"]),
        ([{"enum": ["a", "c"]}, {"const": "b"}], ['"a"', '"b"', '"c"']),
        (
            [demanding(k={"const": "a"}), demanding(k={"const": "b"}, n={"type": "null"})],
            ['{"k":"a"}', '{"k":"b","n":null}'],
        ),
        ([demanding(k={"type": "boolean"}), demanding(k={"type": "null"})], ['{"k":true}', '{"k":null}']),
    ],
)
def test_alternatives_of_one_of_that_exclude_each_other_are_taken(alternatives: list[object], texts: list[str]) -> None:
    constraint = GenerationRequest(response_format=schema_format({"oneOf": alternatives})).constraint()
    assert constraint is not None
    for text in texts:
        matcher = constraint.matcher()
        assert all(matcher.advance(BYTE_OFFSET + byte) for byte in text.encode()), text
        assert matcher.mask()[EOS_ID], text


def test_options_in_a_schema_loosen_nothing() -> None:
    schema = demanding(a={"const": 1})
    options = {"whitespace_flexible": True, "whitespace_pattern": "x*", "key_separator": "="}
    plain, other = (
        GenerationRequest(response_format=schema_format(each)).constraint()
        for each in (schema, schema | {"x-guidance": options})
    )
    assert plain == other


BOMBS: tuple[dict[str, Any], ...] = (
    {"regex": "(" * 20_000 + "a" + ")" * 20_000},
    {"regex": "a" * 200_000},
    {"grammar": "start: " + "(" * 20_000 + '"a"' + ")" * 20_000},
    {"grammar": "start: " + " ".join(['("a"|"b")?'] * 10_000)},
    {"grammar": 'start: "a"{100000000}'},
    {"response_format": schema_format(chain(100))},
    {"response_format": schema_format(chain(10**5))},
    {"response_format": schema_format({"type": "object", "properties": {f"p{i}": {} for i in range(5_000)}})},
    {
        "response_format": schema_format(
            {
                "allOf": [
                    {"anyOf": [{"required": [f"k{i}{j}"], "properties": {f"k{i}{j}": {}}} for j in range(4)]}
                    for i in range(12)
                ]
            }
        )
    },
)


@pytest.mark.parametrize("fields", BOMBS, ids=map(str, range(len(BOMBS))))
def test_what_costs_too_much_gets_one_error_soon(fields: dict[str, Any]) -> None:
    began = time.process_time()
    with pytest.raises(GrammarError) as found:
        GenerationRequest(**fields)
    assert time.process_time() - began < 30  # the costliest takes two seconds here
    assert "\n" not in str(found.value)
    assert len(str(found.value)) < 500


def test_there_is_one_form_or_none() -> None:
    assert constraint_of(None, None, None, None) is None
    assert GenerationRequest(response_format={"type": "text"}).constraint() is None
    beside = GenerationRequest(response_format={"type": "text"}, regex="a").constraint()
    assert beside is not None
    assert beside.matcher().forced(2) == [BYTE_OFFSET + ord("a")]
    with pytest.raises(GrammarError, match="regex: found regex and choice, expected at most one"):
        GenerationRequest(regex="a", choice=["a"])


def test_what_contradicts_the_form_is_refused() -> None:
    with pytest.raises(GrammarError, match="stop: found stop strings and a regex"):
        GenerationRequest(regex="a+", stop="a")
    with pytest.raises(GrammarError, match="stop_at_eos: found False and a regex"):
        GenerationRequest(regex="a+", stop_at_eos=False)
    with pytest.raises(
        MethodError, match=r"method 'd:8@0.7': found it with a form of the text, expected a method that veri"
    ):
        GenerationRequest(response_format={"type": "json_object"}, method="d:8@0.7")


def test_without_llguidance_the_error_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "llguidance", None)
    library._library.cache_clear()
    try:
        with pytest.raises(GrammarError, match=re.escape("pip install 'fastblt[grammar]'")):
            GenerationRequest(regex="never compiled before")
        GenerationRequest()
    finally:
        library._library.cache_clear()


def test_as_many_grammars_are_kept_as_are_worth_it() -> None:
    for count in range(library._KEPT + 5):
        GenerationRequest(regex=f"a{{{count + 1}}}")
    assert len(library._kept._found) == library._KEPT
    assert limits.GRAMMAR_BYTES < 2**20


def test_a_grammar_that_many_threads_want_is_compiled_once(monkeypatch: pytest.MonkeyPatch) -> None:
    compiled: list[str] = []
    original = library._compile

    def counted(kind: library.Kind, source: str) -> Any:
        compiled.append(source)
        time.sleep(0.05)
        return original(kind, source)

    monkeypatch.setattr(library, "_compile", counted)
    with ThreadPoolExecutor(8) as pool:
        assert len(list(pool.map(library.new_matcher, ["regex"] * 8, ["wanted by [0-9]+"] * 8))) == 8
        assert compiled == ["wanted by [0-9]+"]
        failures = [pool.submit(library.new_matcher, "regex", "wanted (") for _ in range(8)]
        assert {type(each.exception()) for each in failures} == {GrammarError}
    assert ("regex", "wanted (") not in library._kept._found
