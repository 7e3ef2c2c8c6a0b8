"""Keeps schedulers, and their batches, open from one call of a runtime to the next: a batch takes time to be made."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from fastblt.runtime.backends.protocol import Backend
from fastblt.runtime.batching.round_scheduler import RoundScheduler, round_schedulers


class KeptScheduler:
    """Lends schedulers, each to one call at a time, and keeps those that come back; any number of threads may ask.

    As many are kept as have been lent at once. Where one is too small for a call, all that are kept are closed first:
    there may not be memory for more. One whose batch is smaller than was asked for, because memory was short, is not
    kept: the next may get more.

    Args:
        backend: see `RoundScheduler`.
    """

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self._lock = threading.Lock()
        self._idle: list[RoundScheduler] = []
        self._closed = False

    @contextmanager
    def lend(self, size: int) -> Iterator[RoundScheduler]:
        """Lend a scheduler for at least ``size`` streams; after an error it is closed instead of kept."""
        scheduler = self._take(size)
        try:
            yield scheduler
        except BaseException:
            scheduler.close()
            raise
        with self._lock:
            keep = not self._closed and scheduler.slots == scheduler.size
            if keep:
                self._idle.append(scheduler)
        if not keep:
            scheduler.close()

    def close(self) -> None:
        """Close the schedulers that are kept, and keep none from now on."""
        with self._lock:
            self._closed = True
            idle, self._idle = self._idle, []
        for scheduler in idle:
            scheduler.close()

    def _take(self, size: int) -> RoundScheduler:
        with self._lock:
            fitting = [each for each in self._idle if each.size >= size]
            if fitting:
                smallest = min(fitting, key=lambda each: each.size)
                self._idle.remove(smallest)
                return smallest
            idle, self._idle = self._idle, []
        for scheduler in idle:
            scheduler.close()
        (made,) = round_schedulers(self._backend, 1, size)
        return made
