"""Whose turn it is: what waits, what is refused, and what lets go of the runtime."""

from __future__ import annotations

import gc
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from fastblt.runtime.backends.protocol import Backend
from fastblt.runtime.blt_runtime import BltRuntime
from fastblt.runtime.turns import BusyError, Turns

Scripted = Callable[..., Backend]
TEXT = b"Once upon a time there was a fox. The fox had a den. END of the story, and more that is never reached at all."
OPEN = "runtime: found the one sequence taken by streams that are open, expected one that is free; read a stream"


@pytest.fixture
def runtime(scripted: Scripted) -> BltRuntime:
    return BltRuntime(scripted(TEXT))


def is_free(runtime: BltRuntime) -> bool:
    """Whether another text can be generated, and is the right one."""
    try:
        return runtime.generate(b"Once", 20).data == TEXT[4:24]
    except BusyError:
        return False


CALLS: dict[str, Callable[[BltRuntime], object]] = {
    "stream": lambda runtime: runtime.stream(b"Once", 3),
    "generate": lambda runtime: runtime.generate(b"Once", 3),
    "score": lambda runtime: runtime.score(b"Once", b" upon"),
}


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS.keys())
def test_open_stream_is_not_disturbed(runtime: BltRuntime, call: Callable[[BltRuntime], object]) -> None:
    stream = runtime.stream(b"Once", 20, method="ar")
    found = b""
    for chunk in stream:
        found += chunk.data
        if stream.open:
            with pytest.raises(BusyError, match=OPEN):
                call(runtime)
    assert found == TEXT[4:24]
    assert stream.finish == "length"
    call(runtime)


def test_stream_without_bytes_is_not_open(runtime: BltRuntime) -> None:
    stream = runtime.stream(b"Once", 0)
    assert is_free(runtime)
    assert list(stream) == []


def test_last_chunk_frees_the_runtime(runtime: BltRuntime) -> None:
    stream = runtime.stream(b"Once", 2, method="ar")
    next(stream)
    assert not is_free(runtime)
    next(stream)
    assert is_free(runtime)
    with pytest.raises(StopIteration):
        next(stream)


def test_closing_frees_the_runtime(runtime: BltRuntime) -> None:
    for rounds in range(3):
        stream = runtime.stream(b"Once", 20, method="ar")
        for _ in range(rounds):
            next(stream)
        stream.close()
        assert is_free(runtime)
        stream.close()  # again, when the runtime has been somebody else's
        assert is_free(runtime)


def test_dropping_frees_the_runtime_at_once(runtime: BltRuntime) -> None:
    gc.disable()  # no cycle holds a stream
    try:
        for rounds in range(3):
            stream = runtime.stream(b"Once", 20, method="ar")
            for _ in range(rounds):
                next(stream)
            del stream
            assert is_free(runtime)
        text = runtime.stream(b"Once", 20).text()
        next(text)
        assert not is_free(runtime)
        del text
        assert is_free(runtime)
    finally:
        gc.enable()


def test_error_that_is_kept_does_not_keep_the_stream(runtime: BltRuntime) -> None:
    stream = runtime.stream(b"Once", 20)
    with pytest.raises(BusyError) as refused:
        runtime.generate(b"Once", 3)
    del stream
    assert is_free(runtime)
    assert refused.traceback


def test_consumer_that_fails_frees_the_runtime(runtime: BltRuntime) -> None:
    def consume() -> None:
        for _ in runtime.stream(b"Once", 20):
            raise KeyError

    with pytest.raises(KeyError):
        consume()
    assert is_free(runtime)

    def fail(chunk: object) -> None:
        raise KeyError

    with pytest.raises(KeyError):
        runtime.generate(b"Once", 20, on_chunk=fail)
    assert is_free(runtime)


def test_stream_dropped_in_another_thread_frees_the_runtime(runtime: BltRuntime) -> None:
    with ThreadPoolExecutor(1) as pool:
        pool.submit(lambda: next(runtime.stream(b"Once", 20))).result()
    assert is_free(runtime)


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS.keys())
def test_call_from_inside_a_call_is_refused(runtime: BltRuntime, call: Callable[[BltRuntime], object]) -> None:
    with pytest.raises(BusyError, match=r"found a call from inside another one \(on_chunk"):
        runtime.generate(b"Once", 20, on_chunk=lambda chunk: call(runtime))
    assert is_free(runtime)


