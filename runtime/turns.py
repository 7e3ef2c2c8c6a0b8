"""Decides who may use a runtime's one sequence, and a backend's caches, when several threads or callers want to.

Whole calls wait for each other. While a stream is open, whatever else would begin a text is refused at once: a stream
ends when its consumer wants it to, so that waiting for it could last for ever. A stream that nobody holds any more is
not open.

An exception, KeyboardInterrupt included, may come between any two function calls. What is held is therefore held by
``with`` over a lock of the interpreter's own, and everything else that has to be undone is a plain assignment.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Protocol, TypeVar
from weakref import WeakKeyDictionary, ref

T = TypeVar("T")


class BusyError(ValueError):
    """Reports a runtime that is generating another text at the moment."""


class Stream(Protocol):
    """Generates a text piece by piece."""

    @property
    def open(self) -> bool:
        """Return whether it may still want the runtime."""


S = TypeVar("S", bound=Stream)


class Turns:
    """Hands a runtime from one call, or stream, to the next."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._working = False
        self._stream: Callable[[], Stream | None] = lambda: None

    def call(self, work: Callable[[], T]) -> T:
        """Wait for the calls of other threads, then work; the result is that of ``work``.

        Raises:
            BusyError: a stream is open, or the call comes from inside another one: from ``on_chunk``, a streamer, or a
                signal handler.
        """
        with self._lock:
            if self._working:  # by this thread, since the lock is its own
                raise BusyError(
                    "runtime: found a call from inside another one (on_chunk, a streamer, a signal handler), expected "
                    "one after the other; load a second runtime for texts that depend on each other"
                )
            self._working = True
            try:
                if self._stream_is_open():
                    raise BusyError(
                        "runtime: found a stream that is open, expected none; read it to its end, close() it, or load "
                        "a second runtime"
                    )
                return work()
            finally:
                self._working = False

    def _stream_is_open(self) -> bool:
        # In a function of its own: a traceback of the error would keep the stream, and a stream that is kept is open.
        stream = self._stream()
        return stream is not None and stream.open

    def open(self, make: Callable[[], S]) -> S:
        """Wait for the calls of other threads, then make a stream: it has the runtime as long as it is open.

        Raises:
            BusyError: as `call`.
        """

        def opened() -> S:
            stream = make()
            self._stream = ref(stream)  # who drops a stream, even half-way, leaves the runtime free
            return stream

        return self.call(opened)


_gates: WeakKeyDictionary[object, threading.RLock] = WeakKeyDictionary()


def gate_of(backend: object) -> threading.RLock:
    """Return the lock that a thread holds while it is inside a call of a backend: always the same one."""
    return _gates.setdefault(backend, threading.RLock())  # one step for other threads
