"""Makes the grammar of a call of one among several functions: ``{"name":"NAME","arguments":{...}}``."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from fastblt.models import limits
from fastblt.runtime.grammar.constraint import schema_source
from fastblt.runtime.grammar.error import GrammarError
from fastblt.runtime.grammar.library import new_matcher


def call_grammar(functions: Sequence[tuple[str, Mapping[str, Any]]]) -> str:
    """Return a grammar in Lark's syntax, compiled once: each of its texts is a call of one of the functions.

    A schema is compiled by itself, so that references in it begin at its own root.

    Args:
        functions: name, of letters, digits, ``_`` and ``-``, and JSON schema of the arguments of each; at least one.

    Raises:
        GrammarError: a schema is malformed, cannot be enforced or has no text, or they are too large together; the
            message begins with the name of the function where it is about one.
    """
    source = _grammar(functions)
    _check_size(functions, source)
    try:
        new_matcher("grammar", source)
    except GrammarError as error:
        for name, schema in functions:
            _check_alone(name, schema)
        raise GrammarError(f"all functions together: {error}") from None
    return source


def _grammar(functions: Sequence[tuple[str, Mapping[str, Any]]]) -> str:
    rules = [f"start: {' | '.join(f'call{number}' for number in range(len(functions)))}"]
    for number, (name, schema) in enumerate(functions):
        head = json.dumps(f'{{"name":"{name}","arguments":')
        arguments = schema_source(schema, name)
        rules += [f'call{number}: {head} arguments{number} "}}"', f"arguments{number}: %json {arguments}"]
    return "\n".join(rules)


def _check_size(functions: Sequence[tuple[str, Mapping[str, Any]]], source: str) -> None:
    """Refuse what is too large before any of it is compiled."""
    schemas = [(name, schema_source(schema, name)) for name, schema in functions]
    for name, found in [*schemas, ("all functions together", source)]:
        if (size := len(found.encode())) > limits.GRAMMAR_BYTES:
            raise GrammarError(f"{name}: found {size} bytes, expected at most {limits.GRAMMAR_BYTES}")


def _check_alone(name: str, schema: Mapping[str, Any]) -> None:
    try:
        new_matcher("json_schema", schema_source(schema, name))
    except GrammarError as error:
        raise GrammarError(f"{name}: {error}") from None
