"""Answers a request for texts: whole, or as server-sent events. What differs between endpoints is a `Writer`'s."""

from __future__ import annotations

import asyncio
import secrets
import time
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from typing import Any

from sse_starlette import EventSourceResponse
from sse_starlette.sse import SendTimeoutError
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.types import Receive, Scope, Send

from fastblt.runtime.backends.protocol import parts_in
from fastblt.runtime.generation import Prompt
from fastblt.runtime.request import GenerationRequest
from fastblt.runtime.serving.api_error import ApiError, internal, to_json
from fastblt.runtime.serving.deadline import Deadline
from fastblt.runtime.serving.gates import FACTS, log_defect
from fastblt.runtime.serving.model_host import ModelHost
from fastblt.runtime.serving.pieces import Piece, PieceReader, details, merged
from fastblt.runtime.serving.plan import prompt_bytes, prompt_length
from fastblt.runtime.serving.requests import TextFields
from fastblt.runtime.serving.texts import Texts

#: Seconds between comments that keep a connection open while nothing else is sent.
_PING_SECONDS = 15
#: Status, for the log only, of a request whose client is gone.
_CLIENT_GONE = 499

_FINISH = {"length": "length", "stop": "stop", "eos": "stop"}


class Writer(ABC):
    """Writes one endpoint's answers.

    Args:
        model: name of the model.
        body: the request.
    """

    prefix: str
    whole: str
    part: str

    def __init__(self, model: str, body: TextFields) -> None:
        self.body = body
        self._head = {"id": f"{self.prefix}-{secrets.token_hex(12)}", "created": int(time.time()), "model": model}

    def answer(self, choices: list[dict[str, Any]], texts: Texts) -> dict[str, Any]:
        """Return the body of a whole answer."""
        body = {**self._head, "object": self.whole, "choices": choices, "usage": usage(texts, self.body.n or 1)}
        return {**body, "fastblt": costs(texts)} if self.body.details else body

    def event(self, choices: list[dict[str, Any]]) -> dict[str, Any]:
        """Return an event of a stream."""
        body = {**self._head, "object": self.part, "choices": choices}
        return {**body, "usage": None} if self.body.with_usage else body

    def last_event(self, texts: Texts) -> dict[str, Any] | None:
        """Return the event that reports counts; None: they are not wanted."""
        if not (self.body.with_usage or self.body.details):
            return None
        body = self.event([])
        if self.body.with_usage:
            body["usage"] = usage(texts, self.body.n or 1)
        return {**body, "fastblt": costs(texts)} if self.body.details else body

    def extras(self, piece: Piece) -> dict[str, Any]:
        """Return the details of a choice, where they are wanted."""
        return {"fastblt": details(piece.chunk)} if self.body.details else {}

    @abstractmethod
    def first_choice(self, index: int, echo: Piece | None) -> dict[str, Any] | None:
        """Return the choice that begins a stream; None: it begins with the text."""

    @abstractmethod
    def part_choice(self, index: int, piece: Piece) -> dict[str, Any]:
        """Return a choice with a piece of text."""

    @abstractmethod
    def last_choice(self, index: int, rest: str, finish: str) -> dict[str, Any]:
        """Return the choice that ends a text."""

    @abstractmethod
    def whole_choice(self, index: int, pieces: Sequence[Piece], rest: str, finish: str) -> dict[str, Any]:
        """Return a choice with a whole text."""


class Reply:
    """Answers one request.

    Raises:
        ApiError: the texts cannot be begun.
    """

    def __init__(
        self,
        host: ModelHost,
        request: Request,
        writer: Writer,
        wanted: Sequence[tuple[Prompt, GenerationRequest]],
        deadline: Deadline,
        *,
        echo: bool = False,
    ) -> None:
        self.host = host
        self.request = request
        self.writer = writer
        self.wanted = wanted
        self.echo = echo
        self.readers = [PieceReader() for _ in wanted]
        self.facts: dict[str, Any] = request.scope[FACTS]
        self.texts = host.submit(wanted, deadline)
        host.requests += 1

    async def respond(self) -> Response:
        """Return the response; the texts end with it, or with the connection."""
        if self.writer.body.stream:
            return EventStream(self)
        try:
            return await self._unless_gone()
        finally:
            self.close()

    def close(self) -> None:
        """End what has not ended, and complete the log."""
        self.texts.cancel()
        self.host.requests -= 1
        self.facts.update(facts(self.texts))
        if self.host.settings.log_prompts:
            self.facts["prompts"] = [repr(prompt_bytes(prompt)) for prompt, _ in self.wanted]

    async def _unless_gone(self) -> Response:
        """Return the whole answer; where the client goes away, stop."""
        answer = asyncio.ensure_future(self._whole())
        gone = asyncio.ensure_future(_disconnected(self.request.receive))
        try:
            await asyncio.wait({answer, gone}, return_when=asyncio.FIRST_COMPLETED)
            return JSONResponse(answer.result()) if answer.done() else Response(status_code=_CLIENT_GONE)
        finally:
            self.texts.cancel()
            answer.cancel()
            gone.cancel()
            await asyncio.gather(answer, gone, return_exceptions=True)  # how they end interests nobody any more

    async def _whole(self) -> dict[str, Any]:
        pieces = [self._echoes(index) for index in range(len(self.wanted))]
        async for growth in self.texts.growth():
            pieces[growth.number] += [self.readers[growth.number].read([chunk]) for chunk in growth.chunks]
        choices = [
            self.writer.whole_choice(index, pieces[index], reader.finish(), self._finish(index))
            for index, reader in enumerate(self.readers)
        ]
        return self.writer.answer(choices, self.texts)

    def _echoes(self, index: int) -> list[Piece]:
        return [self.readers[index].echo(prompt_bytes(self.wanted[index][0]))] if self.echo else []

    def _finish(self, index: int) -> str:
        return _FINISH[self.texts.jobs[index].finish]

    async def events(self) -> AsyncIterator[dict[str, str]]:
        """Yield the events of a stream; an error is the last of them."""
        try:
            async for event in self._events():
                yield _data(event)
            yield {"data": "[DONE]"}
        except ApiError as error:
            if error.__cause__ is not None:
                log_defect("a text failed", self.facts, error.__cause__)
            self.facts["code"] = error.code
            yield _data(error.body)
        except Exception as error:
            log_defect("a stream failed", self.facts, error)
            self.facts["code"] = "internal"
            yield _data(internal().body)

    async def _events(self) -> AsyncIterator[dict[str, Any]]:
        writer = self.writer
        for index in range(len(self.wanted)):
            choice = writer.first_choice(index, next(iter(self._echoes(index)), None))
            if choice is not None:
                yield writer.event([choice])
        async for growth in self.texts.growth():
            reader = self.readers[growth.number]
            together = [growth.chunks] if growth.chunks else []
            for chunks in [[chunk] for chunk in growth.chunks] if writer.body.details else together:
                piece = reader.read(chunks)
                if piece.text or piece.logprobs or writer.body.details or (writer.body.return_bytes and piece.data):
                    choice = writer.part_choice(growth.number, piece)
                    if writer.body.details:
                        choice["fastblt"]["calls"] = calls_of(self.texts.jobs[growth.number].counts.nfe)
                    yield writer.event([choice])
            if growth.ended:
                yield writer.event([writer.last_choice(growth.number, reader.finish(), self._finish(growth.number))])
        last = writer.last_event(self.texts)
        if last is not None:
            yield last


