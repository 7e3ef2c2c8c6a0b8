"""Sends one request the way a user's program does, and notes when the answer arrives."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fastblt.runtime.measure.server_bench.answer import (
    CUT_OFF,
    NO_CONNECTION,
    NOT_UNDERSTOOD,
    REPORTED,
    TIMEOUT,
    Answer,
    NotUnderstoodError,
    ReportedError,
    message_of,
    read_object,
)
from fastblt.runtime.measure.server_bench.events import EventReader
from fastblt.runtime.measure.server_bench.request import ServerBenchRequest

if TYPE_CHECKING:
    import httpx

#: Most bytes that are read of the body of an error.
_ERROR_BYTES = 65_536
_DONE = b"[DONE]"


@dataclass(frozen=True)
class Question:
    """Holds what one request asks for."""

    prompt: int
    """Index of the prompt."""
    text: str
    method: str | None
    """None: the field is not sent."""


class Connector:
    """Makes clients that have a connection each, as those of different users: one pool for all costs more than asking.

    Raises:
        ModuleNotFoundError: httpx is not installed.
    """

    def __init__(self, request: ServerBenchRequest) -> None:
        import httpx

        self.request = request
        self._trusted = httpx.create_ssl_context()  # takes longer than a request: once for all clients

    def connect(self) -> httpx.AsyncClient:
        """Return a client that keeps its connection."""
        import httpx

        timeout = httpx.Timeout(self.request.timeout, connect=min(self.request.timeout, 20.0))
        return httpx.AsyncClient(headers=self.request.headers, timeout=timeout, verify=self._trusted)


def body_of(request: ServerBenchRequest, model: str, question: Question, *, with_usage: bool) -> dict[str, Any]:
    """Return what is sent: greedy, and nothing that the interface of OpenAI does not have unless it was asked for."""
    body: dict[str, Any] = {"model": model, "max_tokens": request.max_new_bytes, "temperature": 0}
    if request.chat:
        body["messages"] = [{"role": "user", "content": question.text}]
    else:
        body["prompt"] = question.text
    if request.stream:
        body["stream"] = True
        if with_usage:
            body["stream_options"] = {"include_usage": True}
    if question.method is not None:
        body["method"] = question.method
    return body


async def ask(client: httpx.AsyncClient, request: ServerBenchRequest, body: dict[str, Any], prompt: int) -> Answer:
    """Send a request and read its answer to the end; an error is an answer too."""
    import httpx

    answer = Answer(prompt)
    began = time.perf_counter()
    try:
        async with client.stream("POST", request.endpoint, json=body) as response:
            if response.status_code != httpx.codes.OK:
                await _read_error(response, answer)
            elif request.stream:
                await _read_events(response, answer, began, chat=request.chat)
            elif answer.take(await response.aread(), chat=request.chat):
                answer.arrivals.append(time.perf_counter() - began)
    except NotUnderstoodError as error:
        answer.fail(NOT_UNDERSTOOD, str(error))
    except ReportedError as error:
        answer.fail(REPORTED, str(error))
    except httpx.TimeoutException as error:
        answer.fail(TIMEOUT, f"found nothing for {request.timeout:g} s" if not str(error) else str(error))
    except (httpx.ConnectError, httpx.UnsupportedProtocol) as error:
        answer.fail(NO_CONNECTION, str(error))
    except (httpx.RemoteProtocolError, httpx.NetworkError) as error:
        answer.fail(CUT_OFF, str(error))
    except httpx.HTTPError as error:
        answer.fail(NOT_UNDERSTOOD, str(error))
    answer.seconds = time.perf_counter() - began
    return answer


async def _read_events(response: httpx.Response, answer: Answer, began: float, *, chat: bool) -> None:
    """Read a stream up to its end.

    Raises:
        NotUnderstoodError: it is no stream of events, or one of them is none of OpenAI's.
        ReportedError: one of them reports an error.
    """
    kind = response.headers.get("content-type", "no content type")
    if not kind.startswith("text/event-stream"):
        raise NotUnderstoodError(f"found {kind}, expected text/event-stream (--no-stream asks for whole answers)")
    reader = EventReader()
    async for piece in response.aiter_bytes():
        now = time.perf_counter() - began
        try:
            events = reader.feed(piece)
        except ValueError as error:
            raise NotUnderstoodError(str(error)) from error
        has_text = False
        for data in events:
            if data.strip() == _DONE:
                answer.finish = answer.finish or "stop"
            else:
                has_text |= answer.take(data, chat=chat)
        if has_text:
            answer.arrivals.append(now)
    if answer.finish is None:
        answer.fail(CUT_OFF, "found the end of the stream, expected a finish_reason or [DONE] before it")


async def _read_error(response: httpx.Response, answer: Answer) -> None:
    """Read the body of an error: OpenAI's, or whatever else a server sends."""
    body = b""
    async for piece in response.aiter_bytes():
        body += piece
        if len(body) > _ERROR_BYTES:
            break
    try:
        message = message_of(read_object(body))
    except NotUnderstoodError:
        message = ""
    answer.fail(f"HTTP {response.status_code}", message)
    seconds = response.headers.get("retry-after", "")
    answer.retry_after = float(seconds) if seconds.isascii() and seconds.isdigit() and len(seconds) < 7 else None
