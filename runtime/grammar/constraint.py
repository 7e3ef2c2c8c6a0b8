"""Reads what a request says about the form of its text, and makes one constraint of it."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fastblt.models import limits
from fastblt.models.shown import shown
from fastblt.models.tokens import utf8
from fastblt.runtime.grammar.error import GrammarError
from fastblt.runtime.grammar.library import JSON_OPTIONS, Kind
from fastblt.runtime.grammar.matcher import Matcher

#: Types of ``response_format``, as OpenAI names them.
_TYPES = ("json_schema", "json_object", "text")


@dataclass(frozen=True)
class Constraint:
    """Holds a grammar that has been compiled once."""

    kind: Kind
    source: str
    forces: bool = True
    """Whether bytes that must follow are written without asking the model."""

    def matcher(self) -> Matcher:
        """Return what walks the grammar along one text."""
        return Matcher(self.kind, self.source, forces=self.forces)


def constraint_of(
    response_format: Mapping[str, Any] | None,
    regex: str | None,
    grammar: str | None,
    choice: Sequence[str] | None,
    *,
    forces: bool = True,
) -> Constraint | None:
    """Return the constraint that the fields of a request ask for, compiled; None: they ask for none.

    Raises:
        GrammarError: there is more than one, or it is malformed, too large, or no text fits it.
    """
    schema = None if response_format is None else schema_of(response_format)
    fields = {"response_format": schema, "regex": regex, "grammar": grammar, "choice": choice}
    given = [name for name, value in fields.items() if value is not None]
    if len(given) > 1:
        raise GrammarError(f"{given[0]}: found {' and '.join(given)}, expected at most one of them")
    found: tuple[Kind, str] | None = None
    if schema is not None:
        found = "json_schema", schema
    elif regex is not None:
        found = "regex", _text(regex, "regex")
    elif grammar is not None:
        found = "grammar", _text(grammar, "grammar")
    elif choice is not None:
        found = "regex", _any_of(choice)
    if found is None:
        return None
    constraint = Constraint(*found, forces)
    constraint.matcher()
    return constraint


def schema_of(response_format: Mapping[str, Any]) -> str | None:
    """Return the JSON schema of a ``response_format`` as OpenAI has it, as JSON; None: it asks for plain text.

    Raises:
        GrammarError: it is malformed.
    """
    kind = response_format.get("type") if isinstance(response_format, Mapping) else None
    if kind not in _TYPES:
        raise GrammarError(
            f"response_format: found {shown(response_format)}, expected a type among {', '.join(_TYPES)}"
        )
    if kind == "text":
        return None
    if kind == "json_object":
        return '{"type":"object"}'
    holder = response_format.get("json_schema")
    schema = holder.get("schema") if isinstance(holder, Mapping) else None
    if not isinstance(schema, Mapping):
        raise GrammarError(f"response_format.json_schema.schema: found {shown(schema)}, expected an object, a schema")
    return schema_source(schema, "response_format.json_schema.schema")


def schema_source(schema: Mapping[str, Any], name: str) -> str:
    """Return a JSON schema as JSON, with our options of llguidance in place of those in it, which could loosen it.

    Raises:
        GrammarError: it has something that JSON has not; the message begins with ``name``.
    """
    own = {**schema, "x-guidance": JSON_OPTIONS}
    try:
        return utf8(json.dumps(own, ensure_ascii=False, allow_nan=False), "json_schema").decode()
    except (TypeError, ValueError, RecursionError) as error:
        raise GrammarError(f"{name}: {error}, expected JSON") from None


def _text(value: object, name: str) -> str:
    if not isinstance(value, str) or not value:
        raise GrammarError(f"{name}: found {shown(value)}, expected text that is not empty")
    try:
        return utf8(value, name).decode()
    except ValueError as error:
        raise GrammarError(str(error)) from None


def _any_of(choice: Sequence[str]) -> str:
    """Return a regular expression of several texts."""
    if isinstance(choice, str | bytes) or not isinstance(choice, Sequence) or not choice:
        raise GrammarError(f"choice: found {shown(choice)}, expected a list of texts")
    if len(choice) > limits.GRAMMAR_CHOICES:
        raise GrammarError(f"choice: found {len(choice)} texts, expected at most {limits.GRAMMAR_CHOICES}")
    return "|".join(re.escape(_text(each, "choice")) for each in dict.fromkeys(choice))
