"""Many texts in one call: in the order of their prompts, by several threads at once, ended by the first error."""

from __future__ import annotations

import gc
import threading
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from time import monotonic, sleep
from typing import Any, cast

import numpy as np
import pytest
from fakes.arrivals import TEXT
from fakes.watched_batch import WatchedBackend

from fastblt.runtime.backends.cpu.backend import OnnxRuntimeBackend
from fastblt.runtime.backends.protocol import Backend, CapacityError
from fastblt.runtime.blt_runtime import BltRuntime
from fastblt.runtime.generation import Chunk, Generation
from fastblt.runtime.turns import BusyError

PROMPTS = [TEXT[5 * i : 5 * i + 20] for i in range(7)]
OPTIONS: dict[str, Any] = {"method": "s:4", "stop_at_eos": False}


@pytest.fixture(scope="module")
def runtime(tiny_bundle: Path) -> BltRuntime:
    return BltRuntime.from_pretrained(tiny_bundle, max_bytes=200, threads=1, sequences=3)


@pytest.fixture(scope="module")
def expected(tiny_bundle: Path) -> list[bytes]:
    alone = BltRuntime.from_pretrained(tiny_bundle, max_bytes=200, threads=1, sequences=1, reuse_prompts=False)
    return [alone.generate(prompt, 15, **OPTIONS).data for prompt in PROMPTS]


@pytest.fixture
def watched(tiny_bundle: Path) -> WatchedBackend:
    return WatchedBackend(OnnxRuntimeBackend.load(tiny_bundle, 200, 1, sequences=3))


def data_of(found: list[Generation]) -> list[bytes]:
    return [each.data for each in found]


def test_texts_are_in_the_order_of_their_prompts(runtime: BltRuntime, expected: list[bytes]) -> None:
    seen: dict[int, bytes] = dict.fromkeys(range(7), b"")

    def on_chunk(index: int, chunk: Chunk) -> None:
        seen[index] += chunk.data

    found = runtime.generate_many(PROMPTS, 15, at_once=2, on_chunk=on_chunk, **OPTIONS)
    assert data_of(found) == expected == list(seen.values())
    assert runtime.sequences_in_use == 0
    assert runtime.generate_many([], 15) == []
    with pytest.raises(ValueError, match=r"at_once: found 4, expected 1\.\.3"):
        runtime.generate_many(PROMPTS, at_once=4)


@pytest.mark.parametrize(
    ("prompts", "kind"),
    [("One", "str"), (b"One", "bytes"), (bytearray(b"One"), "bytearray"), (np.array([1, 5]), "ndarray"), (7, "int")],
)
def test_a_single_prompt_is_refused(runtime: BltRuntime, prompts: Any, kind: str) -> None:
    with pytest.raises(ValueError, match=rf"^prompts: found {kind}, expected a list of prompts; generate\(\) takes"):
        runtime.generate_many(prompts, 5)


@pytest.mark.parametrize(
    ("last", "message"),
    [(b"x" * 190, "prompt: found 190 bytes and max_new_bytes=15"), (None, "prompt: found NoneType")],
)
def test_no_text_begins_where_a_prompt_is_refused(runtime: BltRuntime, last: Any, message: str) -> None:
    begun = runtime.pool_stats.texts
    with pytest.raises(ValueError, match=message) as error:
        runtime.generate_many([*PROMPTS, last], 15, **OPTIONS)
    assert isinstance(error.value, CapacityError) == (last is not None)
    assert runtime.pool_stats.texts == begun


