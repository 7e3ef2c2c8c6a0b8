"""Rounds that are interrupted, sessions that leave a batch, schedulers that are closed."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from fakes.arrivals import TEXT
from fakes.streams import read, stream
from fakes.watched_batch import WatchedBackend

from fastblt.runtime.batching.round_scheduler import RoundScheduler
from fastblt.runtime.blt_runtime import BltRuntime
from fastblt.runtime.generation import ByteStream


def test_an_interrupt_between_the_calls_frees_all_streams(
    runtime: BltRuntime, watched: WatchedBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    scheduler = RoundScheduler(runtime.backend, 2)
    streams = [stream(runtime, 0), stream(runtime, 9)]
    scheduler.step(streams)

    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(scheduler, "_call", interrupted)
        with pytest.raises(KeyboardInterrupt) as caught:
            scheduler.step(streams)
    assert caught.tb is not None, "what it refers to is not gone"
    assert [each.finish for each in streams] == ["closed", "closed"]
    assert runtime.sequences_in_use == 0
    assert watched.batches[0].members == set()


@pytest.mark.parametrize(("handed_on", "finish"), [(False, "closed"), (True, "length")])
def test_an_interrupted_round_closes_streams_whose_chunk_nobody_has(
    runtime: BltRuntime, monkeypatch: pytest.MonkeyPatch, handed_on: bool, finish: str
) -> None:
    """Those who were handed their chunk when their step ended go on."""
    scheduler = RoundScheduler(runtime.backend, 3, slots=2)
    streams = [stream(runtime, 7 * i, "ar") for i in range(3)]
    scheduler.step(streams)
    texts: list[ByteStream] = []

    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(scheduler, "_call", interrupted)  # the third has no slot, and has ended its step by then
        with pytest.raises(KeyboardInterrupt):
            scheduler.step(streams, (lambda step: texts.append(step.stream)) if handed_on else None)
    assert (texts[:1] == [streams[2]]) == handed_on
    assert [each.open for each in streams] == [False, False, handed_on]
    read(scheduler, streams)
    assert streams[2].finish == finish
    assert runtime.sequences_in_use == 0


def test_a_closed_scheduler_ties_no_stream(alone: BltRuntime, runtime: BltRuntime, watched: WatchedBackend) -> None:
    """Streams that it leaves open grow by it, and by another one, which counts them as its own."""
    scheduler = RoundScheduler(runtime.backend, 2)
    streams = [stream(runtime, 0), stream(runtime, 9)]
    began = [step.chunk for step in scheduler.step(streams)]
    scheduler.close()
    assert (scheduler.shares_calls, scheduler.alone_because) == (False, "the scheduler is closed")
    after = [step.chunk for step in scheduler.step(streams)]
    other = RoundScheduler(runtime.backend, 3, slots=2)
    batch = watched.batches[1]
    third = [step.chunk for step in other.step(streams)]
    assert len(batch.members) == 2
    late = stream(runtime, 18)
    other.step([*streams, late])
    assert len(batch.members) == 2, "no more than there are slots"
    streams[0].close()
    assert len(batch.members) == 1, "who leaves leaves the batch that it is in"
    text = b"".join(chunks[1].data for chunks in (began, after, third) if chunks[1])
    expected = alone.generate(TEXT[9:39], 20, method="s:4", stop_at_eos=False).data
    assert expected.startswith(text)
    assert text
    streams[1].close()
    late.close()
    assert batch.members == set()


def test_a_session_leaves_one_batch_before_it_joins_another(runtime: BltRuntime, watched: WatchedBackend) -> None:
    first, second = RoundScheduler(runtime.backend, 2), RoundScheduler(runtime.backend, 2)
    streams = [stream(runtime, 0), stream(runtime, 9)]
    first.step(streams)
    assert [len(batch.members) for batch in watched.batches] == [2, 0]
    second.step(streams)
    assert [len(batch.members) for batch in watched.batches] == [0, 2]
    others = [stream(runtime, 0), stream(runtime, 9)]
    first.step(others)
    assert [len(batch.members) for batch in watched.batches] == [2, 2]
    for each in streams + others:
        each.close()
    assert [len(batch.members) for batch in watched.batches] == [0, 0]


def test_a_method_that_raises_when_it_is_closed_leaves_no_session_in_a_batch(
    runtime: BltRuntime, watched: WatchedBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    scheduler = RoundScheduler(runtime.backend, 2)
    streams = [stream(runtime, 0, "ar"), stream(runtime, 9)]
    scheduler.step(streams)

    def rounds() -> Iterator[None]:
        try:
            yield
        finally:
            raise RuntimeError("the method's own")

    steps = rounds()
    next(steps)
    monkeypatch.setattr(streams[0], "_steps", steps)
    with pytest.raises(RuntimeError, match="the method's own"):
        streams[0].close()
    assert (len(watched.batches[0].members), runtime.sequences_in_use) == (1, 1)
    streams[1].close()


def test_streams_outlive_the_batch_that_they_shared(alone: BltRuntime) -> None:
    scheduler = RoundScheduler(alone.backend, 2)
    streams = [stream(alone, 0), stream(alone, 9)]
    began = [step.chunk for step in scheduler.step(streams)]
    scheduler.close()
    for start, each, chunk in zip((0, 9), streams, began, strict=True):
        assert chunk is not None
        text = chunk.data + b"".join(chunk.data for chunk in each)
        assert text == alone.generate(TEXT[start : start + 30], 20, method="s:4", stop_at_eos=False).data


def test_a_stream_that_has_ended_leaves_the_session_to_the_next_text(
    runtime: BltRuntime, watched: WatchedBackend
) -> None:
    scheduler = RoundScheduler(runtime.backend, 3)
    ended = stream(runtime, 0)
    ended.close()
    streams = [stream(runtime, 0), stream(runtime, 9)]
    assert streams[0].growing.session is ended.growing.session
    scheduler.step(streams)
    members = set(watched.batches[0].members)
    assert len(members) == 2
    scheduler.step([ended])
    assert watched.batches[0].members == members
    for each in streams:
        each.close()
