"""Guards the interface before a request is looked at: keys, sizes, slow bodies; and logs every answer."""

from __future__ import annotations

import asyncio
import logging
import re
import secrets
import time
from typing import Any

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from fastblt.runtime.serving.api_error import ApiError, internal
from fastblt.runtime.serving.api_keys import ApiKeys
from fastblt.runtime.serving.metrics import Metrics

log = logging.getLogger("fastblt.serving")

#: Paths that need a key where there are keys; probes, figures and the page do not.
GUARDED = "/v1"
_REQUEST_ID = re.compile(r"[A-Za-z0-9._:-]{1,64}")
#: Key of a scope under which endpoints leave what the log should have.
FACTS = "fastblt.facts"


class RequestLog:
    """Gives every request an id, writes one line of the log about it, and keeps what is inside inside."""

    def __init__(self, app: ASGIApp, metrics: Metrics, paths: frozenset[str]) -> None:
        self.app = app
        self.metrics = metrics
        self.paths = paths

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        given = Headers(scope=scope).get("x-request-id", "")
        request_id = given if _REQUEST_ID.fullmatch(given) else f"req_{secrets.token_hex(12)}"
        facts: dict[str, Any] = {"request_id": request_id, "method": scope["method"], "path": scope["path"][:200]}
        scope[FACTS] = facts
        status = 0

        async def observed(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message)["X-Request-Id"] = request_id
            await send(message)

        began = time.perf_counter()
        try:
            await self.app(scope, receive, observed)
        except Exception as error:
            log_defect("a request failed", facts, error)
            if status:
                raise
            facts["code"] = "internal"
            await internal().response()(scope, receive, observed)
        finally:
            self._report(path_of(scope), facts, status, time.perf_counter() - began)

    def _report(self, path: str, facts: dict[str, Any], status: int, seconds: float) -> None:
        path = path if path in self.paths else "other"
        self.metrics.answered(path, status)
        if "code" in facts:
            self.metrics.failed(facts["code"])
        elif status >= 400:
            self.metrics.failed(str(status))
        level = logging.DEBUG if path in ("/health", "/ready", "/metrics") and status < 400 else logging.INFO
        log.log(level, "request", extra={"facts": {"event": "request", **facts, "status": status, "seconds": seconds}})


class KeyCheck:
    """Refuses requests without a key, before their body is read."""

    def __init__(self, app: ASGIApp, keys: ApiKeys) -> None:
        self.app = app
        self.keys = keys

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        if self._passes(scope):
            await self.app(scope, receive, send)
        else:
            error = ApiError(
                401,
                "found no valid key, expected one of the server's (Authorization: Bearer KEY)",
                code="invalid_api_key",
                headers={"WWW-Authenticate": "Bearer"},
            )
            scope[FACTS]["code"] = error.code
            await error.response()(scope, receive, send)

    def _passes(self, scope: Scope) -> bool:
        if scope["type"] != "http" or not is_guarded(path_of(scope)):
            return True
        return self.keys.accept(Headers(scope=scope).get("authorization"))


def log_defect(what: str, facts: dict[str, Any], error: BaseException) -> None:
    """Write to the log why a request failed, under its id."""
    log.error(what, extra={"facts": {"event": "defect", "request_id": facts["request_id"]}}, exc_info=error)


def path_of(scope: Scope) -> str:
    """Return the path below the one at which a host has the application."""
    path, root = str(scope["path"]), str(scope.get("root_path", "")).rstrip("/")
    return path.removeprefix(root) if path.startswith(f"{root}/") else path


def is_guarded(path: str) -> bool:
    """Return whether a path needs a key."""
    return path == GUARDED or path.startswith(f"{GUARDED}/")


class BodyLimit:
    """Reads the body of a request before it is looked at: so much of it, and no longer than a client may take."""

    def __init__(self, app: ASGIApp, most: int, seconds: float) -> None:
        self.app = app
        self.most = most
        self.seconds = seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        if scope["type"] != "http" or scope["method"] in ("GET", "HEAD", "OPTIONS"):
            await self.app(scope, receive, send)
            return
        try:
            body = await self._read(Headers(scope=scope), receive)
        except ApiError as error:
            scope[FACTS]["code"] = error.code
            await error.response()(scope, receive, send)
            return
        if body is None:
            return  # the client is gone
        pending: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

        async def replayed() -> Message:
            return pending.pop() if pending else await receive()

        await self.app(scope, replayed, send)

    async def _read(self, headers: Headers, receive: Receive) -> bytes | None:
        length = headers.get("content-length", "")
        if length.isdecimal() and len(length) < 20 and int(length) > self.most:
            raise self._too_large()
        parts: list[bytes] = []
        size = 0
        deadline = time.monotonic() + self.seconds
        more = True
        while more:
            try:
                message = await asyncio.wait_for(receive(), deadline - time.monotonic())
            except (TimeoutError, asyncio.TimeoutError):
                message_of = f"found no end of the body after {self.seconds:g} s, expected one"
                raise ApiError(408, message_of, code="slow_body", headers={"Connection": "close"}) from None
            if message["type"] == "http.disconnect":
                return None
            parts.append(message.get("body", b""))
            size += len(parts[-1])
            if size > self.most:
                raise self._too_large()
            more = message.get("more_body", False)
        return b"".join(parts)

    def _too_large(self) -> ApiError:
        return ApiError(
            413,
            f"found a body of more than {self.most} bytes, expected at most as many",
            code="body_too_large",
            headers={"Connection": "close"},
        )