class EventStream(EventSourceResponse):
    """Sends the events of a reply; whatever ends it ends the texts, too."""

    def __init__(self, reply: Reply) -> None:
        super().__init__(reply.events(), ping=_PING_SECONDS, sep="\n", send_timeout=reply.host.settings.stall)
        self._reply = reply

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the response."""
        try:
            await super().__call__(scope, receive, send)
        except SendTimeoutError:
            self._reply.facts["code"] = "stalled"  # who hosts the application closes the connection
        finally:
            self._reply.close()


async def _disconnected(receive: Receive) -> None:
    """Wait until the client is gone."""
    while (await receive())["type"] != "http.disconnect":
        pass


def _data(body: dict[str, Any]) -> dict[str, str]:
    return {"data": to_json(body).decode("ascii")}


def merged_pieces(pieces: Sequence[Piece]) -> Piece:
    """Return one piece with all that some have."""
    return Piece(
        "".join(piece.text for piece in pieces),
        b"".join(piece.data for piece in pieces),
        [each for piece in pieces for each in piece.logprobs],
        merged(piece.chunk for piece in pieces),
    )


def usage(texts: Texts, choices: int) -> dict[str, Any]:
    """Return the counts of a request; a prompt counts once, however many choices it has."""
    prompts = texts.jobs[::choices]
    prompt = sum(prompt_length(job.prompt) for job in prompts)
    new = sum(job.stats.new_bytes for job in texts.jobs)
    # The last draft may go on behind the end of the text.
    accepted = sum(min(job.stats.accepted, job.stats.new_bytes) for job in texts.jobs)
    rejected = sum(job.stats.drafted - job.stats.accepted for job in texts.jobs)
    return {
        "prompt_tokens": prompt,
        "completion_tokens": new,
        "total_tokens": prompt + new,
        "prompt_tokens_details": {"cached_tokens": sum(job.stats.reused_bytes for job in prompts)},
        "completion_tokens_details": {"accepted_prediction_tokens": accepted, "rejected_prediction_tokens": rejected},
    }


def costs(texts: Texts) -> dict[str, Any]:
    """Return what a request cost; times are from the request on, waiting included."""
    stats = [job.stats for job in texts.jobs]
    calls: Counter[str] = sum((each.nfe for each in stats), Counter())
    return {
        "method": texts.jobs[0].request.decoding_method().name,
        "rounds": sum(each.rounds for each in stats),
        "drafted": sum(each.drafted for each in stats),
        "accepted": sum(each.accepted for each in stats),
        "calls": calls_of(calls),
        "first_byte_seconds": min((job.first_byte_seconds or job.total_seconds for job in texts.jobs), default=0.0),
        "total_seconds": max(job.total_seconds for job in texts.jobs),
        "reused_bytes": sum(each.reused_bytes for each in stats),
    }


def calls_of(counter: Counter[str]) -> dict[str, int]:
    """Return the calls of every part, those without any too."""
    return {part: counter[part] for part in parts_in(counter)}


def facts(texts: Texts) -> dict[str, Any]:
    """Return what the log has about texts: no byte of them."""
    return {
        "decoding": texts.jobs[0].request.decoding_method().name,
        "texts": len(texts.jobs),
        "prompt_bytes": sum(prompt_length(job.prompt) for job in texts.jobs),
        "new_bytes": sum(job.counts.new_bytes for job in texts.jobs),
        "finish": [("error" if job.error else job.finish) or "cancelled" for job in texts.jobs],
        "first_byte_seconds": min((s for job in texts.jobs if (s := job.first_byte_seconds) is not None), default=None),
    }
