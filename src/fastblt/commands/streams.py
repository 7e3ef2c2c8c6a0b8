"""Prepares standard input, output and error of the program, whatever the caller left of them."""

from __future__ import annotations

import io
import os
import sys
from contextlib import suppress


def open_descriptors() -> None:
    """Open the descriptors of standard streams that are closed.

    Otherwise the next file that is opened would be one of them, and a library that reports an error would write into
    it. Reading from closed input and writing to closed output fail; what is written to closed errors is lost.
    """
    for number, flags in enumerate((os.O_WRONLY, os.O_RDONLY, os.O_WRONLY)):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, flags)  # the lowest free descriptor, which is this one


def prepare_streams() -> None:
    """Replace the streams that Python found closed, and let characters that the locale lacks become escapes.

    Output that is not buffered (``PYTHONUNBUFFERED``) becomes buffered: only a buffer keeps what could not be written,
    and so shows later that it was standard output that failed. What has to appear at once is flushed by who prints it.
    """
    if sys.stdin is None:
        sys.stdin = open(0, closefd=False)  # noqa: SIM115 -- for the life of the process
    if sys.stdout is None:
        sys.stdout = open(1, "w", closefd=False)  # noqa: SIM115
    elif isinstance(sys.stdout.buffer, io.RawIOBase):
        sys.stdout = open(1, "w", encoding=sys.stdout.encoding, closefd=False)  # noqa: SIM115
    if sys.stderr is None:
        sys.stderr = open(2, "w", closefd=False)  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def flush_output() -> None:
    """Write what is left to standard output.

    Raises:
        OSError: it does not take it.
    """
    if sys.stdout is not None:
        sys.stdout.flush()


def finish_streams() -> None:
    """Write what is left; let disappear what cannot be written, or Python would try again and fail when it exits."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            with suppress(OSError):
                nowhere = os.open(os.devnull, os.O_WRONLY)
                os.dup2(nowhere, stream.fileno())
                os.close(nowhere)
