"""Provides texts for a scheduler, and what follows them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from fastblt.runtime.blt_runtime import BltRuntime
from fastblt.runtime.generation import Chunk
from fastblt.runtime.request import GenerationRequest
from fastblt.runtime.serving.scheduler import Scheduler
from fastblt.runtime.serving.text_job import TextJob


class Turns:
    """Records whose turn it was."""

    def __init__(self) -> None:
        self.turns: list[TextJob] = []
        self.ends: list[TextJob] = []

    def grew(self, job: TextJob, chunk: Chunk) -> None:
        self.turns.append(job)

    def ended(self, job: TextJob) -> None:
        self.ends.append(job)


@contextmanager
def scheduler(
    runtime: BltRuntime, workers: int = 1, queue: int = 4, slots: int | None = None
) -> Iterator[tuple[Scheduler, Turns]]:
    turns = Turns()
    found = Scheduler(runtime, workers, queue, turns, slots)
    try:
        yield found, turns
    finally:
        found.close()
    assert (found.waiting, found.active, runtime.sequences_in_use) == (0, 0, 0)


def job(prompt: bytes, new_bytes: int = 12, method: str = "ar") -> TextJob:
    return TextJob(prompt, GenerationRequest(new_bytes, method=method, stop_at_eos=False), asyncio.Event())


async def read(scheduler: Scheduler, one: TextJob) -> bytes:
    found = b""
    while True:
        chunks, ended = one.take()
        scheduler.resume(one)
        found += b"".join(chunk.data for chunk in chunks)
        if ended:
            assert one.error is None
            return found
        await asyncio.sleep(0.001)


async def until(condition: Callable[[], bool]) -> None:
    """Wait for something, ten seconds at most."""
    end = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < end, "it does not happen"
        await asyncio.sleep(0.001)


async def ended(one: TextJob) -> None:
    """Wait until a text has ended."""
    await until(lambda: one.ended)
