"""The grammar of a call of one among several functions."""

from __future__ import annotations

from typing import Any

import pytest

from fastblt.models import limits
from fastblt.models.tokens import BYTE_OFFSET, EOS_ID
from fastblt.runtime.grammar import library
from fastblt.runtime.grammar.error import GrammarError
from fastblt.runtime.grammar.matcher import Matcher
from fastblt.runtime.grammar.tool_calls import call_grammar

NOTHING: dict[str, Any] = {"type": "object", "properties": {}, "additionalProperties": False}
TREE: dict[str, Any] = {
    "type": "object",
    "properties": {"name": {"type": "string"}, "next": {"$ref": "#"}, "of": {"$ref": "#/$defs/kind"}},
    "required": ["name", "of"],
    "additionalProperties": False,
    "$defs": {"kind": {"enum": ["é", "b"], "x-guidance": {"whitespace_flexible": True}}},
    "x-guidance": {"whitespace_flexible": True},
}


def fits(text: str) -> bool:
    """Return whether a text is a call of one of three functions."""
    matcher = Matcher("grammar", call_grammar([("f", NOTHING), ("f-2", TREE), ("g", {"type": "object"})]))
    return all(matcher.advance(BYTE_OFFSET + byte) for byte in text.encode()) and matcher.advance(EOS_ID)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('{"name":"f","arguments":{}}', True),
        ('{"name":"f-2","arguments":{"name":"x}","of":"é"}}', True),
        ('{"name":"f-2","arguments":{"name":"","next":{"name":"","of":"b"},"of":"b"}}', True),
        ('{"name":"g","arguments":{"any":[1,{"thing":null}]}}', True),
        ('{"name":"f","arguments":{"name":"","of":"b"}}', False),
        ('{"name":"f-2","arguments":{}}', False),
        ('{"name":"f-2","arguments":{"name":"","of":"c"}}', False),
        ('{"name":"f-2","arguments":{ "name":"","of":"b"}}', False),
        ('{"name":"h","arguments":{}}', False),
        ('{"name": "f","arguments":{}}', False),
        ('{"name":"f","arguments":{}} ', False),
        ('{"name":"f","arguments":{}', False),
    ],
)
def test_its_texts_are_calls(text: str, expected: bool) -> None:
    assert fits(text) == expected


def test_what_only_one_function_leaves_open_is_all_that_is_asked() -> None:
    matcher = Matcher("grammar", call_grammar([("only-this", NOTHING)]))
    forced = bytes(token - BYTE_OFFSET for token in matcher.forced(100))
    assert forced.startswith(b'{"name":"only-this","arguments":{')


@pytest.mark.parametrize(
    ("functions", "message"),
    [
        ([("f", NOTHING), ("g", {"type": "object", "not": {}})], "g: json_schema: "),
        ([("f", {"type": "object", "default": float("nan")})], "f: .*expected JSON"),
        ([("f", {"type": "object", "title": "\ud800"})], "f: .*expected JSON"),
        ([("f", {"type": "object", "title": "x" * limits.GRAMMAR_BYTES})], "f: found .* at most 131072"),
        (
            [(name, {"type": "object", "title": "x" * 70_000}) for name in "fg"],
            "all functions together: found 140.* bytes, expected at most 131072",
        ),
    ],
)
def test_what_cannot_be_enforced_names_its_function(functions: Any, message: str) -> None:
    with pytest.raises(GrammarError, match=message):
        call_grammar(functions)


def test_what_is_too_large_is_refused_before_any_of_it_is_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    compiled: list[str] = []
    monkeypatch.setattr(library, "_compile", lambda kind, source: compiled.append(source))
    with pytest.raises(GrammarError, match="all functions together: found"):
        call_grammar([(f"f{number}", {"type": "object", "title": "x" * 2_000}) for number in range(128)])
    assert not compiled
