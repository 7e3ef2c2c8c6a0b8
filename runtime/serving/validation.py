"""Turns what FastAPI finds wrong with a request into one error of OpenAI's kind."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from fastapi.exceptions import RequestValidationError

from fastblt.models.shown import shown
from fastblt.runtime.serving.api_error import ApiError, wrong

#: What pydantic puts into the path to a value, besides fields: the kinds that a union could have been.
_KINDS = re.compile(r"str|int|float|bool|dict|(constrained-|list|function-|nullable|dict\[).*")
#: Most characters of a reason.
_REASON = 200


def first_error(error: RequestValidationError) -> ApiError:
    """Return the first of the errors, with the name of its field.

    Of a value that may have several types, the message is about the type that fits best.
    """
    errors = error.errors()
    kind = errors[0].get("type", "")
    if kind == "json_invalid":
        return _no_json((errors[0].get("ctx") or {}).get("error", ""))
    param = _name(errors[0].get("loc", ()))
    found = _closest(errors)
    if found is not errors[0]:
        return wrong(param, _message(found))
    codes = {
        "extra_forbidden": "unknown_parameter",
        "missing": "missing_required_parameter",
        "unsupported_value": "unsupported_value",
    }
    if param is None and kind != "too_many":
        return wrong(None, "body: found no JSON object, expected one (Content-Type: application/json)")
    return wrong(param, _message(found), codes.get(kind, "invalid_value"))


def unreadable(reason: BaseException) -> ApiError:
    """Return the error of a body that is no text, has too many brackets, or a number with too many digits."""
    return _no_json(" ".join(str(reason).split())[:_REASON])


def _no_json(reason: str) -> ApiError:
    return wrong(None, f"body: not JSON ({reason}), expected a JSON object", "invalid_json")


def _closest(errors: Sequence[Any]) -> Any:
    """Return the first error, or of a value that may have several types, that of the type that fits best.

    Such a value has an error for each type. Another type altogether is further away than a wrong value, and what is
    wrong at the beginning further than what is wrong inside.
    """
    *field, kind = errors[0].get("loc", ()) or ("",)
    if not (isinstance(kind, str) and _KINDS.fullmatch(kind)):
        return errors[0]
    same = [each for each in errors if list(each["loc"][: len(field)]) == field]
    return max(same, key=lambda each: (not each["type"].endswith("_type"), len(each["loc"]), _index(each["loc"])))


def _index(location: Sequence[object]) -> int:
    return location[-1] if isinstance(location[-1], int) else 0


def _message(found: Any) -> str:
    """Return what was found, and what was expected."""
    kind, message = found.get("type", ""), str(found.get("msg", "not valid"))
    name = _name(found.get("loc", ())) or "body"
    if kind == "extra_forbidden":
        return f"{name}: found an unknown field, expected those of the interface"
    if kind == "missing":
        return f"{name}: found nothing, expected a value"
    if kind in ("unsupported_value", "too_many"):
        return f"{name}: {message}"
    expected = message.removeprefix("Input should be ")
    because = f"expected {expected}" if expected != message else message[:1].lower() + message[1:]
    if kind == "string_pattern_mismatch" and found["loc"][-1] == "[key]":  # of `logit_bias`
        because = "expected a byte value from 0 to 255, in digits"
    return f"{name}: found {shown(found.get('input'))}, {because}"


def _name(location: Sequence[object]) -> str | None:
    """Return the name of a field as clients write it, ``messages[0].content``."""
    name = ""
    for part in location[1:]:
        if isinstance(part, int):
            name += f"[{part}]"
        elif isinstance(part, str) and not _KINDS.fullmatch(part):
            name += f".{part}" if name else part
    return name or None
