"""Generates many texts in one call, as many at once as there is room for."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from fastblt.runtime.batching.growing_stream import GrowingStream
from fastblt.runtime.batching.round_scheduler import RoundScheduler
from fastblt.runtime.generation import ByteStream, Chunk, Generation
from fastblt.runtime.turns import BusyError


@dataclass
class _Text:
    """Collects what a stream yields."""

    index: int
    stream: ByteStream
    pieces: list[bytes] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)

    def generation(self) -> Generation:
        stream = self.stream
        return Generation(
            b"".join(self.pieces), stream.finish, stream.stats, tuple(stream.tokens), tuple(self.logprobs)
        )


def generate_together(
    scheduler: RoundScheduler,
    openers: Sequence[Callable[[], ByteStream]],
    on_chunk: Callable[[int, Chunk], None] | None = None,
    *,
    at_once: int | None = None,
    beginning: int | None = None,
) -> list[Generation]:
    """Generate a text from each stream, in rounds that the streams share.

    Args:
        scheduler: runs the streams; as one ends, the next begins.
        openers: each opens a stream; one that raises `BusyError` while others grow is called again after a round.
        on_chunk: called with the index of a text and each of its chunks.
        at_once: most texts that grow at the same time, at most the scheduler's size; None: that size.
        beginning: most texts that begin in one round; None: as many as there is room for.

    Returns:
        The texts, in the order of the openers.

    Raises:
        Exception: whatever ends a stream; the others are closed.
    """
    most = scheduler.size if at_once is None else at_once
    waiting = deque(enumerate(openers))
    running: list[_Text] = []
    found: dict[int, Generation] = {}
    try:
        while waiting or running:
            room = min(most - len(running), beginning or most, len(waiting))
            for _ in range(room):
                index, opened = waiting[0]
                try:
                    running.append(_Text(index, opened()))
                except BusyError:
                    if not running:
                        raise
                    break
                waiting.popleft()
            grown = scheduler.step([text.stream for text in running])
            for text, step in zip(list(running), grown, strict=True):
                if not _take(text, step, on_chunk):
                    running.remove(text)
                    found[text.index] = text.generation()
    finally:
        for text in running:
            text.stream.close()
    return [found[index] for index in range(len(openers))]


def _take(text: _Text, step: GrowingStream, on_chunk: Callable[[int, Chunk], None] | None) -> bool:
    """Note what a stream has grown by; return whether it may grow further."""
    if step.error is not None:
        raise step.error
    chunk = step.chunk
    if chunk is None:
        return False
    text.pieces.append(chunk.data)
    text.logprobs += chunk.logprobs
    if on_chunk is not None and (chunk.data or chunk.boundaries or chunk.rejected):
        on_chunk(text.index, chunk)
    return text.stream.open
