"""Defines errors as clients of OpenAI expect them: a status, and one body for all of them."""

from __future__ import annotations

import json
from typing import Any

from fastapi.responses import JSONResponse

_KINDS = {401: "authentication_error", 404: "not_found_error", 429: "rate_limit_error"}


class ApiError(Exception):
    """Ends a request with a status and a message that its client may see."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        code: str | None = None,
        param: str | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.code = code
        self.param = param
        self.headers = headers or {}

    @property
    def body(self) -> dict[str, Any]:
        """Return the body of the answer."""
        kind = _KINDS.get(self.status, "server_error" if self.status >= 500 else "invalid_request_error")
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}

    def response(self) -> JSONResponse:
        """Return the answer."""
        return AsciiResponse(self.body, self.status, self.headers)


class AsciiResponse(JSONResponse):
    """Answers with JSON in ASCII: a message may repeat half a character of the request, which UTF-8 cannot express."""

    def render(self, content: Any) -> bytes:
        """Return the body."""
        return to_json(content)


def to_json(content: Any) -> bytes:
    """Return JSON in one line of ASCII."""
    return json.dumps(content, allow_nan=False, separators=(",", ":")).encode("ascii")


def wrong(param: str | None, message: str, code: str = "invalid_value") -> ApiError:
    """Return the error of a request with a value that cannot be used."""
    return ApiError(400, message, code=code, param=param)


def unavailable(message: str, code: str, seconds: int = 1) -> ApiError:
    """Return the error of a server that cannot generate now; a client may ask again after some seconds."""
    return ApiError(503, message, code=code, headers={"Retry-After": str(seconds)})


def queue_full(waiting: str) -> ApiError:
    """Return the error of a request that would have to wait behind too many others."""
    message = f"found {waiting}, expected fewer; ask again later"
    return ApiError(429, message, code="queue_full", headers={"Retry-After": "1"})


def internal() -> ApiError:
    """Return the error of a defect: what is inside stays inside."""
    return ApiError(500, "the server failed; its log has the reason under this request's X-Request-Id", code="internal")
