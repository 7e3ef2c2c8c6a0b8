"""Lends what replays over one backend share: their texts come one after the other, and a GPU has few sequences."""

from __future__ import annotations

from typing import cast

from fastblt.runtime.backends.batching import Batch, BatchingBackend
from fastblt.runtime.backends.protocol import Backend, BackendSequence


class Lent:
    """Holds sequences of a backend and a batch, which are made when they are first asked for.

    Args:
        real: the backend.
    """

    def __init__(self, real: Backend) -> None:
        self.real = real
        self._sequences: list[BackendSequence] = []
        self._batch: Batch | None = None

    def sequence(self, index: int) -> BackendSequence:
        """Return the sequence of a number from 0 on."""
        while len(self._sequences) <= index:
            self._sequences.append(self.real.new_sequence())
        return self._sequences[index]

    def batch(self, size: int) -> Batch:
        """Return a batch for at least ``size`` sequences, in which nobody is; a smaller one is closed before.

        Raises:
            BundleError: the graphs, or engines, take one sequence at a time.
            CapacityError: there is no memory for it.
        """
        if self._batch is None or self._batch.size < size:
            self.close_batch()
            self._batch = cast("BatchingBackend", self.real).new_batch(size)
        return self._batch

    def close_batch(self) -> None:
        """Let go of the batch."""
        batch, self._batch = self._batch, None
        if batch is not None:
            batch.close()
