"""Keeps a server busy with clients whose texts are known, and counts what differs."""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import httpx
from campaign.part import Counts, failed
from campaign.server_process import Held, ServerProcess
from campaign.server_work import Work

from fastblt.runtime.measure.server_bench.answer import Answer
from fastblt.runtime.measure.server_bench.client import Connector, ask
from fastblt.runtime.measure.server_bench.request import ServerBenchRequest

_TIMEOUT = 120.0


@dataclass
class Seen:
    """Holds what clients saw, and what the server held meanwhile."""

    counts: Counts = field(default_factory=Counts)
    first_byte: list[float] = field(default_factory=list)
    """Seconds, of streams."""
    held: list[Held] = field(default_factory=list)
    """Once a second."""
    errors: Counter[str] = field(default_factory=Counter)


class Clients:
    """Ask a server for texts that are known."""

    def __init__(self, server: ServerProcess, works: Sequence[Work]) -> None:
        self.server, self.works = server, works
        self._requests = {
            (chat, stream): ServerBenchRequest(server.url, stream=stream, chat=chat, timeout=_TIMEOUT)
            for chat in (False, True)
            for stream in (False, True)
        }

        self.connector = Connector(self._requests[False, True])

    async def ask(self, client: httpx.AsyncClient, work: Work, seen: Seen) -> Answer:
        """Make one request, and compare the text."""
        answer = await ask(client, self._requests[work.chat, work.stream], work.body, 0)
        if answer.error is not None:
            seen.errors[answer.error] += 1
            seen.counts.add(failed("other", f"serve: {answer.error}: {answer.detail}", f"{work}\n{answer}"))
        elif answer.text != work.expected:
            detail = f"{work}\n{answer}\nexpected {work.expected!r}"
            seen.counts.add(failed("wrong bytes", f"serve: {work.body.get('method', 'default')}: other text", detail))
        else:
            seen.counts.add(Counts(1, 1, figures={"bytes compared": len(work.expected.encode())}))
            if work.stream and answer.arrivals:
                seen.first_byte.append(answer.arrivals[0])
        return answer

    async def ask_at_once(self, works: Sequence[Work]) -> Seen:
        """Make requests at the same time, each on a connection of its own."""
        seen = Seen()

        async def act(work: Work) -> None:
            async with self.connector.connect() as client:
                await self.ask(client, work, seen)

        await asyncio.gather(*map(act, works))
        return seen

    async def load(self, rng: random.Random, clients: int, seconds: float, least: int = 1) -> Seen:
        """Let clients ask for ``seconds``, each after its last answer; for every text at least ``least`` times."""
        seen, end = Seen(), time.monotonic() + seconds
        waiting = [*self.works] * least
        rng.shuffle(waiting)

        async def act() -> None:
            async with self.connector.connect() as client:
                while waiting or time.monotonic() < end:
                    await self.ask(client, waiting.pop() if waiting else rng.choice(self.works), seen)

        async def watch() -> None:
            while True:
                seen.held.append(self.server.held())
                await asyncio.sleep(1)

        watching = asyncio.create_task(watch())
        try:
            await asyncio.gather(*(act() for _ in range(clients)))
        finally:
            watching.cancel()
        return seen


async def until(condition: Callable[[], bool], seconds: float) -> bool:
    """Wait until something holds; return whether it did in time."""
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            return False
        await asyncio.sleep(0.05)
    return True
