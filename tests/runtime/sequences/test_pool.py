"""Which place a text takes, what is given up for it, and who waits."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from fastblt.models.tokens import decode, encode
from fastblt.runtime.backends.cpu.backend import OnnxRuntimeBackend
from fastblt.runtime.blt_runtime import BltRuntime
from fastblt.runtime.generation import ByteStream
from fastblt.runtime.sequence.learned import Learned
from fastblt.runtime.sequence.session import Session
from fastblt.runtime.sequence.stats import RunStats
from fastblt.runtime.sequences.pool import Conversation, SequencePool
from fastblt.runtime.turns import BusyError


@pytest.fixture
def pool(tiny_backend: OnnxRuntimeBackend) -> SequencePool:
    return SequencePool(tiny_backend, Learned())


def read(pool: SequencePool, text: bytes, owner: Conversation | None = None) -> Session:
    """Read a text in a place, and leave it."""
    ids = encode(text)
    lease = pool.lease(ids, owner)
    lease.session.begin(ids, RunStats())
    lease.session.score()
    lease.release()
    return lease.session


LONG = b"a long text that has been read, every byte of it; whoever comes back is glad that it is still here, all of it"


def test_text_takes_the_place_with_the_longest_common_beginning(pool: SequencePool) -> None:
    one, two = read(pool, LONG), read(pool, b"something else")
    assert one is not two
    assert read(pool, LONG + b" and more") is one
    assert read(pool, b"something new") is two
    assert read(pool, LONG[:70]) is one
    assert pool.stats.reused == 3
    assert pool.stats.evicted == 0


def test_few_bytes_in_common_do_not_cost_a_long_text(pool: SequencePool) -> None:
    one = read(pool, LONG)
    two = read(pool, b"a l")  # while there is room
    assert two is not one
    assert read(pool, LONG) is one
    assert read(pool, b"a long tale") is two  # which was used longest ago
    assert read(pool, LONG[:90] + b"different") is one


def test_place_without_a_text_is_taken_before_another_is_made(pool: SequencePool) -> None:
    lease = pool.lease(encode(b"x"))
    lease.session.spoil()
    lease.release()
    assert read(pool, b"y") is lease.session
    assert pool.stats.idle == 1


def test_sequences_keep_their_places_as_long_as_there_are_others(pool: SequencePool) -> None:
    owner = Conversation()
    mine, other = read(pool, LONG, owner), read(pool, b"something else")
    assert read(pool, LONG) is other
    assert read(pool, LONG[:10], owner) is mine
    pool.forget(owner)
    assert read(pool, LONG[:10] + b" again") is mine


def test_host_has_no_more_memory_than_all_places(pool: SequencePool, tiny_backend: OnnxRuntimeBackend) -> None:
    owners = [Conversation() for _ in range(3)]
    for owner in owners:
        read(pool, LONG, owner)
    first = owners[0].saved
    assert first is not None
    assert 0 < first.size <= tiny_backend.sequence_bytes
    most, tiny_backend.sequence_bytes = tiny_backend.sequence_bytes, first.size
    try:
        for owner in (Conversation(), Conversation()):
            read(pool, LONG, owner)
    finally:
        tiny_backend.sequence_bytes = most
    assert [owner.saved is not None for owner in owners] == [False, True, True]


def test_copy_that_is_about_to_be_brought_back_is_not_given_up(
    pool: SequencePool, tiny_backend: OnnxRuntimeBackend
) -> None:
    owners = [Conversation() for _ in range(4)]
    for owner in owners:
        read(pool, LONG, owner)
    assert [owner.saved is not None for owner in owners] == [True, True, False, False]
    most, tiny_backend.sequence_bytes = tiny_backend.sequence_bytes, owners[0].saved.size  # type: ignore[union-attr]
    try:
        read(pool, LONG + b" again", owners[0])
    finally:
        tiny_backend.sequence_bytes = most
    assert pool.stats.restored == 1
    assert [owner.saved is not None for owner in owners] == [False, True, True, False]


def test_session_is_not_relied_on_when_copying_it_fails(pool: SequencePool, monkeypatch: pytest.MonkeyPatch) -> None:
    owners = [Conversation(), Conversation()]
    session, _ = (read(pool, LONG, owner) for owner in owners)

    def interrupted() -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(session, "saved", interrupted)
    with pytest.raises(KeyboardInterrupt):
        read(pool, b"x")
    assert not session.usable
    assert owners[0].saved is None


def test_error_that_is_kept_holds_no_place(runtime: BltRuntime, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its traceback refers to whatever was being made."""

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    for target, name in ((ByteStream, "__init__"), (Session, "shared_with"), (ByteStream, "__iter__")):
        runtime.generate(b"x", 1)
        with monkeypatch.context() as patch:
            patch.setattr(target, name, interrupted)
            with pytest.raises(KeyboardInterrupt) as kept:
                runtime.generate(b"x", 1)
        assert kept.traceback
        assert runtime.sequences_in_use == 0


