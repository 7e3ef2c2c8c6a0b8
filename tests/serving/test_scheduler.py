"""Texts grow in turn, wait in order, stop where nobody reads them, and leave nothing behind."""

from __future__ import annotations

import asyncio
import itertools
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from fakes.jobs import ended, job, read, scheduler

from fastblt.runtime.blt_runtime import BltRuntime
from fastblt.runtime.machine import usable_cores
from fastblt.runtime.serving import text_job
from fastblt.runtime.serving.scheduler import QueueFullError, default_workers
from fastblt.runtime.serving.text_job import TextJob


@pytest.fixture(scope="module")
def two_places(tiny_bundle: Path) -> BltRuntime:
    return BltRuntime.from_pretrained(tiny_bundle, max_bytes=2048, sequences=2, threads=1)


def test_a_long_prompt_holds_up_others_for_a_piece_at_most(two_places: BltRuntime, reference: BltRuntime) -> None:
    async def run() -> None:
        with scheduler(two_places) as (found, turns):
            long, short = job(bytes(range(33, 127)) * 18, 2), job(b"short", 12)
            found.submit([long, short])
            texts = await asyncio.gather(read(found, long), read(found, short))
            assert texts[1] == reference.generate(b"short", 12, method="ar", stop_at_eos=False).data
            places = [i for i, each in enumerate(turns.turns) if each is short]
            assert len(places) == 12
            longest = max(after - before for before, after in itertools.pairwise(places))
            assert longest <= 2, "at most one piece of the other between two rounds"
            assert turns.turns.count(long) >= 1692 // 256

    asyncio.run(run())


def test_who_comes_first_gets_the_next_place(two_places: BltRuntime) -> None:
    async def run() -> None:
        with scheduler(two_places) as (found, turns):
            jobs = [job(b"%d" % i) for i in range(5)]
            found.submit(jobs)
            await asyncio.gather(*(read(found, each) for each in jobs))
            firsts = list(dict.fromkeys(turns.turns))
            assert firsts == jobs

    asyncio.run(run())


def test_the_queue_has_an_end(two_places: BltRuntime) -> None:
    async def run() -> None:
        with scheduler(two_places, queue=1) as (found, _turns):
            jobs = [job(b"%d" % i, 1000) for i in range(4)]
            with pytest.raises(QueueFullError):
                found.submit(jobs)
            found.submit(jobs[:3])
            with pytest.raises(QueueFullError):
                found.submit(jobs[3:])
            found.cancel(jobs[2])  # which waits
            assert jobs[2].ended
            found.submit(jobs[3:])

    asyncio.run(run())


def test_a_text_that_nobody_reads_stops_growing(two_places: BltRuntime, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text_job, "MOST_UNREAD", 8)

    async def run() -> None:
        with scheduler(two_places) as (found, turns):
            unread, other = job(b"unread", 40), job(b"other", 40)
            found.submit([unread, other])
            await read(found, other)
            assert unread.paused
            assert turns.turns.count(unread) == 8
            await asyncio.sleep(0.05)
            assert turns.turns.count(unread) == 8
            assert len(await read(found, unread)) == 40
            gone = job(b"gone", 40)
            found.submit([gone])
            while not gone.paused:
                await asyncio.sleep(0.001)
            found.cancel(gone)
            while not gone.ended:
                await asyncio.sleep(0.001)

    asyncio.run(run())


