"""Shares a model's places among texts: first come, first served for a place, then all grow round by round.

A step is one bounded piece of work: a piece of a prompt, or a round of a method. The texts of a worker take a step each
at the same time, and share the calls that answer them (`fastblt.runtime.batching.round_scheduler`). What a text has
grown by is handed on as soon as its step has ended. A long prompt holds up the others for no more than a piece of it,
whoever comes first.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Sequence
from typing import Protocol

from fastblt.runtime.batching.growing_stream import GrowingStream
from fastblt.runtime.batching.round_scheduler import RoundScheduler, round_schedulers
from fastblt.runtime.blt_runtime import BltRuntime
from fastblt.runtime.generation import Chunk
from fastblt.runtime.machine import usable_cores
from fastblt.runtime.serving.text_job import TextJob

log = logging.getLogger("fastblt.serving")


class QueueFullError(Exception):
    """Reports texts that would have to wait behind too many others."""


class Observer(Protocol):
    """Counts what a scheduler does; its methods are called by several threads."""

    def grew(self, job: TextJob, chunk: Chunk) -> None:
        """Count a chunk."""

    def ended(self, job: TextJob) -> None:
        """Count a text that was begun and has ended."""


class _Worker:
    """Holds the texts that one thread grows; they stay with it."""

    def __init__(self, rounds: RoundScheduler) -> None:
        self.rounds = rounds
        self.jobs: list[TextJob] = []


class Scheduler:
    """Generates texts in threads of its own.

    Args:
        runtime: what generates; it serves nobody else meanwhile.
        workers: number of threads.
        queue: most texts that wait for a place.
        observer: told of every chunk and of every end.
        slots: most texts of a worker whose rounds share calls; None: all of them, or fewer of every worker where memory
            ends.

    Raises:
        CapacityError: there is no memory for so many ``slots`` of each worker.
        BundleError: ``slots`` are asked for, and the graphs or engines take one sequence at a time.
    """

    def __init__(
        self, runtime: BltRuntime, workers: int, queue: int, observer: Observer, slots: int | None = None
    ) -> None:
        self.runtime = runtime
        self.places = runtime.sequences
        self._queue = queue
        self._observer = observer
        self._changed = threading.Condition()
        self._waiting: deque[TextJob] = deque()
        self._closed = False
        # No worker takes a text while another one has fewer: none has more than its share.
        share = -(-self.places // workers)
        self._workers = [_Worker(rounds) for rounds in round_schedulers(runtime.backend, workers, share, slots)]
        self._threads = [
            threading.Thread(target=self._work, args=(worker,), name=f"fastblt-worker-{i}", daemon=True)
            for i, worker in enumerate(self._workers)
        ]
        for thread in self._threads:
            thread.start()

    @property
    def slots(self) -> int:
        """Return how many texts of each worker share calls; 1: none do."""
        rounds = self._workers[0].rounds
        return rounds.slots if rounds.shares_calls else 1

    @property
    def waiting(self) -> int:
        """Return the number of texts that wait for a place."""
        return len(self._waiting)

    @property
    def active(self) -> int:
        """Return the number of texts that have a place."""
        return sum(len(worker.jobs) for worker in self._workers)

    def submit(self, jobs: Sequence[TextJob]) -> None:
        """Add texts to the queue: all of them, or none.

        Raises:
            QueueFullError: there is no room for all of them.
        """
        with self._changed:
            free = self.places - self.active
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
            job.paused = False
            self._changed.notify_all()

    def resume(self, job: TextJob) -> None:
        """Let a text grow again whose client has read what there was."""
        with self._changed:  # also to look: a worker may be about to pause it, for what has been read meanwhile
            if job.paused:
                job.paused = False
                self._changed.notify_all()

    def cancel_all(self) -> None:
        """End all texts; rounds in progress are their last."""
        with self._changed:
            for job in [*self._waiting, *(job for worker in self._workers for job in worker.jobs)]:
                self.cancel(job)

    def close(self) -> None:
        """End all texts and threads; rounds in progress are waited for."""
        with self._changed:
            self._closed = True
            self.cancel_all()
            self._changed.notify_all()
        for thread in self._threads:
            thread.join()

    def _work(self, worker: _Worker) -> None:
        try:
            while jobs := self._next(worker):
                self._round(worker, jobs)
        finally:
            worker.rounds.close()

    def _next(self, worker: _Worker) -> list[TextJob]:
        """Wait for texts of a worker that can grow; empty: there will be none."""
        with self._changed:
            while True:
                while self._waiting and self.active < self.places and self._has_fewest(worker):
                    worker.jobs.append(self._waiting.popleft())
                    self._changed.notify_all()  # another worker may have the fewest now
                ready = [job for job in worker.jobs if not job.paused]
                if ready or self._closed:
                    return ready
                self._changed.wait()

    def _has_fewest(self, worker: _Worker) -> bool:
        return len(worker.jobs) == min(len(each.jobs) for each in self._workers)

    def _round(self, worker: _Worker, jobs: list[TextJob]) -> None:
        """Let texts grow by a step each, and end those that are not wanted or have reached their end."""
        growing = {id(job.stream): job for job in jobs if self._begin(worker, job)}
        streams = [job.stream for job in growing.values() if job.stream is not None]

        def hand_on(step: GrowingStream) -> None:
            job = growing.pop(id(step.stream))
            error = step.error
            try:
                if self._grew(job, step):
                    return
            except BaseException as found:
                error = error or found
            self._end(worker, job, error)

        try:
            worker.rounds.step(streams, hand_on)
        except BaseException as error:  # native code may raise anything; the thread is needed by other texts
            for job in growing.values():
                self._end(worker, job, error)

    def _begin(self, worker: _Worker, job: TextJob) -> bool:
        """Open the stream of a text that is new; return whether it can grow."""
        error: BaseException | None = None
        try:
            if not job.cancelled:
                if job.stream is None:
                    job.stream = self.runtime.stream(job.prompt, request=job.request)
                return True
        except BaseException as found:
            error = found
        self._end(worker, job, error)
        return False

    def _grew(self, job: TextJob, step: GrowingStream) -> bool:
        """Hand on what a text has grown by; return whether it can grow further."""
        chunk = step.chunk
        if chunk is None or step.error is not None:
            return False
        if chunk.data and job.first_byte_seconds is None:
            job.first_byte_seconds = time.perf_counter() - job.submitted
        self._observer.grew(job, chunk)
        job.put(chunk)
        with self._changed:
            if job.cancelled or job.stream is None or not job.stream.open:
                return False
            job.paused = job.full
            return True

    def _end(self, worker: _Worker, job: TextJob, error: BaseException | None) -> None:
        """Free the place of a text; its client learns of the end after that."""
        try:
            if job.stream is not None:
                job.stream.close()
        except BaseException as found:
            error = error or found
        with self._changed:
            worker.jobs.remove(job)
            self._changed.notify_all()
        job.end(error)
        try:
            self._observer.ended(job)
        except BaseException:
            log.exception("the end of a text was not counted")


def default_workers(runtime: BltRuntime) -> int:
    """Return how many threads generate: on a GPU one, on a CPU so many that their operators use every core once.

    PyTorch uses every core by itself.
    """
    threads = getattr(runtime.backend, "operator_threads", usable_cores())
    return max(1, usable_cores() // threads) if runtime.device == "cpu" else 1
