"""Completes the OpenAPI schema: errors as they are, streams, and no 422, which FastAPI would answer."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from pydantic import BaseModel

from fastblt.runtime.serving.responses import ErrorBody

_MEANINGS = {
    400: "The request is malformed, asks for too much, or for what the model cannot do",
    401: "No valid key",
    404: "No such path, or another model",
    405: "Another method is expected",
    408: "The body did not arrive in time",
    413: "The body is too large",
    429: "Too many texts wait; ask again after Retry-After",
    500: "A defect of the server",
    503: "The model is loading, or the server is ending; ask again after Retry-After",
    504: "The text did not end in time",
}
#: Every error that an endpoint may answer.
ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"model": ErrorBody, "description": meaning} for status, meaning in _MEANINGS.items()
}


def stream_of(whole: type[BaseModel], part: type[BaseModel]) -> dict[str, Any]:
    """Return the description of an answer that is one object, or a stream of events."""
    events = f"Events of server-sent events, each the JSON of {part.__name__}, and `[DONE]` after the last"
    event = {"type": "object", "properties": {"data": {"type": "string"}}, "required": ["data"]}
    return {
        "model": whole,
        "description": f"{whole.__name__}; with `stream`: {events}",
        "content": {"text/event-stream": {"itemSchema": {**event, "description": events}}},
    }


def describe(app: FastAPI) -> None:
    """Make the application's schema one without 422."""
    generate = app.openapi

    def schema() -> dict[str, Any]:
        found = generate()
        for operations in found["paths"].values():
            for operation in operations.values():
                operation["responses"].pop("422", None)
        for name in ("HTTPValidationError", "ValidationError"):
            found.get("components", {}).get("schemas", {}).pop(name, None)
        return found

    app.openapi = schema  # type: ignore[method-assign]
