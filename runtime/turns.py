"""Decides who may continue a sequence when several threads or callers want to.

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
from weakref import ref

T = TypeVar("T")


class BusyError(ValueError):
    """Reports a runtime, or a sequence, that is generating other texts at the moment."""


class Stream(Protocol):
    """Generates a text piece by piece."""

    @property
    def open(self) -> bool:
        """Return whether there may be another chunk."""

    def close(self) -> None:
        """End the text."""


S = TypeVar("S", bound=Stream)


class Turns:
    """Hands a sequence from one call, or stream, to the next."""

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
                    "sequence: found a call from inside another one (on_chunk, a streamer, a signal handler), expected "
                    "one after the other; texts that depend on each other need a sequence each"
                )
            self._working = True
            try:
                if self._stream_is_open():
                    raise BusyError(
                        "sequence: found a stream that is open, expected none; read it to its end, close() it, or use "
                        "another sequence"
                    )
                return work()
            finally:
                self._working = False

    def _stream_is_open(self) -> bool:
        # In a function of its own: a traceback of the error would keep the stream, and a stream that is kept is open.
        stream = self._stream()
        return stream is not None and stream.open

    def open(self, make: Callable[[], S]) -> S:
        """Wait for the calls of other threads, then make a stream: it has the sequence as long as it is open.

        Raises:
            BusyError: as `call`.
        """

        def opened() -> S:
            stream = make()
            self._stream = ref(stream)  # who drops a stream, even half-way, leaves it free
            return stream

        return self.call(opened)

    def close_stream(self) -> None:
        """Close the stream that is open, if there is one."""
        stream = self._stream()
        if stream is not None:
            stream.close()
