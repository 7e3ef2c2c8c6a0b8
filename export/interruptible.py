"""Runs work that calls back from C++ in a thread of its own, so that Ctrl-C is not lost in it.

Python raises `KeyboardInterrupt` in the next instruction of the main thread. Inside a callback of a library, that is
where the library drops exceptions; waiting for another thread, it is where they can be handled.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


def run_interruptible(work: Callable[[threading.Event], T]) -> T:
    """Do some work in another thread, and return its result.

    Args:
        work: called with an event that is set when the work should end early; what it then returns or raises is
            dropped.

    Raises:
        BaseException: what the work raises, or what interrupts the wait (`KeyboardInterrupt`), after the work has
            ended.
    """
    cancelled = threading.Event()
    results: list[T] = []
    errors: list[BaseException] = []

    def run() -> None:
        try:
            results.append(work(cancelled))
        except BaseException as error:  # raised again by the thread that waits
            errors.append(error)

    thread = threading.Thread(target=run, daemon=True)
    try:
        thread.start()
        thread.join()
    except BaseException:
        cancelled.set()
        thread.join()
        raise
    if errors:
        raise errors[0]
    return results[0]
