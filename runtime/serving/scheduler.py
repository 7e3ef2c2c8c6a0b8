"""Shares a model's places among texts: first come, first served for a place, then one round each in turn.

A turn is one bounded piece of work: a piece of a prompt, or a round of a method. A long prompt therefore holds up the
others for no more than a piece of it, whoever comes first.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Sequence
from typing import Protocol

from fastblt.runtime.blt_runtime import BltRuntime
from fastblt.runtime.generation import Chunk
from fastblt.runtime.machine import usable_cores
from fastblt.runtime.serving.text_job import TextJob


class QueueFullError(Exception):
    """Reports texts that would have to wait behind too many others."""


class Observer(Protocol):
    """Counts what a scheduler does; its methods are called by several threads."""

    def grew(self, job: TextJob, chunk: Chunk) -> None:
        """Count a chunk."""

    def ended(self, job: TextJob) -> None:
        """Count a text that was begun and has ended."""


class Scheduler:
    """Generates texts in threads of its own.

    Args:
        runtime: what generates; it serves nobody else meanwhile.
        workers: number of threads.
        queue: most texts that wait for a place.
        observer: told of every chunk and of every end.
    """

    def __init__(self, runtime: BltRuntime, workers: int, queue: int, observer: Observer) -> None:
        self.runtime = runtime
        self.places = runtime.sequences
        self._queue = queue
        self._observer = observer
        self._changed = threading.Condition()
        self._waiting: deque[TextJob] = deque()
        self._ready: deque[TextJob] = deque()
        self._active: set[TextJob] = set()
        self._closed = False
        self._threads = [
            threading.Thread(target=self._work, name=f"fastblt-worker-{i}", daemon=True) for i in range(workers)
        ]
        for thread in self._threads:
            thread.start()

    @property
    def waiting(self) -> int:
        """Return the number of texts that wait for a place."""
        return len(self._waiting)

    @property
    def active(self) -> int:
        """Return the number of texts that have a place."""
        return len(self._active)

    def submit(self, jobs: Sequence[TextJob]) -> None:
        """Add texts to the queue: all of them, or none.

        Raises:
            QueueFullError: there is no room for all of them.
        """
        with self._changed:
            free = self.places - len(self._active)
            if self._closed or len(self._waiting) + len(jobs) > self._queue + free:
                raise QueueFullError
            self._waiting.extend(jobs)
            self._changed.notify_all()

    def cancel(self, job: TextJob) -> None:
        """End a text that nobody wants any more, at once or after the round in progress; again: do nothing."""
        with self._changed:
            if job.ended or job.cancelled:
                return
            job.cancelled = True
            if job in self._waiting:
                self._waiting.remove(job)
                job.end(None)
                return
            if job.paused:
                job.paused = False
                self._ready.appendleft(job)
            elif job in self._ready:  # not in the middle of a round: it is next
                self._ready.remove(job)
                self._ready.appendleft(job)
            self._changed.notify_all()

    def resume(self, job: TextJob) -> None:
        """Let a text grow again whose client has read what there was."""
        with self._changed:  # also to look: a worker may be about to pause it, for what has been read meanwhile
            if job.paused:
                job.paused = False
                self._ready.append(job)
                self._changed.notify()

    def cancel_all(self) -> None:
        """End all texts; rounds in progress are their last."""
        with self._changed:
            for job in [*self._waiting, *self._active]:
                self.cancel(job)

    def close(self) -> None:
        """End all texts and threads; rounds in progress are waited for."""
        with self._changed:
            self._closed = True
            self.cancel_all()
            self._changed.notify_all()
        for thread in self._threads:
            thread.join()

    def _work(self) -> None:
        while (job := self._next()) is not None:
            self._turn(job)

    def _next(self) -> TextJob | None:
        """Wait for a text that can grow; None: there will be none."""
        with self._changed:
            while True:
                while self._waiting and len(self._active) < self.places:
                    job = self._waiting.popleft()
                    self._active.add(job)
                    self._ready.append(job)
                if self._ready:
                    return self._ready.popleft()
                if self._closed:
                    return None
                self._changed.wait()

    def _turn(self, job: TextJob) -> None:
        """Let a text grow by one piece of work, then make room for the next."""
        chunk: Chunk | None = None
        error: BaseException | None = None
        try:
            if not job.cancelled:
                if job.stream is None:
                    job.stream = self.runtime.stream(job.prompt, request=job.request)
                chunk = job.stream.step()
            if chunk is not None:
                if chunk.data and job.first_byte_seconds is None:
                    job.first_byte_seconds = time.perf_counter() - job.submitted
                self._observer.grew(job, chunk)
                job.put(chunk)
        except BaseException as found:  # of native code, too: the text ends with it, and not the thread
            error = found
        if chunk is not None and error is None:
            with self._changed:
                if not job.cancelled and job.stream is not None and job.stream.open:
                    job.paused = job.full
                    if not job.paused:
                        self._ready.append(job)
                    return
        self._end(job, error)

    def _end(self, job: TextJob, error: BaseException | None) -> None:
        """Free the place of a text; its client learns of the end after that."""
        try:
            if job.stream is not None:
                job.stream.close()
        except BaseException as found:
            error = error or found
        with self._changed:
            self._active.discard(job)
            self._changed.notify_all()
        job.end(error)
        self._observer.ended(job)


def default_workers(runtime: BltRuntime) -> int:
    """Return how many threads generate: on a GPU one, on a CPU so many that their operators use every core once.

    PyTorch uses every core by itself.
    """
    threads = getattr(runtime.backend, "operator_threads", usable_cores())
    return max(1, usable_cores() // threads) if runtime.device == "cpu" else 1
