"""Keeps a server busy with a number of clients, each of which waits for its answer before it asks again."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import count
from typing import TYPE_CHECKING

from fastblt.runtime.measure.server_bench.answer import Answer
from fastblt.runtime.measure.server_bench.client import Question, ask, body_of
from fastblt.runtime.measure.server_bench.request import ServerBenchRequest

if TYPE_CHECKING:
    import httpx

#: Seconds that a client waits after an error, unless the server specifies others, and the most it waits for those.
_PAUSE, _LONGEST_PAUSE = 0.1, 5.0


@dataclass(frozen=True)
class Target:
    """Is a server that has answered."""

    client: httpx.AsyncClient
    request: ServerBenchRequest
    model: str
    with_usage: bool
    """Whether it takes ``stream_options``."""

    async def ask(self, question: Question) -> Answer:
        """Send a request and read its answer to the end."""
        body = body_of(self.request, self.model, question, with_usage=self.with_usage)
        return await ask(self.client, self.request, body, question.prompt)


@dataclass(frozen=True)
class Load:
    """Holds what came of one row's requests."""

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
    began = time.perf_counter()
    end = float("inf") if request.duration is None else began + request.duration
    answers: list[Answer] = []

    async def act(numbers: Iterator[int]) -> None:
        for number in numbers:
            index = number % len(prompts)
            answer = await target.ask(Question(index, prompts[index], method))
            answers.append(answer)
            on_answer(len(answers))
            if answer.error is not None:
                await asyncio.sleep(min(answer.retry_after or _PAUSE, _LONGEST_PAUSE))
            if time.perf_counter() >= end:
                break

    await asyncio.gather(*(act(numbers) for _ in range(clients)))
    return Load(clients, method, answers, time.perf_counter() - began)
