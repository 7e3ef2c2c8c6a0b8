"""Texts that grow together: their bytes are those of texts alone, their calls are shared, one's error is its own."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from time import perf_counter
from typing import cast

import numpy as np
import pytest
from fakes.arrivals import TEXT
from fakes.streams import read, stream
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
from fastblt.runtime.backends.protocol import BackendSequence, CapacityError
from fastblt.runtime.batching.growing_stream import GrowingStream
from fastblt.runtime.batching.round_scheduler import RoundScheduler, round_schedulers
from fastblt.runtime.blt_runtime import BltRuntime
from fastblt.runtime.methods import Method, Round
from fastblt.runtime.methods.ar import sample_next
from fastblt.runtime.methods.verification import verify
from fastblt.runtime.sequence.requests import Steps
from fastblt.runtime.sequence.sampling import Draft, Sampler
from fastblt.runtime.sequence.session import Session


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
