"""Work in a thread of its own: interrupted, it is cancelled and waited for."""

from __future__ import annotations

import signal
import threading
from types import SimpleNamespace

import pytest

from fastblt.export.interruptible import run_interruptible
from fastblt.export.tensorrt_build import _progress_monitor

pytestmark = pytest.mark.usefixtures("default_signals")


def test_result_and_error_are_those_of_the_work() -> None:
    assert run_interruptible(lambda cancelled: (1, cancelled.is_set())) == (1, False)
    with pytest.raises(ZeroDivisionError):
        run_interruptible(lambda _: 1 // 0)


def test_interrupt_cancels_the_work_and_waits_for_it() -> None:
    main, ended = threading.get_ident(), []

    def work(cancelled: threading.Event) -> None:
        signal.pthread_kill(main, signal.SIGINT)
        ended.append(cancelled.wait(10))

    with pytest.raises(KeyboardInterrupt):
        run_interruptible(work)
    assert ended == [True]


def test_compiler_ends_when_it_is_cancelled_or_its_progress_fails() -> None:
    def fail(phase: str) -> None:
        raise ZeroDivisionError(phase)

    cancelled, errors = threading.Event(), list[BaseException]()
    library = SimpleNamespace(IProgressMonitor=object)
    monitor = _progress_monitor(library, lambda _: None, cancelled, errors)
    monitor.phase_start("a", None, 1)
    assert monitor.step_complete("a", 0) is True
    cancelled.set()
    assert monitor.step_complete("a", 0) is False
    monitor = _progress_monitor(library, fail, threading.Event(), errors)
    monitor.phase_start("b", "a", 1)
    assert monitor.step_complete("b", 0) is False
    assert [type(error) for error in errors] == [ZeroDivisionError]