def test_a_text_that_is_read_while_it_is_about_to_stop_grows_on(
    two_places: BltRuntime, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(text_job, "MOST_UNREAD", 8)
    is_full = TextJob.full.fget
    assert is_full is not None
    readers: list[threading.Thread] = []

    async def run() -> None:
        with scheduler(two_places) as (found, turns):

            def full_and_read_meanwhile(one: TextJob) -> bool:
                full = bool(is_full(one))
                if full and not readers:
                    readers.append(threading.Thread(target=lambda: (one.take(), found.resume(one))))
                    readers[0].start()
                    readers[0].join(0.05)
                return full

            monkeypatch.setattr(TextJob, "full", property(full_and_read_meanwhile))
            one = job(b"read", 12)
            found.submit([one])
            end = time.monotonic() + 10
            while not one.ended:
                assert time.monotonic() < end, "nobody lets it grow"
                await asyncio.sleep(0.001)
            assert turns.turns.count(one) == 12

    asyncio.run(run())


class Panic(BaseException):
    """What native code may raise."""


def panic(*_: object, **__: object) -> Any:
    raise Panic


@pytest.mark.parametrize("where", ["stream", "step", "grew", "ended"])
def test_threads_survive_what_native_code_raises(
    two_places: BltRuntime, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    async def run() -> None:
        with scheduler(two_places) as (found, _turns):
            broken: dict[str, Any] = {"stream": two_places, "step": found._workers[0].rounds}
            jobs = [job(b"wrong"), job(b"too")]
            with monkeypatch.context() as patch:
                patch.setattr(broken.get(where, _turns), where, panic)
                found.submit(jobs)
                for each in jobs:
                    await ended(each)
            for each in jobs:
                assert isinstance(each.error, Panic) == (where != "ended")
            assert (found.active, two_places.sequences_in_use) == (0, 0)
            right = job(b"right")
            found.submit([right])
            assert len(await read(found, right)) == 12

    asyncio.run(run())


def test_a_cancelled_text_ends_after_its_round(two_places: BltRuntime) -> None:
    async def run() -> None:
        with scheduler(two_places) as (found, turns):
            jobs = [job(b"one", 1500), job(b"two", 1500)]
            found.submit(jobs)
            while len(turns.turns) < 20:
                await asyncio.sleep(0.001)
            before = turns.turns.count(jobs[0])
            found.cancel(jobs[0])
            while not jobs[0].ended:
                await asyncio.sleep(0.001)
            assert turns.turns.count(jobs[0]) <= before + 2  # the round in progress, and one that was not counted yet
            assert two_places.sequences_in_use <= 1
            assert jobs[0].finish == "closed"

    asyncio.run(run())


def test_a_text_that_fails_is_the_only_one(two_places: BltRuntime, monkeypatch: pytest.MonkeyPatch) -> None:
    async def run() -> None:
        with scheduler(two_places) as (found, _turns):
            wrong, right = job(b"x" * 2040, 100), job(b"right")
            found.submit([wrong, right])
            assert len(await read(found, right)) == 12
            while not wrong.ended:
                await asyncio.sleep(0.001)
            assert "expected at most max_bytes=2048" in str(wrong.error)

    asyncio.run(run())


def test_workers_use_every_core_once(tiny_bundle: Path) -> None:
    for threads, expected in ((None, usable_cores()), (2, max(1, usable_cores() // 2)), (usable_cores(), 1)):
        runtime = BltRuntime.from_pretrained(tiny_bundle, max_bytes=64, threads=threads)
        assert default_workers(runtime) == expected
    runtime.backend.operator_threads = 1000  # type: ignore[attr-defined]
    assert default_workers(runtime) == 1


def test_many_texts_in_many_threads(two_places: BltRuntime, reference: BltRuntime) -> None:
    async def run() -> None:
        with scheduler(two_places, workers=4, queue=100) as (found, _turns):
            methods = ["ar", "s:4", "dv:4@one"]
            jobs = [job(b"text %d" % (i % 5), 24, methods[i % 3]) for i in range(18)]
            began = time.monotonic()
            found.submit(jobs)
            texts = await asyncio.gather(*(read(found, each) for each in jobs))
            assert time.monotonic() - began < 60
            for each, text in zip(jobs, texts, strict=True):
                assert text == reference.generate(each.prompt, 24, method="ar", stop_at_eos=False).data

    asyncio.run(run())
