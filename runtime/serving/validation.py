"""Turns what FastAPI finds wrong with a request into one error of OpenAI's kind."""

from __future__ import annotations

import re
from collections.abc import Sequence

from fastapi.exceptions import RequestValidationError

from fastblt.models.shown import shown
from fastblt.runtime.serving.api_error import ApiError, wrong

#: What pydantic puts into the path to a value, besides fields: the kinds that a union could have been.
_KINDS = re.compile(r"str|int|float|bool|dict|(constrained-|list|function-|nullable|dict\[).*")


def first_error(error: RequestValidationError) -> ApiError:
    """Return the first of the errors, with the name of its field.

    Of a value that may have several types, that is what the first of them expects.
    """
    found = error.errors()[0]
    kind = found.get("type", "")
    if kind == "json_invalid":
        reason = (found.get("ctx") or {}).get("error", "")
        return wrong(None, f"body: not JSON ({reason}), expected a JSON object", "invalid_json")
    param = _name(found.get("loc", ()))
    if kind == "extra_forbidden":
        return wrong(param, f"{param}: found an unknown field, expected those of the interface", "unknown_parameter")
    if kind == "missing" and param is not None:
        return wrong(param, f"{param}: found nothing, expected a value", "missing_required_parameter")
    message = str(found.get("msg", "not valid"))
    if kind == "unsupported_value":
        return wrong(param, f"{param}: {message}", "unsupported_value")
    if kind == "too_many":
        return wrong(param, f"{param or 'body'}: {message}")
    if param is None:
        return wrong(None, "body: found no JSON object, expected one (Content-Type: application/json)")
    expected = message.removeprefix("Input should be ")
    because = f"expected {expected}" if expected != message else message[:1].lower() + message[1:]
    return wrong(param, f"{param}: found {shown(found.get('input'))}, {because}")


def _name(location: Sequence[object]) -> str | None:
    """Return the name of a field as clients write it, ``messages[0].content``."""
    name = ""
    for part in location[1:]:
        if isinstance(part, int):
            name += f"[{part}]"
        elif isinstance(part, str) and not _KINDS.fullmatch(part):
            name += f".{part}" if name else part
    return name or None
