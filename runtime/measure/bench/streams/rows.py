"""Computes the figures of texts that grew at the same time: one row for each contender and number of texts.

Everything but `Figures.first_byte_ms` and `Figures.bytes_per_s_with_prompt` is about the time in which all texts grew:
from when each had its first byte to before the round in which one of them ended. Prompts are left out, and so is the
end, when there are fewer texts.
"""

from __future__ import annotations

import statistics
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from fastblt.runtime.measure.bench.plan import Contender
from fastblt.runtime.measure.bench.streams.growth import Growth, Work
from fastblt.runtime.measure.bench.streams.prediction import predicted_moved_bytes
from fastblt.runtime.measure.replay.draws import ReplayCounts
from fastblt.runtime.methods import parse_method
from fastblt.runtime.methods.replay_profile import ReplayProfile


@dataclass(frozen=True)
class Figures:
    """Holds the figures of one way to let texts grow. The names are a contract: scripts read them from JSON."""

    bytes: int
    """New bytes of all texts, while all of them grew."""
    bytes_per_s: float
    """The same of all texts together, divided by the seconds."""
    bytes_per_s_with_prompt: float
    """All new bytes divided by all seconds."""
    ms_per_byte_p50: float
    """Median over the bytes of all texts, as a reader of one text sees it; the bytes of a round share its time."""
    ms_per_byte_p95: float
    first_byte_ms: float
    """Median over the texts, which all begin at once."""
    calls_per_byte: float
    """Calls of all graphs for each new byte of any text."""
    part_calls_per_byte: dict[str, float]
    """The same of each part's graph."""
    moved_bytes_per_byte: float
    """Weights and cache entries that the calls read, for each new byte."""


@dataclass(frozen=True)
class StreamsRow:
    """Holds the figures of one contender with one number of texts."""

    backend: str
    method: str
    device: str
    streams: int
    """Texts that grew at the same time."""
    calls_shared: bool
    """Whether they shared calls in ``together``."""
    alone_because: str | None
    """Why they did not; null: they did, or there is one text."""
    together: Figures
    """Of texts that share calls; where ``calls_shared`` is false, of texts in turn."""
    in_turn: Figures | None
    """Of the same texts in turn, measured in the same run; null where ``together`` is that."""
    times_in_turn: float | None
    """``bytes_per_s`` of ``together`` divided by that of ``in_turn``."""
    predicted_moved_bytes_per_byte: float | None
    """What ``together`` should move: weights once a call, each text's own caches."""
    times_predicted: float | None
    """``moved_bytes_per_byte`` of ``together`` divided by the prediction."""
    as_in_turn: bool | None
    """Whether every text of ``together`` has the bytes of the same text in turn; null: nothing to compare, or a
    replay."""
    times_peer: float | None
    """``bytes_per_s`` divided by that of the first peer's batch of as many texts; null where none is measured."""
    lossless: bool
    acceptance: float | None
    """Accepted / drafted in ``together``; null where nothing is drafted."""
    replay: dict[str, float | None] | None
    """For a replay, wanted and realized ``acceptance``, bytes per ``patch`` and ``steps`` per block; null where the
    model's own output was measured."""


