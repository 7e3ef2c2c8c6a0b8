"""Holds one text on its way from the threads that generate to the event loop that answers."""

from __future__ import annotations

import asyncio
import threading
import time
from contextlib import suppress

from fastblt.runtime.generation import ByteStream, Chunk, Prompt
from fastblt.runtime.request import GenerationRequest
from fastblt.runtime.sequence.stats import RunStats

#: Bytes that wait for a client; when there are more, the text stops growing until it has read some.
MOST_UNREAD = 16 * 2**10
#: Chunks that wait, each with what is known of its bytes.
MOST_CHUNKS = 256


class TextJob:
    """A text to generate: what is asked, and what has been generated but not yet been taken.

    Threads of the scheduler call `put` and `end`; the event loop calls `take`. ``changed`` is set in the loop when
    there is something to take.
    """

    def __init__(self, prompt: Prompt, request: GenerationRequest, changed: asyncio.Event) -> None:
        self.prompt = prompt
        self.request = request
        self.stream: ByteStream | None = None
        self.cancelled = False
        """Whether nobody wants it any more; set under the scheduler's lock."""
        self.paused = False
        """Whether it waits for its client to read; under the scheduler's lock."""
        self.ended = False
        """Whether nothing follows what is still to be taken."""
        self.finish = ""
        self.stats = RunStats()
        self.error: BaseException | None = None
        self.submitted = time.perf_counter()
        self.first_byte_seconds: float | None = None
        """From `submitted` to the first byte, waiting for a place included."""
        self.total_seconds = 0.0
        """From `submitted` to the end."""
        self._changed = changed
        self._loop = asyncio.get_running_loop()
        self._lock = threading.Lock()
        self._chunks: list[Chunk] = []
        self._unread = 0

    @property
    def full(self) -> bool:
        """Return whether its client has to read before the text grows further."""
        return self._unread >= MOST_UNREAD or len(self._chunks) >= MOST_CHUNKS

    @property
    def counts(self) -> RunStats:
        """Return the counters so far; until the end, another thread goes on counting."""
        stream = self.stream
        return self.stats if stream is None else stream.stats

    def put(self, chunk: Chunk) -> None:
        """Add a chunk; an empty one is dropped."""
        if not (chunk.data or chunk.boundaries or chunk.rejected):
            return
        with self._lock:
            self._chunks.append(chunk)
            self._unread += len(chunk.data)
        self._wake()

    def end(self, error: BaseException | None) -> None:
        """Mark the end: why, and at what cost."""
        with self._lock:
            self.total_seconds = time.perf_counter() - self.submitted
            if self.stream is not None:
                self.finish, self.stats = self.stream.finish, self.stream.stats
            self.error, self.ended = error, True
            self.stream = None  # with its caches
        self._wake()

    def take(self) -> tuple[list[Chunk], bool]:
        """Return the chunks that came since the last call, and whether nothing follows them."""
        with self._lock:
            chunks, self._chunks, self._unread = self._chunks, [], 0
            return chunks, self.ended

    def _wake(self) -> None:
        with suppress(RuntimeError):  # the loop is closed: nobody waits
            self._loop.call_soon_threadsafe(self._changed.set)