def test_calls_wait_for_each_other() -> None:
    turns, inside, order = Turns(), threading.Semaphore(0), list[str]()

    def first() -> None:
        inside.acquire()
        order.append("first")

    with ThreadPoolExecutor(2) as pool:
        one = pool.submit(turns.call, first)
        while not turns._working:
            pass
        other = pool.submit(turns.call, lambda: order.append("other"))
        assert not other.done()
        inside.release()
        one.result()
        other.result()
    assert order == ["first", "other"]


def test_threads_share_the_chunks_of_a_stream(runtime: BltRuntime) -> None:
    """Two threads that ask at the same time get a chunk each: the second round begins when the first has ended."""
    inside, release = threading.Semaphore(0), threading.Event()
    backend: Any = runtime.backend
    decode = backend.run_decoder

    def slow(*arguments: Any) -> Any:
        inside.release()
        assert release.wait(5)
        return decode(*arguments)

    backend.run_decoder = slow
    stream = runtime.stream(b"Once", 20, method="ar")
    with ThreadPoolExecutor(2) as pool:
        chunks = [pool.submit(next, stream) for _ in range(2)]
        assert inside.acquire(timeout=5)
        assert not inside.acquire(timeout=0.02)
        release.set()
        assert {chunk.result().data for chunk in chunks} == {TEXT[4:5], TEXT[5:6]}
    assert b"".join(chunk.data for chunk in stream) == TEXT[6:24]


def test_closing_waits_for_the_round_of_another_thread(runtime: BltRuntime) -> None:
    inside, release = threading.Event(), threading.Event()
    backend: Any = runtime.backend
    decode = backend.run_decoder

    def slow(*arguments: Any) -> Any:
        inside.set()
        assert release.wait(5)
        return decode(*arguments)

    backend.run_decoder = slow
    stream = runtime.stream(b"Once", 20, method="ar")
    with ThreadPoolExecutor(2) as pool:
        chunk = pool.submit(next, stream)
        assert inside.wait(5)
        closing = pool.submit(stream.close)
        assert not closing.done()
        release.set()
        closing.result()
        assert chunk.result().data == TEXT[4:5]
    assert stream.finish == "closed"
    assert is_free(runtime)
    with pytest.raises(ValueError, match="stream: closed before its end"):
        next(stream)


def test_stream_that_is_closed_inside_its_own_round_ends_with_it(runtime: BltRuntime) -> None:
    """As a handler of a signal does; one that asks for a chunk is refused."""
    backend: Any = runtime.backend
    decode = backend.run_decoder

    def interrupted(*arguments: Any) -> Any:
        with pytest.raises(BusyError, match="stream: found a call from inside its own round"):
            next(stream)
        stream.close()
        return decode(*arguments)

    backend.run_decoder = interrupted
    stream = runtime.stream(b"Once", 20, method="ar")
    assert next(stream).data == TEXT[4:5]
    backend.run_decoder = decode
    assert (stream.open, stream.finish) == (False, "closed")
    assert is_free(runtime)


class Interrupted:
    """Raises KeyboardInterrupt at one of the backend's calls, before or after it."""

    def __init__(self, backend: Any, at: int, late: bool) -> None:
        self._left, self._late = at, late
        for name in ("run_patcher", "run_encoder", "run_global", "run_decoder", "draft"):
            setattr(backend, name, self._counted(getattr(backend, name)))

    def _counted(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*arguments: Any) -> Any:
            self._left -= 1
            if self._left == 0 and not self._late:
                raise KeyboardInterrupt
            found = call(*arguments)
            if self._left == 0:
                raise KeyboardInterrupt
            return found

        return counted


@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize("at", range(1, 9))
def test_interrupted_call_frees_the_runtime(scripted: Scripted, at: int, late: bool) -> None:
    for begin in (
        lambda runtime: list(runtime.stream(b"Once", 40, method="s:3")),
        lambda runtime: runtime.generate(b"Once", 40, method="s:3"),
        lambda runtime: [runtime.score(b"Once", TEXT[4:8]) for _ in range(9)],
    ):
        backend = scripted(TEXT)
        runtime = BltRuntime(backend)
        Interrupted(backend, at, late)
        with pytest.raises(KeyboardInterrupt):
            begin(runtime)
        assert runtime.sequences_in_use == 0
        assert is_free(runtime)


def test_interrupted_stream_is_closed(scripted: Scripted) -> None:
    backend = scripted(TEXT)
    runtime = BltRuntime(backend)
    stream = runtime.stream(b"Once", 40, method="ar")
    next(stream)
    Interrupted(backend, 1, late=True)
    with pytest.raises(KeyboardInterrupt):
        next(stream)
    assert (stream.open, stream.finish) == (False, "closed")
    assert is_free(runtime)