@dataclass(frozen=True)
class Compared:
    """Holds all measurements of a contender with one number of texts."""

    contender: Contender
    device: str
    streams: int
    calls_shared: bool
    alone_because: str | None
    """As in `StreamsRow`."""
    together: Sequence[Growth]
    in_turn: Sequence[Growth]
    """In the same order; none: ``together`` is that, or a peer's batch."""
    weights: Mapping[str, float]
    """Bytes of each part's weights."""
    profile: ReplayProfile | None

    @property
    def rate(self) -> float:
        """Return the bytes/s of all texts together."""
        return figures(self.together).bytes_per_s

    def row(self, peer_rate: float | None) -> StreamsRow:
        """Return the figures; ``peer_rate`` is the bytes/s of a peer's batch."""
        together = figures(self.together)
        in_turn = figures(self.in_turn) if self.in_turn else None
        predicted = self._predicted()
        work = _sum([growth.steady for growth in self.together])
        return StreamsRow(
            backend=self.contender.backend,
            method=self.contender.method,
            device=self.device,
            streams=self.streams,
            calls_shared=self.calls_shared,
            alone_because=self.alone_because,
            together=together,
            in_turn=in_turn,
            times_in_turn=None if in_turn is None else _ratio(together.bytes_per_s, in_turn.bytes_per_s),
            predicted_moved_bytes_per_byte=predicted,
            times_predicted=None if predicted is None else _ratio(together.moved_bytes_per_byte, predicted),
            as_in_turn=self._as_in_turn(),
            times_peer=None if peer_rate is None else _ratio(together.bytes_per_s, peer_rate),
            lossless=parse_method(self.contender.method).lossless,
            acceptance=_ratio(work.accepted, work.drafted),
            replay=self._replay(work),
        )

    def _predicted(self) -> float | None:
        if not self.in_turn:
            return None
        work = _sum([growth.steady for growth in self.in_turn])
        rounds: defaultdict[str, Counter[int]] = defaultdict(Counter)
        for growth in self.in_turn:
            for part, counts in growth.rounds_by_calls.items():
                rounds[part].update(counts)
        return _ratio(predicted_moved_bytes(work, rounds, self.streams, self.weights), work.new_bytes)

    def _as_in_turn(self) -> bool | None:
        if self.profile is not None or not self.in_turn:
            return None
        return all(a.texts == b.texts for a, b in zip(self.together, self.in_turn, strict=True))

    def _replay(self, work: Work) -> dict[str, float | None] | None:
        if self.profile is None:
            return None
        counts = ReplayCounts()
        for growth in self.together:
            counts.add(growth.replay or ReplayCounts())
        return {
            "wanted_acceptance": self.profile.acceptance,
            "acceptance": _ratio(work.accepted, work.drafted),
            "wanted_patch": self.profile.patch,
            "patch": _ratio(counts.patch_bytes, counts.patches),
            "wanted_steps": self.profile.steps,
            "steps": _ratio(counts.steps, counts.blocks),
        }


def figures(growths: Sequence[Growth]) -> Figures:
    """Return the figures of some measurements, at least one."""
    whole, steady = _sum([growth.whole for growth in growths]), _sum([growth.steady for growth in growths])
    seconds = [second for growth in growths for second in growth.byte_seconds] or [0.0]
    calls = {part: _ratio(count, steady.new_bytes) or 0.0 for part, count in steady.graph_calls.items()}
    return Figures(
        bytes=steady.new_bytes,
        bytes_per_s=_ratio(steady.new_bytes, steady.seconds) or 0.0,
        bytes_per_s_with_prompt=_ratio(whole.new_bytes, whole.seconds) or 0.0,
        ms_per_byte_p50=1e3 * float(np.percentile(seconds, 50)),
        ms_per_byte_p95=1e3 * float(np.percentile(seconds, 95)),
        first_byte_ms=1e3 * statistics.median(first for growth in growths for first in growth.first_byte_seconds),
        calls_per_byte=sum(calls.values()),
        part_calls_per_byte=calls,
        moved_bytes_per_byte=_ratio(steady.moved_bytes, steady.new_bytes) or 0.0,
    )


def _sum(works: Sequence[Work]) -> Work:
    parts = dict.fromkeys(part for work in works for part in work.calls)
    return Work(
        sum(work.seconds for work in works),
        sum(work.new_bytes for work in works),
        sum(work.rounds for work in works),
        sum(work.moved_bytes for work in works),
        {part: sum(work.calls.get(part, 0) for work in works) for part in parts},
        {part: sum(work.graph_calls.get(part, 0.0) for work in works) for part in parts},
        sum(work.drafted for work in works),
        sum(work.accepted for work in works),
    )


def _ratio(numerator: float, denominator: float) -> float | None:
    return numerator / denominator if denominator else None
