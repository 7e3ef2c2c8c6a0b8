"""Runs the texts of one request, and ends them when nobody wants them any more."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import NamedTuple

from fastblt.runtime.backends.protocol import CapacityError
from fastblt.runtime.generation import Chunk, Prompt
from fastblt.runtime.grammar.error import GrammarError
from fastblt.runtime.request import GenerationRequest
from fastblt.runtime.serving.api_error import internal, queue_full, unavailable, wrong
from fastblt.runtime.serving.deadline import Deadline
from fastblt.runtime.serving.scheduler import QueueFullError, Scheduler
from fastblt.runtime.serving.text_job import TextJob
from fastblt.runtime.turns import BusyError


class Growth(NamedTuple):
    """Holds what a text has grown by."""

    number: int
    """Which of the request's texts."""
    chunks: list[Chunk]
    ended: bool


class Texts:
    """Submits texts and yields what they grow by.

    Args:
        scheduler: runs them.
        wanted: prompt and request of each.
        deadline: when all of them are given up.

    Raises:
        ApiError: 429, too many texts wait already.
    """

    def __init__(
        self, scheduler: Scheduler, wanted: Sequence[tuple[Prompt, GenerationRequest]], deadline: Deadline
    ) -> None:
        self._scheduler = scheduler
        self._changed = asyncio.Event()
        self._deadline = deadline
        self.jobs = [TextJob(prompt, request, self._changed) for prompt, request in wanted]
        try:
            scheduler.submit(self.jobs)
        except QueueFullError:
            raise queue_full(f"{scheduler.waiting} texts that wait for a place") from None

    async def growth(self) -> AsyncIterator[Growth]:
        """Yield what the texts grow by, as it comes, until all have ended.

        Raises:
            ApiError: one of them failed, the time is over, or the server is ending.
        """
        open_jobs = dict(enumerate(self.jobs))
        while open_jobs:
            await self._wait()
            for index, job in list(open_jobs.items()):
                chunks, ended = job.take()
                self._scheduler.resume(job)
                if ended:
                    self._check_end(job)
                    del open_jobs[index]
                if chunks or ended:
                    yield Growth(index, chunks, ended)

    async def _wait(self) -> None:
        await self._deadline.wait(self._changed.wait(), "found no end of the text, expected one; ask for fewer bytes")
        self._changed.clear()

    @staticmethod
    def _check_end(job: TextJob) -> None:
        if isinstance(job.error, BusyError | CapacityError | MemoryError):
            raise unavailable("found no memory for another text, expected some; ask again later", "busy") from job.error
        if isinstance(job.error, GrammarError):  # a bound that a later step exceeds: the request's, and no defect
            message = f"the form of the text failed after {job.stats.new_bytes} bytes: {job.error}"
            raise wrong(None, message, "form_failed") from None
        if job.error is not None:
            raise internal() from job.error
        if job.finish not in ("length", "stop", "eos"):
            raise unavailable("the server is ending; ask again", "draining")

    def cancel(self) -> None:
        """End what has not ended; a round in progress is its last."""
        for job in self.jobs:
            self._scheduler.cancel(job)
