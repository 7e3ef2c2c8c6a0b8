"""Lets several texts grow at the same time, and takes the times that whoever reads them sees."""

from __future__ import annotations

from collections import Counter, defaultdict
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
    """What has happened while all of them grew: from when every text had its first byte to before the round in which
    one ended."""
    first_byte_seconds: list[float]
    """Of each text, from the beginning of all."""
    byte_seconds: list[float]
    """Of each byte after a text's first round, before the round in which one ended: the time since the text had grown
    before, shared by its new bytes."""
    rounds_by_calls: dict[str, Counter[int]] = field(default_factory=dict)
    """For each part, in how many rounds of `steady` a text made so many calls; rounds without any are left out."""
    replay: ReplayCounts | None = None
    """What a replay really showed."""


@dataclass
class _Text:
    """Follows a stream."""

    stream: ByteStream
    pieces: list[bytes] = field(default_factory=list)
    grown: float = 0.0
    """When it has grown last, in seconds from the beginning of all; 0: never."""
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
            self.first_byte_seconds = now
        self.grown = now


def grow(
    runtime: BltRuntime, scheduler: RoundScheduler, prompts: Sequence[bytes], max_new_bytes: int, method: str
) -> Growth:
    """Generate after all prompts at the same time, greedily, a round of each text in turn.

    Args:
        runtime: has room for as many texts.
        scheduler: of the runtime's backend, for as many texts or more.
        prompts: at least one.
        max_new_bytes: bytes of each text; none ends before.
        method: of all.
    """
    began = perf_counter()
    texts: list[_Text] = []
    steady = _Steady()
    try:
        for prompt in prompts:
            texts.append(_Text(runtime.stream(prompt, max_new_bytes, method=method, stop_at_eos=False)))
        seconds = perf_counter() - began
        while growing := [text for text in texts if text.stream.open]:
            began = perf_counter()
            steps = scheduler.step([text.stream for text in growing])
            seconds += perf_counter() - began  # without the time that counting takes
            for text, step in zip(growing, steps, strict=True):
                text.take(step, seconds)
            if all(text.stream.open for text in texts):
                steady.take(texts, seconds)
        whole = _work(texts, max(text.grown for text in texts))
    finally:
        for text in texts:
            text.stream.close()
    return Growth(
        [b"".join(text.pieces) for text in texts],
        whole,
        steady.work(),
        [text.first_byte_seconds for text in texts],
        steady.byte_seconds,
        dict(steady.rounds_by_calls),
    )


class _Steady:
    """Follows the rounds in which all texts grow and none of them ends."""

    def __init__(self) -> None:
        self.byte_seconds: list[float] = []
        self.rounds_by_calls: defaultdict[str, Counter[int]] = defaultdict(Counter)
        self._first: Work | None = None
        self._last: Work | None = None
        self._calls: list[Counter[str]] = []
        """Of each text, before the next round."""

    def take(self, texts: Sequence[_Text], seconds: float) -> None:
        """Note a round after which every text can grow further."""
        if not all(text.grown for text in texts):
            return
        self._last = _work(texts, seconds)
        self._first = self._first or self._last
        for text, before in zip(texts, self._calls, strict=False):  # none before the first
            for part, count in text.stream.stats.nfe.items():
                if count > before[part]:
                    self.rounds_by_calls[part][count - before[part]] += 1
        self._calls = [text.stream.stats.nfe.copy() for text in texts]
        self.byte_seconds = [seconds for text in texts for seconds in text.byte_seconds]

    def work(self) -> Work:
        """Return what the rounds have cost."""
        if self._first is None or self._last is None:
            return Work(0.0, 0, 0, 0.0, {}, {})
        return self._last.since(self._first)


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
