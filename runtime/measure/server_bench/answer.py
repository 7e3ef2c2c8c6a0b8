"""Holds what came of a request, and reads it from the bodies and chunks that servers send."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

from fastblt.models.shown import shown

#: Kinds of errors, besides ``HTTP status``.
NO_CONNECTION = "no connection"
TIMEOUT = "timeout"
CUT_OFF = "cut off"
NOT_UNDERSTOOD = "not understood"
REPORTED = "reported in the stream"


class NotUnderstoodError(ValueError):
    """Reports a body or chunk that is not what the interface of OpenAI has."""


class ReportedError(ValueError):
    """Reports an error that a server writes in place of a body or chunk."""


@dataclass
class Usage:
    """Counts tokens, as the server reports them: bytes, if it is this project's."""

    prompt: int = 0
    completion: int = 0
    cached: int | None = None
    """Of the prompt, those that the server did not have to read again."""
    accepted: int | None = None
    rejected: int | None = None


@dataclass
class Answer:
    """Holds what came of one request; times are seconds after it was sent."""

    prompt: int
    """Index of the prompt."""
    seconds: float = 0.0
    arrivals: list[float] = field(default_factory=list)
    """When text arrived; what one read of the socket brings is one arrival."""
    text: str = ""
    finish: str | None = None
    usage: Usage | None = None
    error: str | None = None
    """Kind of the error; None: the answer is complete."""
    detail: str = ""
    """What the server, or the system, reports about the error."""
    retry_after: float | None = None
    """Seconds after which the server wants to be asked again."""

    def fail(self, kind: str, detail: str = "") -> Answer:
        """Make this the answer of a request that failed."""
        self.error, self.detail = kind, " ".join(detail.split())[:200]
        return self

    def take(self, data: bytes, *, chat: bool) -> bool:
        """Read a body or a chunk; return whether it has text.

        Raises:
            NotUnderstoodError: it is not what the interface of OpenAI has.
            ReportedError: it is a report of an error.
        """
        body = read_object(data)
        if body.get("error"):
            raise ReportedError(message_of(body))
        choices = body.get("choices")
        if not isinstance(choices, list):
            raise NotUnderstoodError(f"found {shown(body)}, expected an object with choices")
        self.usage = _usage(body.get("usage")) or self.usage
        added = ""
        for choice in choices[:1]:
            if not isinstance(choice, dict):
                raise NotUnderstoodError(f"found {shown(choice)}, expected a choice")
            added += _text(choice, chat=chat)
            finish = choice.get("finish_reason")
            self.finish = finish if isinstance(finish, str) else self.finish
        self.text += added
        return bool(added)


def read_object(data: bytes) -> dict[str, Any]:
    """Return a JSON object.

    Raises:
        NotUnderstoodError: the bytes are none.
    """
    try:
        body = json.loads(data)
    except (ValueError, RecursionError):
        body = None
    if not isinstance(body, dict):
        raise NotUnderstoodError(f"found {shown(data[:60].decode('utf-8', 'replace'))}, expected a JSON object")
    return body


def message_of(body: object) -> str:
    """Return the message in a body of an error, OpenAI's or another; empty where there is none."""
    error = body.get("error", body) if isinstance(body, dict) else body
    message = (error.get("message") or error.get("detail")) if isinstance(error, dict) else error
    return message if isinstance(message, str) else ""


def _text(choice: dict[str, Any], *, chat: bool) -> str:
    """Return the text of a choice: of a completion, of a message, or of a part of one."""
    found: Any = choice.get("text")
    if chat:
        message = choice.get("delta") or choice.get("message") or {}
        found = message.get("content") if isinstance(message, dict) else message
    if found is not None and not isinstance(found, str):
        raise NotUnderstoodError(f"found {shown(found)}, expected text")
    return found or ""


def _usage(found: Any) -> Usage | None:
    """Return the counts of a usage; None where there is none, as in all chunks but the last."""
    if not isinstance(found, dict):
        return None
    prompt, completion = (_details(found, f"{name}_tokens_details") for name in ("prompt", "completion"))
    return Usage(
        _count(found.get("prompt_tokens")) or 0,
        _count(found.get("completion_tokens")) or 0,
        _count(prompt.get("cached_tokens")),
        _count(completion.get("accepted_prediction_tokens")),
        _count(completion.get("rejected_prediction_tokens")),
    )


def _details(usage: dict[str, Any], name: str) -> dict[str, Any]:
    found = usage.get(name)
    return found if isinstance(found, dict) else {}


def _count(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**53 else None
