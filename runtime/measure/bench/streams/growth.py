"""Lets several texts grow at the same time, and takes the times that whoever reads them sees."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from time import perf_counter
from typing import NamedTuple

from fastblt.runtime.batching.growing_stream import GrowingStream
from fastblt.runtime.batching.round_scheduler import RoundScheduler
from fastblt.runtime.blt_runtime import BltRuntime
from fastblt.runtime.generation import ByteStream
from fastblt.runtime.measure.peers import BatchGenerator
from fastblt.runtime.measure.replay.draws import ReplayCounts


class Work(NamedTuple):
    """Counts what all texts have cost, from some moment on."""

    seconds: float
    new_bytes: int
    rounds: int
    """Rounds of all texts."""
    moved_bytes: float
    calls: dict[str, int]
    """Calls of each part, as each text counts them alone."""
    graph_calls: dict[str, float]
    """Calls of each part's graph."""
    drafted: int = 0
    accepted: int = 0

    def since(self, earlier: Work) -> Work:
        """Return what has been added since an earlier moment."""
        return Work(
            self.seconds - earlier.seconds,
            self.new_bytes - earlier.new_bytes,
            self.rounds - earlier.rounds,
            self.moved_bytes - earlier.moved_bytes,
            {part: count - earlier.calls.get(part, 0) for part, count in self.calls.items()},
            {part: count - earlier.graph_calls.get(part, 0.0) for part, count in self.graph_calls.items()},
            self.drafted - earlier.drafted,
            self.accepted - earlier.accepted,
        )


@dataclass
class Growth:
    """Holds texts that have grown at the same time, all begun at once."""

    texts: list[bytes]
    whole: Work
    """What everything has cost."""
    steady: Work
    """What has happened while all of them grew: from when every text had its first byte until one ended."""
    first_byte_seconds: list[float]
    """Of each text, from the beginning of all."""
    byte_seconds: list[float]
    """Of each byte after a text's first round, until one ended: the time since the text had grown before, shared by
    its new bytes."""
    replay: ReplayCounts | None = None
    """What a replay really showed."""


@dataclass
class _Text:
    """Follows a stream."""

    stream: ByteStream
    began: float
    pieces: list[bytes] = field(default_factory=list)
    grown: float = 0.0
    """When it has grown last; 0: never."""
    first_byte_seconds: float = 0.0
    byte_seconds: list[float] = field(default_factory=list)

    def take(self, step: GrowingStream, now: float) -> None:
        if step.error is not None:
            raise step.error
        data = step.chunk.data if step.chunk is not None else b""
        if not data:
            return
        self.pieces.append(data)
        if self.grown:
            self.byte_seconds += [(now - self.grown) / len(data)] * len(data)
        else:
            self.first_byte_seconds = now - self.began
        self.grown = now


def grow(
    runtime: BltRuntime, prompts: Sequence[bytes], max_new_bytes: int, method: str, *, share: bool = True
) -> Growth:
    """Generate after all prompts at the same time, greedily, a round of each text in turn.

    Args:
        runtime: has room for as many texts.
        prompts: at least one.
        max_new_bytes: bytes of each text; none ends before.
        method: of all.
        share: whether calls run together where the backend can.
    """
    scheduler = RoundScheduler(runtime.backend, len(prompts), slots=None if share else 1)
    began = perf_counter()
    texts: list[_Text] = []
    first: Work | None = None
    last: Work | None = None
    byte_seconds: list[float] = []
    try:
        for prompt in prompts:
            stream = runtime.stream(prompt, max_new_bytes, method=method, stop_at_eos=False)
            texts.append(_Text(stream, began))
        while growing := [text for text in texts if text.stream.open]:
            steps = scheduler.step([text.stream for text in growing])
            now = perf_counter()
            for text, step in zip(growing, steps, strict=True):
                text.take(step, now)
            if first is None and all(text.grown for text in texts):
                first = _work(texts, now - began)
            if last is None and not all(text.stream.open for text in texts):
                last = _work(texts, now - began)
                byte_seconds = [seconds for text in texts for seconds in text.byte_seconds]
        whole = _work(texts, max(text.grown for text in texts) - began)
    finally:
        for text in texts:
            text.stream.close()
        scheduler.close()
    return Growth(
        [b"".join(text.pieces) for text in texts],
        whole,
        (last or whole).since(first or last or whole),
        [text.first_byte_seconds for text in texts],
        byte_seconds,
    )


def _work(texts: Sequence[_Text], seconds: float) -> Work:
    """Return what the texts have cost so far."""
    all_stats = [text.stream.stats for text in texts]
    parts = dict.fromkeys(part for stats in all_stats for part in stats.nfe)
    return Work(
        seconds,
        sum(len(piece) for text in texts for piece in text.pieces),
        sum(stats.rounds for stats in all_stats),
        sum(stats.moved_bytes for stats in all_stats),
        {part: sum(stats.nfe[part] for stats in all_stats) for part in parts},
        {part: sum(stats.graph_calls[part] for stats in all_stats) for part in parts},
        sum(stats.drafted for stats in all_stats),
        sum(stats.accepted for stats in all_stats),
    )


def grow_in_peer(peer: BatchGenerator, prompts: Sequence[bytes], max_new_bytes: int) -> Growth:
    """Generate after all prompts by a batch of a peer, greedily, byte by byte."""
    found = peer.generate_batch(prompts, max_new_bytes)
    stats, count = found.stats, len(prompts)
    whole = Work(
        stats.total_seconds,
        count * max_new_bytes,
        stats.rounds * count,
        stats.moved_bytes,
        {part: calls * count for part, calls in stats.nfe.items()},
        {part: float(calls) for part, calls in stats.nfe.items()},
    )
    share = 1 / stats.rounds
    first = Work(
        stats.first_byte_seconds,
        count,
        count,
        stats.moved_bytes * share,
        {part: round(calls * share) for part, calls in whole.calls.items()},
        {part: calls * share for part, calls in whole.graph_calls.items()},
    )
    later = [seconds for seconds in stats.byte_seconds for _ in range(count)]
    return Growth(found.texts, whole, whole.since(first), [stats.first_byte_seconds] * count, later)
