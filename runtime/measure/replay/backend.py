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
from fastblt.runtime.measure.replay.lent import Lent
from fastblt.runtime.measure.replay.sequence import ReplaySequence
from fastblt.runtime.methods.replay_profile import ReplayProfile


class ReplayBackend:
    """Implements `Backend` over another one, whose answers it replaces; `replay_over` also lets it batch.

    Args:
        real: its sequences run every call.
        profile: the rates.
        lent: what other replays use too, text by text; nothing of it is closed. None: sequences, and batches, of its
            own.
    """

    def __init__(self, real: Backend, profile: ReplayProfile, lent: Lent | None = None) -> None:
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
        return self.real.new_sequence() if self._lent is None else self._lent.sequence(index)


class BatchingReplay(ReplayBackend):
    """Implements `BatchingBackend` over a backend that does."""

    def new_batch(self, size: int) -> Batch:
        """Implement `BatchingBackend.new_batch`."""
        if self._lent is not None:
            return _ReplayBatch(self._lent.batch(size), owned=False)
        return _ReplayBatch(cast("BatchingBackend", self.real).new_batch(size), owned=True)


class _ReplayBatch:
    """Runs calls together on the real backend, and replaces what it answers.

    Args:
        real: batch of the real backend.
        owned: whether it is closed with this one; otherwise all leave it.
    """

    def __init__(self, real: Batch, *, owned: bool) -> None:
        self.size = real.size
        self._real, self._owned = real, owned
        self._members: set[BackendSequence] = set()

    def run(self, calls: Sequence[tuple[BackendSequence, PartCall]]) -> list[Answer]:
        """Implement `Batch.run`."""
        own = [(cast("ReplaySequence", sequence), call) for sequence, call in calls]
        self._members.update(sequence.real for sequence, _ in own)
        answers = self._real.run([(sequence.real, sequence.asked(call)) for sequence, call in own])
        return [
            answer._replace(result=sequence.replaced(call, answer.result))
            for (sequence, call), answer in zip(own, answers, strict=True)
        ]

    def leave(self, sequence: BackendSequence) -> None:
        """Implement `Batch.leave`."""
        real = cast("ReplaySequence", sequence).real
        self._real.leave(real)
        self._members.discard(real)

    def close(self) -> None:
        """Implement `Batch.close`."""
        if self._owned:
            self._real.close()
        while self._members:
            self._real.leave(self._members.pop())


def replay_over(real: Backend, profile: ReplayProfile, lent: Lent | None = None) -> ReplayBackend:
    """Return a `ReplayBackend` that can run sequences together if the real one can."""
    kind = BatchingReplay if isinstance(real, BatchingBackend) else ReplayBackend
    return kind(real, profile, lent)
