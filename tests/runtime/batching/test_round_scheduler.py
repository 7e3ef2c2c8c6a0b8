"""Texts that grow together: their bytes are those of texts alone, their calls are shared, one's error is its own."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from time import perf_counter
from typing import Any, cast

import numpy as np
import pytest
from fakes.arrivals import TEXT
from fakes.watched_batch import WatchedBackend, WatchedBatch

from fastblt.models.config import BltConfig
from fastblt.models.tokens import encode
from fastblt.runtime.backends.batching import (
    Answer,
    DecoderCall,
    DraftCall,
    EncoderCall,
    GlobalCall,
    PartCall,
    PatcherCall,
)
from fastblt.runtime.backends.graph_error import GraphError
from fastblt.runtime.backends.protocol import Backend, BackendSequence, CapacityError
from fastblt.runtime.batching.growing_stream import GrowingStream
from fastblt.runtime.batching.round_scheduler import RoundScheduler, round_schedulers
from fastblt.runtime.blt_runtime import BltRuntime
from fastblt.runtime.generation import ByteStream
from fastblt.runtime.methods import Method, Round
from fastblt.runtime.methods.ar import sample_next
from fastblt.runtime.methods.verification import verify
from fastblt.runtime.sequence.requests import Steps
from fastblt.runtime.sequence.sampling import Draft, Sampler
from fastblt.runtime.sequence.session import Session


@pytest.fixture(scope="module")
def alone(tiny_bundle: Path) -> BltRuntime:
    return BltRuntime.from_pretrained(tiny_bundle, max_bytes=600, threads=1, sequences=24, reuse_prompts=False)


@pytest.fixture
def watched(alone: BltRuntime) -> WatchedBackend:
    return WatchedBackend(alone.backend)


@pytest.fixture
def runtime(watched: WatchedBackend) -> BltRuntime:
    return BltRuntime(cast("Backend", watched))


def stream(runtime: BltRuntime, start: int, method: str = "s:4", new_bytes: int = 20, **options: Any) -> ByteStream:
    return runtime.stream(TEXT[start : start + 30], new_bytes, method=method, stop_at_eos=False, **options)


def read(scheduler: RoundScheduler, streams: list[ByteStream]) -> list[bytes]:
    """Read streams to their ends, together."""
    found = [b""] * len(streams)
    while growing := [index for index, each in enumerate(streams) if each.open]:
        steps = scheduler.step([streams[index] for index in growing])
        for index, step in zip(growing, steps, strict=True):
            assert step.error is None
            found[index] += step.chunk.data if step.chunk else b""
    return found


def test_drafts_and_verifications_of_all_streams_share_their_calls(
    runtime: BltRuntime, watched: WatchedBackend
) -> None:
    scheduler = RoundScheduler(runtime.backend, 4)
    streams = [stream(runtime, 11 * i) for i in range(4)]
    (batch,) = watched.batches
    for step in scheduler.step(streams):  # the prompts; no draft
        assert step.error is None
    batch.calls.clear()
    for each in scheduler.step(streams):
        assert each.chunk is not None
    kinds = [kind for kind, _ in batch.calls]
    assert kinds[:2] == [DraftCall, PatcherCall]
    assert kinds[-1] is DecoderCall
    assert len(kinds) == len(set(kinds)) <= 5
    assert dict(batch.calls)[DraftCall] == dict(batch.calls)[PatcherCall] == dict(batch.calls)[DecoderCall] == 4
    for each in streams:
        assert sum(each.stats.graph_calls.values()) == pytest.approx(sum(each.stats.nfe.values()) / 4, rel=0.5)
        each.close()
    scheduler.close()
    assert batch.closed


def test_whoever_drafts_does_so_before_all_score(runtime: BltRuntime, watched: WatchedBackend) -> None:
    scheduler = RoundScheduler(runtime.backend, 4)
    streams = [stream(runtime, 7, method) for method in ("ar", "s:4", "dv:4@one", "s:9")]
    scheduler.step(streams)
    (batch,) = watched.batches
    batch.calls.clear()
    scheduler.step(streams)
    assert batch.calls[:2] == [(DraftCall, 2), (DecoderCall, 1)]
    assert (PatcherCall, 3) in batch.calls
    assert batch.calls[-3:] == [(EncoderCall, 4), (GlobalCall, 4), (DecoderCall, 4)]
    for each in streams:
        each.close()


class Told:
    """Drafts what the model will write, so that every draft survives whole."""

    lossless = True

    def __init__(self, text: bytes, in_parts: bool) -> None:
        self.name = f"told:{in_parts}"
        self._ids = encode(text)
        self._in_parts = in_parts

    def check(self, config: BltConfig) -> None:
        """Runs on every model."""

    def rounds(self, session: Session, sampler: Sampler) -> Iterator[Steps[Round]]:
        yield sample_next(session, sampler)
        while True:
            draft = Draft(self._ids[session.length : session.length + 12].tolist())
            yield verify(session, sampler, draft, in_parts=self._in_parts)


def test_verification_that_begins_with_known_latents_meets_the_others(
    alone: BltRuntime, runtime: BltRuntime, watched: WatchedBackend
) -> None:
    """What no global call is needed for is verified first; those that go on share the call that closes patches."""
    prompt = TEXT[7:37]
    text = alone.generate(prompt, 60, method="ar", stop_at_eos=False).data
    scheduler = RoundScheduler(runtime.backend, 3)
    methods = [Told(prompt + text, in_parts) for in_parts in (False, True, True)]
    streams = [runtime.stream(prompt, 26, method=cast("Method", each), stop_at_eos=False) for each in methods]
    scheduler.step(streams)
    (batch,) = watched.batches
    batch.calls.clear()
    assert read(scheduler, streams) == [text[1:26]] * 3
    assert [call for call in batch.calls if call[0] in (GlobalCall, DecoderCall)] == [
        *((GlobalCall, 3), (DecoderCall, 3)),
        *((DecoderCall, 2), (GlobalCall, 3), (DecoderCall, 3)),
    ]
    assert all(each.stats.accepted == each.stats.drafted > 0 for each in streams)


def test_one_stream_is_alone_and_a_long_prompt_is_read_alone(runtime: BltRuntime, watched: WatchedBackend) -> None:
    scheduler = RoundScheduler(runtime.backend, 2)
    one = stream(runtime, 3)
    for _ in range(3):
        scheduler.step([one])
    (batch,) = watched.batches
    assert batch.calls == []
    other = runtime.stream(TEXT, 6, method="ar", stop_at_eos=False)
    scheduler.step([one, other])
    assert len(batch.calls) > 0
    assert all(count == 1 for _, count in batch.calls)
    scheduler.step([one, other])
    scheduler.step([one, other])
    assert (PatcherCall, 2) in batch.calls
    assert len(batch.members) == 2
    other.close()
    assert len(batch.members) == 1
    read(scheduler, [one])
    assert batch.members == set()


def test_no_more_streams_share_calls_than_there_are_slots(runtime: BltRuntime, watched: WatchedBackend) -> None:
    scheduler = RoundScheduler(runtime.backend, 4, slots=2)
    streams = [stream(runtime, 7 * i) for i in range(4)]
    for _ in range(3):
        scheduler.step(streams)
    (batch,) = watched.batches
    assert batch.size == len(batch.members) == 2
    members = set(batch.members)
    streams[3].close()
    scheduler.step(streams[:3])
    assert batch.members == members, "who shares goes on to share"
    streams[0].close()
    scheduler.step(streams[1:3])
    assert len(batch.members) == 2
    assert batch.members != members
    RoundScheduler(runtime.backend, 4, slots=1)
    assert len(watched.batches) == 1
    for each in streams:
        each.close()


def test_fewer_streams_share_calls_where_memory_ends(
    alone: BltRuntime, runtime: BltRuntime, watched: WatchedBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    room = [0]

    def new_batch(size: int) -> WatchedBatch:
        if size > room[0]:
            raise CapacityError(f"batch: found no memory for {size} sequences, expected some for {room[0]}")
        return WatchedBatch(size)

    monkeypatch.setattr(watched, "new_batch", new_batch)
    for room[0], slots in ((3, 2), (0, 1)):
        (scheduler,) = round_schedulers(runtime.backend, 1, 5)
        assert (scheduler.slots, scheduler.shares_calls) == (slots, slots > 1)
        streams = [stream(runtime, 9 * i) for i in range(3)]
        assert read(scheduler, streams)[2] == alone.generate(TEXT[18:48], 20, method="s:4", stop_at_eos=False).data
        for asked in (5, None):
            with pytest.raises(CapacityError, match="found no memory for 5 sequences"):
                RoundScheduler(runtime.backend, 5, slots=asked)
        with pytest.raises(CapacityError, match="found no memory for 5 sequences"):
            round_schedulers(runtime.backend, 1, 5, slots=5)


def test_the_threads_of_a_server_have_as_many_slots_each(
    runtime: BltRuntime, watched: WatchedBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    def new_batch(size: int) -> WatchedBatch:
        taken = sum(batch.size for batch in watched.batches if not batch.closed)
        if taken + size > 9:
            raise CapacityError(f"batch: found no memory for {size} sequences, expected some for {9 - taken}")
        watched.batches.append(WatchedBatch(size))
        return watched.batches[-1]

    monkeypatch.setattr(watched, "new_batch", new_batch)
    schedulers = round_schedulers(runtime.backend, 3, 8)
    assert [each.slots for each in schedulers] == [2, 2, 2]
    assert [batch.size for batch in watched.batches if not batch.closed] == [2, 2, 2]
    for each in schedulers:
        each.close()
    with pytest.raises(CapacityError, match="found no memory for 4 sequences"):
        round_schedulers(runtime.backend, 3, 8, slots=4)
    assert all(batch.closed for batch in watched.batches)


def test_a_graph_that_fails_ends_those_who_share_the_call(runtime: BltRuntime, watched: WatchedBackend) -> None:
    scheduler = RoundScheduler(runtime.backend, 3)
    streams = [stream(runtime, 5 * i) for i in range(2)]
    scheduler.step(streams)
    watched.batches[0].error = GraphError("decoder.onnx: it failed")
    for step in scheduler.step(streams):
        assert isinstance(step.error, GraphError)
    assert [each.finish for each in streams] == ["closed", "closed"]
    assert runtime.sequences_in_use == 0
    watched.batches[0].error = None
    assert len(read(scheduler, [stream(runtime, 5 * i) for i in range(2)])[1]) == 20


def test_a_row_that_is_no_number_ends_one_text_only(
    alone: BltRuntime, runtime: BltRuntime, watched: WatchedBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    scheduler = RoundScheduler(runtime.backend, 2)
    streams = [stream(runtime, 5 * i) for i in range(2)]
    first = scheduler.step(streams)[1]
    answer = WatchedBatch._answer

    def damaged(batch: WatchedBatch, sequence: BackendSequence, call: PartCall, served: int) -> Answer:
        found = answer(batch, sequence, call, served)
        if isinstance(call, DecoderCall) and sequence is streams[0].growing.session.sequence:
            broken = found.result._replace(probability=np.full_like(found.result.probability, np.nan))
            return found._replace(result=broken)
        return found

    monkeypatch.setattr(WatchedBatch, "_answer", damaged)
    steps = scheduler.step(streams)
    assert "a probability that is no number" in str(steps[0].error)
    text = b"".join(step.chunk.data for step in (first, steps[1]) if step.chunk) + read(scheduler, streams[1:])[0]
    assert text == alone.generate(TEXT[5:35], 20, method="s:4", stop_at_eos=False).data


def test_without_memory_for_more_a_call_is_made_alone(
    alone: BltRuntime, runtime: BltRuntime, watched: WatchedBackend
) -> None:
    scheduler = RoundScheduler(runtime.backend, 2)
    watched.batches[0].error = CapacityError("lanes: found none that is free")
    streams = [stream(runtime, 5 * i) for i in range(2)]
    texts = read(scheduler, streams)
    assert texts[0] == alone.generate(TEXT[:30], 20, method="s:4", stop_at_eos=False).data


def test_what_ends_a_stream_is_reported_with_it(runtime: BltRuntime) -> None:
    scheduler = RoundScheduler(runtime.backend, 2)
    streams = [stream(runtime, 0), stream(runtime, 9)]
    streams[0].close()
    steps = scheduler.step(streams)
    assert "closed before its end" in str(steps[0].error)
    assert steps[1].error is None
    streams[1].close()


def test_adaptive_decoding_counts_its_share_of_the_time(runtime: BltRuntime, monkeypatch: pytest.MonkeyPatch) -> None:
    """The clock of a session stands still while others are served."""
    scheduler = RoundScheduler(runtime.backend, 2)
    streams = [stream(runtime, 0), stream(runtime, 9)]
    scheduler.step(streams)
    session = streams[0].growing.session
    began, at = session.now(), perf_counter()
    answer = WatchedBatch._answer

    def slow(batch: WatchedBatch, sequence: BackendSequence, call: PartCall, served: int) -> Answer:
        found = answer(batch, sequence, call, served)
        if sequence is session.sequence:
            return found
        end = perf_counter() + 0.02
        while perf_counter() < end:
            pass
        return found

    monkeypatch.setattr(WatchedBatch, "_answer", slow)
    scheduler.step(streams)
    assert perf_counter() - at > 0.06
    assert session.now() - began < 0.03
    for each in streams:
        each.close()


def test_backends_that_cannot_batch_serve_streams_in_turn(alone: BltRuntime, tiny_bundle: Path) -> None:
    eager = BltRuntime.from_pretrained(tiny_bundle, backend="eager", max_bytes=300, sequences=2)
    scheduler = RoundScheduler(eager.backend, 2)
    assert not scheduler.shares_calls
    streams = [stream(eager, 0), stream(eager, 9, "ar")]
    assert read(scheduler, streams)[1] == alone.generate(TEXT[9:39], 20, method="ar", stop_at_eos=False).data


def test_streams_that_share_no_calls_take_their_steps_one_after_the_other(runtime: BltRuntime) -> None:
    scheduler = RoundScheduler(runtime.backend, 2, slots=1)
    streams = [stream(runtime, 0), stream(runtime, 9)]
    scheduler.step(streams)
    before = [each.stats.decoder_calls for each in streams]
    seen: list[tuple[int, list[bool]]] = []

    def note(step: GrowingStream) -> None:
        called = [each.stats.decoder_calls > count for each, count in zip(streams, before, strict=True)]
        seen.append((streams.index(step.stream), called))

    scheduler.step(streams, note)
    assert seen == [(0, [True, False]), (1, [True, True])]
    for each in streams:
        each.close()


def test_who_shares_no_calls_is_handed_on_before_those_who_do(runtime: BltRuntime, watched: WatchedBackend) -> None:
    scheduler = RoundScheduler(runtime.backend, 3, slots=2)
    streams = [stream(runtime, 7 * i, "ar") for i in range(3)]
    scheduler.step(streams)
    (batch,) = watched.batches
    batch.calls.clear()
    seen: list[tuple[int, bool]] = []
    scheduler.step(streams, lambda step: seen.append((streams.index(step.stream), bool(batch.calls))))
    assert seen == [(2, False), (0, True), (1, True)]
    for each in streams:
        each.close()


def test_a_session_that_cannot_leave_its_batch_ends_its_own_text(
    alone: BltRuntime, runtime: BltRuntime, watched: WatchedBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    scheduler = RoundScheduler(runtime.backend, 2)
    streams = [stream(runtime, 0), stream(runtime, 9)]
    scheduler.step(streams)

    def fail(_: object) -> None:
        raise MemoryError("no room to copy to")

    with monkeypatch.context() as patch:
        patch.setattr(watched.batches[0], "leave", fail)
        (step,) = scheduler.step(streams[:1])
    assert isinstance(step.error, MemoryError)
    assert (streams[0].finish, runtime.sequences_in_use) == ("closed", 1)
    streams[1].close()
    again = stream(runtime, 0)
    assert read(scheduler, [again])[0] == alone.generate(TEXT[:30], 20, method="s:4", stop_at_eos=False).data


def test_why_no_calls_are_shared_is_known(runtime: BltRuntime, tiny_bundle: Path) -> None:
    eager = BltRuntime.from_pretrained(tiny_bundle, backend="eager", max_bytes=300, sequences=2)
    assert RoundScheduler(eager.backend, 2).alone_because == "eager runs one text at a time"
    assert RoundScheduler(runtime.backend, 2, slots=1).alone_because == "no more than one text may share calls"
    assert RoundScheduler(runtime.backend, 2).alone_because == ""


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
