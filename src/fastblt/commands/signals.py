"""Turns SIGINT, SIGTERM and SIGHUP into an exception, so that whatever is half done is undone before the command ends.

Only ``fastblt``, the program, uses this; ``import fastblt`` installs nothing. It imports nothing that takes time,
because a signal may arrive while everything else is imported.
"""

from __future__ import annotations

import _thread
import atexit
import os
import signal
import sys
import time
from types import FrameType

from fastblt.commands.exit_status import SIGNAL

#: A second signal within this many seconds is the first one again: ``timeout`` signals a process and then its group,
#: and a terminal signals a program and the one that started it, which may pass it on.
SAME_SECONDS = 0.5

#: Wakes the thread that watches for a second signal; signals have numbers from 1.
_LOST = b"\0"
#: Pause before an exception is raised again that was raised where it could not be handled.
_AGAIN_SECONDS = 0.01
_SHOW_CURSOR = b"\x1b[?25h"


class Stopped(KeyboardInterrupt):
    """Ends a command because of a signal."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.status = SIGNAL + number
        """The exit status."""


class Signals:
    """Receives the signals that end a command.

    The first one raises `Stopped` in the main thread, wherever that is; in a call of a library, as soon as it returns.
    A second one, `SAME_SECONDS` later or more, ends the process at once.
    """

    def __init__(self) -> None:
        self.received: int | None = None
        """Number of the first signal."""
        self._time = 0.0
        self._again = False
        self._working = True
        self._numbers: list[int] = []
        self._main = -1
        self._wake = -1

    def install(self) -> None:
        """Receive signals from now on; those that are ignored (``nohup``, jobs in the background) stay so.

        Windows has none of this: Ctrl-C is Python's own `KeyboardInterrupt` there, and ends with the same status.
        """
        if sys.platform == "win32":
            return
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            if signal.getsignal(number) is not signal.SIG_IGN:
                signal.signal(number, self._on_signal)
                self._numbers.append(number)
        # Python itself would take the handlers away while it ends, and a signal would kill what is done. Registered
        # first, this is called last.
        atexit.register(self._ignore)
        self._main = _thread.get_ident()
        # Python calls a handler between two of its own instructions only; the descriptor is written to at once.
        watched, self._wake = os.pipe()
        os.set_blocking(self._wake, False)
        signal.set_wakeup_fd(self._wake, warn_on_full_buffer=False)
        _thread.start_new_thread(self._watch, (watched,))
        sys.unraisablehook = self._on_unraisable

    def finish(self) -> None:
        """End the process at once if a signal arrives from now on: there is nothing left to undo."""
        self._working = False

    def _ignore(self) -> None:
        for number in self._numbers:
            signal.signal(number, signal.SIG_IGN)

    def status(self, status: int) -> int:
        """Return the exit status of a command that ended with ``status``: that of the signal, if one arrived."""
        return status if self.received is None else SIGNAL + self.received

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self._again:
            self._again = False
            self._stop(self.received or number, frame)
            return
        if not self._working:
            end(SIGNAL + number)
        if self.received is not None:
            if time.monotonic() - self._time >= SAME_SECONDS:
                end(SIGNAL + number)
            return
        self.received, self._time = number, time.monotonic()
        self._stop(number, frame)

    def _stop(self, number: int, frame: FrameType | None) -> None:
        if _is_imported_by_torch(frame):
            os.write(self._wake, _LOST)  # later
        else:
            raise Stopped(number)

    def _watch(self, descriptor: int) -> None:
        """End the process at the second signal, even while the main thread is inside a library that does not return."""
        first, own = None, 0
        while data := os.read(descriptor, 1):
            now = time.monotonic()
            if data == _LOST:
                time.sleep(_AGAIN_SECONDS)
                self._again, own = True, own + 1
                signal.pthread_kill(self._main, self.received or signal.SIGINT)
            elif own:
                own -= 1
            elif data[0] in self._numbers:
                if first is not None and now - first >= SAME_SECONDS:
                    end(SIGNAL + data[0])
                first = now if first is None else first

    def _on_unraisable(self, unraisable: sys.UnraisableHookArgs) -> None:
        """Raise `Stopped` again where Python drops it: in ``__del__``, and in callbacks of weak references."""
        if isinstance(unraisable.exc_value, Stopped):
            os.write(self._wake, _LOST)
        elif self.received is None:
            sys.__unraisablehook__(unraisable)


def _is_imported_by_torch(frame: FrameType | None) -> bool:
    """Return whether a module of PyTorch is being imported: its C++ calls Python there, and aborts at an exception."""
    while frame is not None:
        if frame.f_code.co_name == "<module>" and frame.f_globals.get("__name__", "").partition(".")[0] == "torch":
            return True
        frame = frame.f_back
    return False


#: Those of this process; nothing arrives before `Signals.install`.
SIGNALS = Signals()


def end(status: int) -> None:
    """End the process at once, with a cursor if it has a terminal: a progress bar hides it."""
    try:
        if os.isatty(2):
            os.write(2, _SHOW_CURSOR)
    finally:
        os._exit(status)
