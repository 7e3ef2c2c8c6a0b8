"""Replays: runs a real backend for its cost, and replaces its answers at given rates.

Random weights draft nothing that verification keeps. To measure what a geometry costs before anything is trained,
every call runs on the real backend, and what comes back is replaced (`ReplaySequence`). Methods, sessions and batches
are the ordinary ones, so what is measured are the real graphs and the real control flow.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

from fastblt.models.config import BltConfig
from fastblt.runtime.backends.batching import Answer, Batch, BatchingBackend, PartCall
from fastblt.runtime.backends.protocol import Backend, BackendSequence
from fastblt.runtime.measure.replay.draws import ReplayCounts
from fastblt.runtime.measure.replay.sequence import ReplaySequence
from fastblt.runtime.methods.replay_profile import ReplayProfile


class ReplayBackend:
    """Implements `Backend` over another one, whose answers it replaces; `replay_over` also lets it batch.

    Args:
        real: its sequences run every call.
        profile: the rates.
        lent: sequences of ``real`` that other replays use too, text by text; those that are missing are added, and
            none is closed. None: sequences of its own.
    """

    def __init__(self, real: Backend, profile: ReplayProfile, lent: list[BackendSequence] | None = None) -> None:
        self.real = real
        self.profile = profile
        self.name = real.name
        self.device = real.device
        self.config: BltConfig = real.config
        self.max_bytes = real.max_bytes
        self.sequences, self.sequence_bytes = real.sequences, real.sequence_bytes
        self.streams: list[ReplaySequence] = []
        """All sequences so far; one that has been closed is opened again where another is wanted."""
        self._lent = lent

    @property
    def model_digest(self) -> str:
        """Implement `Backend.model_digest`."""
        return self.real.model_digest

    def new_sequence(self) -> ReplaySequence:
        """Implement `Backend.new_sequence`; each has draws, and a text, of its own."""
        index = next((index for index, each in enumerate(self.streams) if not each.is_open), len(self.streams))
        real = self._real_sequence(index)
        if index == len(self.streams):
            made = ReplaySequence(real, self.profile, self.config, self.max_bytes, index, owned=self._lent is None)
            self.streams.append(made)
        self.streams[index].reopen(real)
        return self.streams[index]

    def take_counts(self) -> ReplayCounts:
        """Return what was counted since the last call; patches are those of each sequence's last text."""
        found = ReplayCounts()
        for stream in self.streams:
            found.add(stream.take_counts())
        return found

    def _real_sequence(self, index: int) -> BackendSequence:
        if self._lent is None:
            return self.real.new_sequence()
        while len(self._lent) <= index:
            self._lent.append(self.real.new_sequence())
        return self._lent[index]


class BatchingReplay(ReplayBackend):
    """Implements `BatchingBackend` over a backend that does."""

    def new_batch(self, size: int) -> Batch:
        """Implement `BatchingBackend.new_batch`."""
        return _ReplayBatch(cast("BatchingBackend", self.real).new_batch(size))


class _ReplayBatch:
    """Runs calls together on the real backend, and replaces what it answers."""

    def __init__(self, real: Batch) -> None:
        self.size = real.size
        self._real = real

    def run(self, calls: Sequence[tuple[BackendSequence, PartCall]]) -> list[Answer]:
        """Implement `Batch.run`."""
        own = [(cast("ReplaySequence", sequence), call) for sequence, call in calls]
        answers = self._real.run([(sequence.real, sequence.asked(call)) for sequence, call in own])
        return [
            answer._replace(result=sequence.replaced(call, answer.result))
            for (sequence, call), answer in zip(own, answers, strict=True)
        ]

    def leave(self, sequence: BackendSequence) -> None:
        """Implement `Batch.leave`."""
        self._real.leave(cast("ReplaySequence", sequence).real)

    def close(self) -> None:
        """Implement `Batch.close`."""
        self._real.close()


def replay_over(real: Backend, profile: ReplayProfile, lent: list[BackendSequence] | None = None) -> ReplayBackend:
    """Return a `ReplayBackend` that can run sequences together if the real one can."""
    kind = BatchingReplay if isinstance(real, BatchingBackend) else ReplayBackend
    return kind(real, profile, lent)