def test_interrupt_at_the_end_does_not_spoil_who_has_the_place_next(runtime: BltRuntime) -> None:
    expected = runtime.generate(b"next", 6, method="ar", stop_at_eos=False).data
    streams = [runtime.stream(prompt, 1, method="ar") for prompt in (b"x", b"y")]
    lease = streams[0]._lease

    def wake() -> None:
        lease._wake = lambda: None
        streams.append(runtime.stream(b"next", 6, method="ar", stop_at_eos=False))
        streams[2].step()
        raise KeyboardInterrupt

    lease._wake = wake
    with pytest.raises(KeyboardInterrupt):
        next(streams[0])
    assert streams[2]._lease.session is lease.session
    list(streams[2])
    assert decode(streams[2].tokens) == expected


def test_lease_that_is_dropped_is_given_back(pool: SequencePool) -> None:
    lease = pool.lease(encode(b"x"), stream=True)
    assert pool.stats.in_use == 1
    del lease
    assert pool.stats.in_use == 0


def test_calls_wait_for_each_other_but_not_for_streams(pool: SequencePool) -> None:
    stream, call = pool.lease(encode(b"x"), stream=True), pool.lease(encode(b"y"))
    with ThreadPoolExecutor(1) as threads:
        waiting = threads.submit(pool.lease, encode(b"z"))
        while pool.stats.waiting == 0:
            time.sleep(0.001)
        assert not waiting.done()
        call.release()
        third = waiting.result(5)
    third.thread = None  # as if it were a stream
    with pytest.raises(BusyError, match="runtime: found all 2 sequences taken by streams that are open"):
        pool.lease(encode(b"z"))
    stream.release()
    pool.lease(encode(b"z")).release()
    assert pool.stats.waiting == 0


def test_waiting_ends_when_a_stream_is_dropped(pool: SequencePool) -> None:
    leases = [pool.lease(encode(b"x"), stream=True), pool.lease(encode(b"y"))]
    with ThreadPoolExecutor(1) as threads:
        waiting = threads.submit(pool.lease, encode(b"z"))
        while pool.stats.waiting == 0:
            time.sleep(0.001)
        del leases[0]
        waiting.result(5).release()


def test_calls_inside_calls_that_wait_for_each_other_are_refused(runtime: BltRuntime) -> None:
    """Two threads have a place each, and both want another: one of them is refused, and the other ends."""
    both = threading.Barrier(2)

    met = threading.Event()

    def work(prompt: bytes) -> str:
        def inside(_: object) -> None:
            if not met.is_set():
                both.wait(5)
                met.set()
            runtime.generate(prompt, 2)

        try:
            runtime.generate(prompt, 3, method="ar", on_chunk=inside, stop_at_eos=False)
        except BusyError as error:
            assert "found a call from inside another one" in str(error)  # noqa: PT017
            return "refused"
        return "done"

    with ThreadPoolExecutor(2) as threads:
        found = [threads.submit(work, prompt) for prompt in (b"x", b"y")]
        assert "refused" in {each.result(10) for each in found}
    assert runtime.sequences_in_use == 0


def test_runtimes_share_the_sequences_of_a_backend(runtime: BltRuntime, tiny_backend: OnnxRuntimeBackend) -> None:
    other = BltRuntime(tiny_backend)
    expected = runtime.generate(b"one", 4, method="ar").data
    for prompt in (b"one", b"two", b"three"):
        other.generate(prompt, 4, method="ar")
        runtime.generate(prompt, 4, method="ar")
    assert other.generate(b"one", 4, method="ar").data == expected
    assert np.isfinite(other.score(b"one", b"x").total)