def test_a_batch_is_kept_from_call_to_call(watched: WatchedBackend, expected: list[bytes]) -> None:
    """Until more texts are to grow at once, an error ends one, or the runtime is gone."""
    runtime = BltRuntime(cast("Backend", watched))

    def state() -> list[tuple[int, bool]]:
        return [(batch.size, batch.closed) for batch in watched.batches]

    for at_once in (2, 2, 3, 2, 3):
        assert data_of(runtime.generate_many(PROMPTS, 15, at_once=at_once, **OPTIONS)) == expected
    assert state() == [(2, True), (3, False)]
    assert not watched.batches[1].members
    served = [count for _, count in watched.batches[1].calls]
    assert max(served) == 3

    def fail(index: int, chunk: Chunk) -> None:
        raise RuntimeError("the caller's own")

    with pytest.raises(RuntimeError, match="the caller's own"):
        runtime.generate_many(PROMPTS, 15, on_chunk=fail, **OPTIONS)
    runtime.generate_many(PROMPTS[:2], 15, **OPTIONS)
    assert state() == [(2, True), (3, True), (2, False)]
    del runtime
    gc.collect()
    assert state() == [(2, True), (3, True), (2, True)]


def test_an_error_of_one_text_closes_the_others(runtime: BltRuntime) -> None:
    def fail(index: int, chunk: Chunk) -> None:
        raise RuntimeError("the caller's own")

    with pytest.raises(RuntimeError, match="the caller's own"):
        runtime.generate_many([b"one", b"two"], 15, on_chunk=fail)
    assert runtime.sequences_in_use == 0


def test_a_thread_that_finds_no_place_waits_for_those_of_another(runtime: BltRuntime, expected: list[bytes]) -> None:
    """The second begins when the first holds all places; from then on each takes what becomes free."""
    second: list[Future[list[Generation]]] = []

    with ThreadPoolExecutor(1) as pool:

        def begin_second(index: int, chunk: Chunk) -> None:
            if second:
                return
            assert runtime.sequences_in_use == 3
            second.append(pool.submit(runtime.generate_many, PROMPTS, 15, **OPTIONS))
            end = monotonic() + 10
            while not runtime.pool_stats.waiting:
                assert monotonic() < end, "the other thread does not wait"
                sleep(0.001)

        first = runtime.generate_many(PROMPTS, 15, on_chunk=begin_second, **OPTIONS)
        assert data_of(first) == data_of(second[0].result(60)) == expected
    assert runtime.sequences_in_use == 0


def test_texts_grow_in_the_places_that_are_left(runtime: BltRuntime, expected: list[bytes]) -> None:
    growing: set[int] = set()
    with runtime.stream(b"one", 5), runtime.stream(b"two", 5):
        found = runtime.generate_many(PROMPTS, 15, on_chunk=lambda index, _: growing.add(index), **OPTIONS)
        assert data_of(found) == expected
        with runtime.stream(b"three", 5), pytest.raises(BusyError, match="all 3 sequences taken by streams"):
            runtime.generate_many(PROMPTS, 15, **OPTIONS)
    assert growing == {*range(7)}


def test_three_threads_at_once(watched: WatchedBackend, expected: list[bytes]) -> None:
    """Their batches remain, and serve them again."""
    begin = threading.Barrier(3)
    runtime = BltRuntime(cast("Backend", watched))

    def generate() -> list[bytes]:
        begin.wait(10)
        return data_of(runtime.generate_many(PROMPTS, 15, **OPTIONS))

    with ThreadPoolExecutor(3) as pool:
        for _ in range(3):
            for found in [pool.submit(generate) for _ in range(3)]:
                assert found.result(60) == expected
    assert runtime.sequences_in_use == 0
    assert 1 <= len(watched.batches) <= 3
    assert not any(batch.closed for batch in watched.batches)


def test_batch_that_memory_made_small_is_not_kept(
    watched: WatchedBackend, expected: list[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    runtime, new_batch = BltRuntime(cast("Backend", watched)), watched.new_batch

    def short(size: int) -> object:
        if size > 2:
            raise CapacityError("batch: found no memory")
        return new_batch(size)

    monkeypatch.setattr(watched, "new_batch", short)
    assert data_of(runtime.generate_many(PROMPTS, 15, **OPTIONS)) == expected
    assert watched.batches == [], "texts grew one by one"
    monkeypatch.setattr(watched, "new_batch", new_batch)
    for _ in range(2):
        assert data_of(runtime.generate_many(PROMPTS, 15, **OPTIONS)) == expected
    assert [(batch.size, batch.closed) for batch in watched.batches] == [(3, False)]
