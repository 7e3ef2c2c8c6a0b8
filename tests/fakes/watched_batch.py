"""Provides a batch whose sequences answer alone, and a backend that batches by it: calls are shared in name only."""

from __future__ import annotations

from collections.abc import Sequence
from time import perf_counter
from typing import Any

from fastblt.runtime.backends.batching import (
    Answer,
    PartCall,
)
from fastblt.runtime.backends.protocol import Backend, BackendSequence


class WatchedBatch:
    """A batch that lets each sequence answer alone, and notes who was asked together, and for what."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.calls: list[tuple[type[PartCall], int]] = []
        self.members: set[int] = set()
        self.error: BaseException | None = None
        """What the next calls raise."""
        self.closed = False

    def run(self, calls: Sequence[tuple[BackendSequence, PartCall]]) -> list[Answer]:
        assert 1 <= len(calls) <= self.size
        assert len({type(call) for _, call in calls}) == 1
        assert len({id(sequence) for sequence, _ in calls}) == len(calls)
        self.calls.append((type(calls[0][1]), len(calls)))
        if self.error is not None:
            raise self.error
        self.members |= {id(sequence) for sequence, _ in calls}
        return [self._answer(sequence, call, len(calls)) for sequence, call in calls]

    def _answer(self, sequence: BackendSequence, call: PartCall, served: int) -> Answer:
        began = perf_counter()
        return Answer(call.run(sequence), perf_counter() - began, 1000 / served, 1 / served)

    def leave(self, sequence: BackendSequence) -> None:
        self.members.discard(id(sequence))

    def close(self) -> None:
        self.closed = True


class WatchedBackend:
    """A backend that batches by `WatchedBatch`."""

    def __init__(self, backend: Backend) -> None:
        self.backend = backend
        self.batches: list[WatchedBatch] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self.backend, name)

    def new_batch(self, size: int) -> WatchedBatch:
        self.batches.append(WatchedBatch(size))
        return self.batches[-1]
