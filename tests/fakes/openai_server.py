"""A server with the interface of OpenAI that runs in a thread of the tests; the first part of a path chooses what it
does: ``http://127.0.0.1:PORT/ok/v1`` answers, the others fail in ways of their own."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Any

import uvicorn

Send = Callable[[dict[str, Any]], Awaitable[None]]

KEY = "sk-of-the-tests"
#: Pieces of every answer: a character is never cut, but they are not of one size.
PIECES = ("four", " é", "\u2028", "")
TEXT = "".join(PIECES)


class OpenAiServer:
    """Answers, and keeps the requests that arrived."""

    def __init__(self) -> None:
        self.bodies: list[dict[str, Any]] = []
        self.open = 0
        self.most_open = 0
        self.url = ""

    async def __call__(self, scope: dict[str, Any], receive: Callable[[], Awaitable[Any]], send: Send) -> None:
        assert scope["type"] == "http"
        body = b""
        more = True
        while more:
            message = await receive()
            body, more = body + message.get("body", b""), message.get("more_body", False)
        _, kind, *rest = scope["path"].split("/")
        request = json.loads(body) if body else {}
        authorized = dict(scope["headers"]).get(b"authorization") == f"Bearer {KEY}".encode()
        if kind == "locked" and not authorized:
            await reply(send, 401, {"error": {"message": "wrong key", "type": "invalid_request_error"}})
        elif kind == "defect":
            await reply(send, 500, b"Internal Server Error", b"text/plain")
        elif kind == "rubbish":
            await reply(send, 200, b"<html>welcome</html>", b"text/html")
        elif rest[-1] == "models":
            models = [] if kind == "empty" else [{"id": "tiny", "object": "model"}]
            await reply(send, 200, {"object": "list", "data": models})
        elif rest[-1] == "completions" and kind in ANSWERS:
            self.bodies.append(request)
            self.open += 1
            self.most_open = max(self.open, self.most_open)
            try:
                await ANSWERS[kind](send, request, len(self.bodies), "chat" in rest)
            finally:
                self.open -= 1
        else:
            await reply(send, 404, {"detail": "Not Found"})


async def reply(send: Send, status: int, body: object, kind: bytes = b"application/json", **headers: str) -> None:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    more = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
    await send({"type": "http.response.start", "status": status, "headers": [(b"content-type", kind), *more]})
    await send({"type": "http.response.body", "body": data})


async def begin_stream(send: Send) -> None:
    headers = [(b"content-type", b"text/event-stream; charset=utf-8")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})


async def write(send: Send, data: bytes, *, more: bool = True) -> None:
    await send({"type": "http.response.body", "body": data, "more_body": more})


def chunk(text: str, *, chat: bool, finish: str | None = None) -> bytes:
    choice: dict[str, Any] = {"index": 0, "finish_reason": finish}
    choice.update({"delta": {"content": text}} if chat else {"text": text})
    return b"data: " + json.dumps({"choices": [choice]}, ensure_ascii=False).encode() + b"\n\n"


USAGE = {
    "prompt_tokens": 64,
    "completion_tokens": 7,
    "prompt_tokens_details": {"cached_tokens": 16},
    "completion_tokens_details": {"accepted_prediction_tokens": 3, "rejected_prediction_tokens": 1},
}


async def answer(send: Send, request: dict[str, Any], number: int, chat: bool) -> None:
    """Everything that a server may send: usage, drafts, what the prompt had in common with earlier ones."""
    if not request.get("stream"):
        choice = {"message": {"role": "assistant", "content": TEXT}} if chat else {"text": TEXT}
        choices = [{"index": 0, "finish_reason": "length", **choice}]
        await asyncio.sleep(0.01)
        await reply(send, 200, {"choices": choices, "usage": USAGE})
        return
    await begin_stream(send)
    for piece in PIECES:
        await write(send, chunk(piece, chat=chat))
        await asyncio.sleep(0.01)
    await write(send, chunk("", chat=chat, finish="length"))
    if request.get("stream_options", {}).get("include_usage"):
        await write(send, b"data: " + json.dumps({"choices": [], "usage": USAGE}).encode() + b"\n\n")
    await write(send, b"data: [DONE]\n\n", more=False)


async def old(send: Send, request: dict[str, Any], number: int, chat: bool) -> None:
    """No extension, no usage, no ``[DONE]``; comments, and lines of another kind."""
    if set(request) - {"model", "prompt", "max_tokens", "temperature", "stream"}:
        await reply(send, 422, {"detail": [{"msg": "extra field"}]})
        return
    await begin_stream(send)
    await write(send, b": ping\r\n\r\nevent: message\r\n")
    data = chunk("abc", chat=chat, finish="stop").replace(b"\n", b"\r\n")
    for part in (data[:9], data[9:-1], data[-1:]):
        await write(send, part)
        await asyncio.sleep(0.005)
    await write(send, b"", more=False)


async def busy(send: Send, request: dict[str, Any], number: int, chat: bool) -> None:
    if number % 3 == 0:
        await reply(send, 429, {"error": {"message": "queue is full"}}, retry_after="0")
    else:
        await answer(send, request, number, chat)


async def reports(send: Send, request: dict[str, Any], number: int, chat: bool) -> None:
    await begin_stream(send)
    await write(send, b'data: {"error": {"message": "out of\\nmemory"}}\n\n', more=False)


async def cut(send: Send, request: dict[str, Any], number: int, chat: bool) -> None:
    await begin_stream(send)
    await write(send, chunk("abc", chat=chat))
    raise ConnectionAbortedError


async def ends(send: Send, request: dict[str, Any], number: int, chat: bool) -> None:
    await begin_stream(send)
    await write(send, chunk("abc", chat=chat), more=False)


async def damaged(send: Send, request: dict[str, Any], number: int, chat: bool) -> None:
    await begin_stream(send)
    await write(send, b'data: {"choices": [\n\n', more=False)


async def strange(send: Send, request: dict[str, Any], number: int, chat: bool) -> None:
    await reply(send, 200, {"choices": [{"text": 5}]} if not request.get("stream") else {"choices": []})


async def silent(send: Send, request: dict[str, Any], number: int, chat: bool) -> None:
    await asyncio.sleep(1.0)


ANSWERS = {
    "ok": answer,
    "locked": answer,
    "old": old,
    "busy": busy,
    "reports": reports,
    "cut": cut,
    "ends": ends,
    "damaged": damaged,
    "strange": strange,
    "silent": silent,
    "empty": answer,
}


@contextmanager
def openai_server() -> Iterator[OpenAiServer]:
    """Run the server in a thread, on a free port."""
    app = OpenAiServer()
    config = uvicorn.Config(app, host="127.0.0.1", port=0, log_level="critical", lifespan="off")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    end = time.monotonic() + 20
    while not server.started:
        assert time.monotonic() < end
        time.sleep(0.01)
    app.url = f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    yield app
    server.should_exit = server.force_exit = True
    thread.join(20)
