"""Texts of a server share calls unless they are not to; one that fails or stops leaves the others right."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import cast

import pytest
from fakes.jobs import Turns, ended, job, read, scheduler, until
from fakes.served import Served, serve
from fakes.watched_batch import WatchedBackend

from fastblt.runtime.backends.graph_error import GraphError
from fastblt.runtime.backends.protocol import Backend
from fastblt.runtime.blt_runtime import BltRuntime
from fastblt.runtime.fleet.options import FleetOptions
from fastblt.runtime.generation import Chunk
from fastblt.runtime.serving import text_job
from fastblt.runtime.serving.scheduler import Scheduler
from fastblt.runtime.serving.settings import ServingSettings
from fastblt.runtime.serving.text_job import TextJob

#: Bytes of a text that has not ended when the other one begins.
MANY = 400


@pytest.fixture
def watched(tiny_bundle: Path) -> WatchedBackend:
    return WatchedBackend(BltRuntime.from_pretrained(tiny_bundle, max_bytes=640, sequences=2, threads=1).backend)


@pytest.fixture
def watched_runtime(watched: WatchedBackend) -> BltRuntime:
    return BltRuntime(cast("Backend", watched))


def calls(served: Served, name: str) -> float:
    found = served.host.metrics.registry.get_sample_value(f"fastblt_{name}_total", {"part": "decoder"})
    assert found is not None
    return found


def ask_twice(served: Served) -> list[str]:
    """Ask for two texts at the same time, and return them."""
    body = {"max_tokens": MANY, "method": "ar", "temperature": 0, "logit_bias": {"120": 100}}

    def ask(prompt: str) -> str:
        text: str = served.http.post("/v1/completions", json={**body, "prompt": prompt}).json()["choices"][0]["text"]
        return text

    with ThreadPoolExecutor(2) as pool:
        texts = list(pool.map(ask, ["one", "two"]))
    served.wait_idle()
    return texts


@pytest.mark.parametrize(("slots", "shares"), [(None, True), (2, True), (1, False)])
def test_texts_share_calls_unless_they_are_not_to(runtime: BltRuntime, slots: int | None, shares: bool) -> None:
    with serve(runtime, ServingSettings(workers=1, slots=slots)) as served:
        assert served.host.scheduler is not None
        assert served.host.scheduler.slots == {None: 4, 2: 2, 1: 1}[slots]
        assert calls(served, "graph_calls") == calls(served, "calls") == 0
        assert ask_twice(served) == ["x" * MANY] * 2
        asked, made = calls(served, "calls"), calls(served, "graph_calls")
        assert asked >= 2 * MANY
        assert (made < 0.9 * asked) if shares else (made == asked)


def test_replicas_share_calls_as_their_options_say(tiny_bundle: Path) -> None:
    assert FleetOptions(slots=2).settings(tiny_bundle).slots == 2
    assert FleetOptions().settings(tiny_bundle).slots is None


def test_a_graph_that_fails_ends_both_texts_and_no_later_one(
    watched_runtime: BltRuntime, watched: WatchedBackend, reference: BltRuntime
) -> None:
    async def run() -> None:
        with scheduler(watched_runtime) as (found, turns):
            jobs = [job(b"one", 600), job(b"two", 600)]
            found.submit(jobs)
            await until(lambda: {*jobs} <= {*turns.turns})
            watched.batches[0].error = GraphError("decoder.onnx: it failed")
            for each in jobs:
                await ended(each)
                assert isinstance(each.error, GraphError)
            watched.batches[0].error = None
            after = [job(b"one"), job(b"three")]
            found.submit(after)
            for each in after:
                assert await read(found, each) == expected(reference, each)

    asyncio.run(run())


def expected(reference: BltRuntime, one: TextJob) -> bytes:
    return reference.generate(one.prompt, request=one.request).data


@pytest.mark.parametrize("given_up", [True, False])
def test_a_text_that_stops_leaves_the_one_beside_it_right(
    runtime: BltRuntime, reference: BltRuntime, monkeypatch: pytest.MonkeyPatch, given_up: bool
) -> None:
    """One of two that share calls is given up, or waits for its client and goes on when the other has ended."""
    monkeypatch.setattr(text_job, "MOST_UNREAD", 8)

    async def run() -> None:
        with scheduler(runtime) as (found, _turns):
            stops, other = job(b"stops", 60, "s:4"), job(b"other", 60, "s:4")
            found.submit([stops, other])
            reading = asyncio.create_task(read(found, other))
            await until(lambda: stops.paused)
            if given_up:
                found.cancel(stops)
            assert await reading == expected(reference, other)
            if given_up:
                await ended(stops)
                assert stops.finish == "closed"
            else:
                assert await read(found, stops) == expected(reference, stops)
            for each in (stops, other):
                assert sum(each.stats.graph_calls.values()) < sum(each.stats.nfe.values()), "they have shared calls"

    asyncio.run(run())


def test_what_shares_no_calls_is_handed_on_before_the_next_text_grows(runtime: BltRuntime) -> None:
    jobs: list[TextJob] = []
    calls_before: list[int] = []

    class Calls(Turns):
        def grew(self, job: TextJob, chunk: Chunk) -> None:
            if all(each.stream for each in jobs):
                calls_before.append(sum(each.counts.decoder_calls for each in jobs))

    async def run() -> None:
        found = Scheduler(runtime, 1, 4, Calls(), slots=1)
        try:
            jobs.extend([job(b"one"), job(b"two")])
            found.submit(jobs)
            for each in jobs:
                await read(found, each)
        finally:
            found.close()

    asyncio.run(run())
    assert len(calls_before) > 12
    assert len(set(calls_before)) == len(calls_before), "no text grows before what another has grown by is handed on"
