"""Keeps a scheduler, and its batch, open from one call of a runtime to the next: a batch takes time to be made."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from fastblt.runtime.backends.protocol import Backend
from fastblt.runtime.batching.round_scheduler import RoundScheduler, round_schedulers


class KeptScheduler:
    """Lends a scheduler to one call at a time; any number of threads may ask.

    A call gets the scheduler that is kept, or one of its own where another call has that, or it is too small. Between
    calls the largest so far is kept.

    Args:
        backend: see `RoundScheduler`.
    """

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self._lock = threading.Lock()
        self._idle: RoundScheduler | None = None
        self._closed = False

    @contextmanager
    def lend(self, size: int) -> Iterator[RoundScheduler]:
        """Lend a scheduler for at least ``size`` streams; after an error it is closed instead of kept."""
        with self._lock:
            scheduler, self._idle = self._idle, None
        if scheduler is not None and scheduler.size < size:
            scheduler.close()  # before the next is made: there may not be memory for both
            scheduler = None
        if scheduler is None:
            (scheduler,) = round_schedulers(self._backend, 1, size)
        try:
            yield scheduler
        except BaseException:
            scheduler.close()
            raise
        self._keep(scheduler)

    def close(self) -> None:
        """Close the scheduler that is kept, and keep none from now on."""
        with self._lock:
            self._closed = True
            scheduler, self._idle = self._idle, None
        if scheduler is not None:
            scheduler.close()

    def _keep(self, scheduler: RoundScheduler) -> None:
        """Keep the larger of a scheduler and the one that is kept, and close the other."""
        with self._lock:
            surplus: RoundScheduler | None = scheduler
            if not self._closed and (self._idle is None or self._idle.size < scheduler.size):
                surplus, self._idle = self._idle, scheduler
        if surplus is not None:
            surplus.close()
