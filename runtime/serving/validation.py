"""Turns what FastAPI finds wrong with a request into one error of OpenAI's kind."""

from __future__ import annotations

from collections.abc import Sequence

from fastapi.exceptions import RequestValidationError

from fastblt.models.shown import shown
from fastblt.runtime.serving.api_error import ApiError, wrong

#: What pydantic puts into the path to a value, besides fields: the kinds that a union could have been.
_KINDS = ("str", "int", "float", "list[", "function-", "constrained-", "dict[", "nullable")


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
    if kind == "missing":
        expected = "a JSON object (Content-Type: application/json)" if param is None else "it"
        return wrong(param, f"{param or 'body'}: found nothing, expected {expected}", "missing_required_parameter")
    message = str(found.get("msg", "not valid"))
    if kind == "unsupported_value":
        return wrong(param, f"{param}: {message}", "unsupported_value")
    message = message[:1].lower() + message[1:]
    return wrong(param, f"{param or 'body'}: found {shown(found.get('input'))}, but {message}")


def _name(location: Sequence[object]) -> str | None:
    """Return the name of a field as clients write it, ``messages[0].content``."""
    name = ""
    for part in location[1:]:
        if isinstance(part, int):
            name += f"[{part}]"
        elif isinstance(part, str) and not part.startswith(_KINDS):
            name += f".{part}" if name else part
    return name or None
