"""Keeps a server busy with a number of clients, each of which waits for its answer before it asks again."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from itertools import count
from typing import TYPE_CHECKING

from fastblt.runtime.measure.server_bench.answer import Answer
from fastblt.runtime.measure.server_bench.client import Connector, Question, ask, body_of
from fastblt.runtime.measure.server_bench.request import ServerBenchRequest

if TYPE_CHECKING:
    import httpx

#: Seconds that a client waits after an error, unless the server specifies others, and the most it waits for those.
_PAUSE, _LONGEST_PAUSE = 0.1, 5.0


@dataclass(frozen=True)
class Target:
    """Is a server that has answered."""

    connector: Connector
    model: str
    with_usage: bool
    """Whether it takes ``stream_options``."""

    @property
    def request(self) -> ServerBenchRequest:
        """Return what is measured."""
        return self.connector.request

    async def ask(self, client: httpx.AsyncClient, question: Question) -> Answer:
        """Send a request and read its answer to the end."""
        body = body_of(self.request, self.model, question, with_usage=self.with_usage)
        return await ask(client, self.request, body, question.prompt)


@dataclass(frozen=True)
class Load:
    """Holds what came of one row's requests."""

    endpoint: str
    """URL that they went to."""
    clients: int
    method: str | None
    answers: list[Answer]
    seconds: float
    """From the first request to the end of the last answer."""


async def put_load(
    target: Target,
    clients: int,
    method: str | None,
    prompts: Sequence[str],
    on_answer: Callable[[int], None] = lambda answered: None,
) -> Load:
    """Let a number of clients ask until the time is over, or all requests are made.

    Args:
        target: whom to ask.
        clients: number of clients.
        method: to ask for; None: the server's own.
        prompts: taken in turn, over all clients.
        on_answer: called after each answer with the number of answers.
    """
    request = target.request
    numbers = count() if request.requests is None else iter(range(request.requests))
    users = [target.connector.connect() for _ in range(clients)]
    began = time.perf_counter()
    end = float("inf") if request.duration is None else began + request.duration
    answers: list[Answer] = []

    async def act(client: httpx.AsyncClient, numbers: Iterator[int]) -> None:
        for number in numbers:
            index = number % len(prompts)
            answer = await target.ask(client, Question(index, prompts[index], method))
            answers.append(answer)
            on_answer(len(answers))
            if answer.error is not None:
                await asyncio.sleep(min(answer.retry_after or _PAUSE, _LONGEST_PAUSE))
            if time.perf_counter() >= end:
                break

    async with AsyncExitStack() as stack:
        for user in users:
            await stack.enter_async_context(user)
        await asyncio.gather(*(act(user, numbers) for user in users))
        return Load(request.endpoint, clients, method, answers, time.perf_counter() - began)
