"""A replica without Ray: bundles are exchanged, damaged ones refused, and what a check finds."""

from __future__ import annotations

import asyncio
import json
import logging
import shutil
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from fastblt.runtime.bundle.manifest import BundleError
from fastblt.runtime.fleet.options import BundleChoice, FleetError, FleetOptions
from fastblt.runtime.fleet.ray_metrics import MetricsCopy
from fastblt.runtime.fleet.replica import BUNDLE_HEADER, DIGITS, REPLICA_HEADER, FleetReplica
from fastblt.runtime.fleet.served_bundle import StuckError
from fastblt.runtime.serving.model_host import ModelHost, NotReproducedError

OPTIONS = FleetOptions(sequences=2, max_bytes=128, threads=1, drain=2.0, model_name="tiny")
BODY = {"model": "tiny", "prompt": "In ", "max_tokens": 12, "temperature": 0}


@asynccontextmanager
async def running(bundle: Path | None) -> AsyncIterator[tuple[FleetReplica, httpx.AsyncClient]]:
    replica = FleetReplica(OPTIONS, "r1")
    if bundle is not None:
        await replica.choose(BundleChoice.of(bundle).to_dict())
    transport = httpx.ASGITransport(replica)
    async with httpx.AsyncClient(transport=transport, base_url="http://fleet") as client:
        yield replica, client
    await replica.close()


def with_replica(bundle: Path | None, act: Callable[[FleetReplica, httpx.AsyncClient], Awaitable[None]]) -> None:
    async def run() -> None:
        async with running(bundle) as (replica, client):
            await act(replica, client)

    asyncio.run(run())


@pytest.fixture
def other(tiny_bundle: Path, tmp_path: Path) -> Path:
    """The same model with another digest."""
    shutil.copytree(tiny_bundle, tmp_path / "other")
    manifest = tmp_path / "other" / "manifest.json"
    manifest.write_text(json.dumps(json.loads(manifest.read_text(encoding="utf-8"))), encoding="utf-8")
    return tmp_path / "other"


def damage(bundle: Path) -> None:
    graph = bundle / "decoder.onnx"
    data = bytearray(graph.read_bytes())
    data[len(data) // 2] ^= 1
    graph.write_bytes(data)


def test_answers_are_marked_and_a_swap_lets_texts_end(tiny_bundle: Path, other: Path) -> None:
    async def act(replica: FleetReplica, client: httpx.AsyncClient) -> None:
        before = replica.current
        assert before is not None
        first = asyncio.create_task(client.post("/v1/completions", json={**BODY, "max_tokens": 100}))
        while not before.requests:
            await asyncio.sleep(0)
        await replica.choose(BundleChoice.of(other).to_dict())
        second = await client.post("/v1/completions", json=BODY)
        old = await first
        assert (old.status_code, second.status_code) == (200, 200)
        assert old.headers[REPLICA_HEADER] == "r1"
        assert old.headers[BUNDLE_HEADER] == before.digest[:DIGITS]
        assert second.headers[BUNDLE_HEADER] == str(BundleChoice.of(other).sha256)[:DIGITS]
        assert old.json()["choices"][0]["text"].startswith(second.json()["choices"][0]["text"])
        assert (replica.swaps("done"), replica.swaps("refused")) == (1, 0)
        for _ in range(200):
            if before.host.draining:
                break
            await asyncio.sleep(0.02)
        assert before.host.draining, "the one before has ended"

    with_replica(tiny_bundle, act)


@pytest.mark.parametrize("what", ["damaged", "missing", "another", "malformed"])
def test_a_bundle_that_cannot_be_used_is_refused_in_one_line(
    tiny_bundle: Path, other: Path, what: str, caplog: pytest.LogCaptureFixture
) -> None:
    wanted: Any = BundleChoice.of(other).to_dict()
    if what == "damaged":
        damage(other)
    elif what == "missing":
        shutil.rmtree(other)
    elif what == "another":
        wanted["sha256"] = "0" * 64
    else:
        wanted = {"folder": str(other)}

    async def act(replica: FleetReplica, client: httpx.AsyncClient) -> None:
        before = replica.current
        await replica.choose(wanted)
        assert replica.current is before
        assert (replica.swaps("done"), replica.swaps("refused")) == (0, 1)
        assert (await client.post("/v1/completions", json=BODY)).status_code == 200
        await replica.check(20)

    with caplog.at_level(logging.ERROR, "fastblt.fleet"):
        with_replica(tiny_bundle, act)
    [line] = [record.getMessage() for record in caplog.records if record.name == "fastblt.fleet"]
    assert line.startswith(f"bundle refused, {tiny_bundle.resolve()} is served as before: ")
    assert "found" in line or "missing" in line or "cannot be read" in line
    assert "\n" not in line


def test_the_first_bundle_has_to_be_good(other: Path) -> None:
    damage(other)

    async def act(replica: FleetReplica, client: httpx.AsyncClient) -> None:
        with pytest.raises(BundleError, match=r"decoder\.onnx: found sha256"):
            await replica.choose({"bundle": str(other)})
        answer = await client.post("/v1/completions", json=BODY)
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "loading")
        await replica.check(1)

    with_replica(None, act)


def test_the_same_bundle_again_changes_nothing(tiny_bundle: Path) -> None:
    async def act(replica: FleetReplica, client: httpx.AsyncClient) -> None:
        before = replica.current
        await replica.choose(BundleChoice.of(tiny_bundle).to_dict())
        assert replica.current is before
        assert (replica.swaps("done"), replica.swaps("refused")) == (0, 0)

    with_replica(tiny_bundle, act)


def test_a_model_that_writes_something_else_fails_its_check(tiny_bundle: Path) -> None:
    async def act(replica: FleetReplica, client: httpx.AsyncClient) -> None:
        await replica.check(20)
        assert replica.current is not None
        replica.current.host.known = b"something else"
        with pytest.raises(NotReproducedError, match="something else"):
            await replica.check(20)

    with_replica(tiny_bundle, act)


def test_a_busy_replica_passes_as_long_as_its_texts_grow(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def never(host: ModelHost) -> None:
        await asyncio.sleep(60)

    async def act(replica: FleetReplica, client: httpx.AsyncClient) -> None:
        monkeypatch.setattr(ModelHost, "reproduce", never)
        asking = asyncio.create_task(client.post("/v1/completions", json=BODY))
        await replica.check(0.5)
        await asking
        with pytest.raises(StuckError, match=r"found no new byte in 0\.1 s"):
            await replica.check(0.05)

    with_replica(tiny_bundle, act)


def test_a_text_that_never_ends_is_cut_when_its_bundle_goes(
    tiny_bundle: Path, other: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def act(replica: FleetReplica, client: httpx.AsyncClient) -> None:
        served = replica.current
        assert served is not None
        served.requests += 1  # somebody who never reads
        monkeypatch.setattr(served, "_drain", 0.1)
        await replica.choose(BundleChoice.of(other).to_dict())
        await asyncio.wait_for(asyncio.gather(*replica._closing), 10)
        assert served.host.draining

    with_replica(tiny_bundle, act)


class Recorded:
    """Stands in for Ray's metrics: sums of counters, last values of gauges."""

    def __init__(self) -> None:
        self.values: dict[tuple[str, tuple[str, ...]], float] = {}
        self.kinds: dict[str, str] = {}

    def _make(self, kind: str) -> Any:
        recorded = self

        class Metric:
            def __init__(self, name: str, description: str, tag_keys: tuple[str, ...]) -> None:
                self.name = name
                recorded.kinds[name] = kind

            def inc(self, value: float, tags: dict[str, str]) -> None:
                key = self.name, tuple(tags.values())
                recorded.values[key] = recorded.values.get(key, 0.0) + value

            def set(self, value: float, tags: dict[str, str]) -> None:
                recorded.values[self.name, tuple(tags.values())] = value

        return Metric

    @property
    def Counter(self) -> Any:  # noqa: N802 - the name is Ray's
        return self._make("counter")

    @property
    def Gauge(self) -> Any:  # noqa: N802
        return self._make("gauge")


def test_figures_are_copied_with_what_they_have_grown_by(tiny_bundle: Path, other: Path) -> None:
    recorded = Recorded()
    copy = MetricsCopy(recorded)

    async def act(replica: FleetReplica, client: httpx.AsyncClient) -> None:
        for _ in range(2):
            assert replica.current is not None
            await client.post("/v1/completions", json=BODY)
            copy.copy(replica.current.host.metrics.registry)
        await replica.choose(BundleChoice.of(other).to_dict())
        await client.post("/v1/completions", json=BODY)
        await asyncio.gather(*replica._closing)
        registry = replica.current.host.metrics.registry
        while not registry.get_sample_value("fastblt_text_seconds_count"):  # a client has its text a little earlier
            await asyncio.sleep(0.01)
        copy.copy(replica.metrics)
        copy.copy(registry)
        earlier = replica.earlier()
        assert len(earlier) == 1
        copy.copy(earlier[0], gauges=False)
        assert replica.earlier() == []

    with_replica(tiny_bundle, act)
    assert recorded.kinds["fastblt_ready"] == "gauge"
    assert recorded.kinds["fastblt_generated_bytes"] == "counter"
    assert recorded.values["fastblt_ready", ()] == 1
    assert recorded.values["fastblt_requests", ("/v1/completions", "200")] == 3, "another bundle counts on"
    assert recorded.values["fastblt_swaps", ("done",)] == 1
    assert recorded.values["fastblt_first_byte_seconds_count", ()] == 3
    assert recorded.values["fastblt_first_byte_seconds_bucket", ("+Inf",)] == 3


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"colour": 1}, "found 'colour', expected one of sequences"),
        ({"sequences": "many"}, "sequences: found 'many', expected a value of type int"),
        ({"sequences": 1.5}, "sequences: found 1.5"),
        ({"page": 3}, "page: found 3"),
        ({"method": 3}, "method: found 3"),
        ({"drain": True}, "drain: found True"),
    ],
)
def test_options_that_do_not_exist(data: dict[str, Any], message: str) -> None:
    with pytest.raises(FleetError, match=message):
        FleetOptions.from_dict(data)


@pytest.mark.parametrize("workers", [0, -1])
def test_a_replica_without_workers_is_refused(workers: int, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=f"workers: found {workers}, expected an integer from 1"):
        FleetOptions(workers=workers).settings(tmp_path)


def test_the_template_of_the_bundle_is_used_where_none_is_named(tmp_path: Path) -> None:
    assert FleetOptions().settings(tmp_path).chat_template is None
    (tmp_path / "chat_template.jinja").write_text("{{ messages[0].content }}", encoding="utf-8")
    assert FleetOptions().settings(tmp_path).chat_template == tmp_path
    assert FleetOptions(chat_template="other.jinja").settings(tmp_path).chat_template == Path("other.jinja")


def test_options_may_be_text() -> None:
    found = FleetOptions.from_dict({"sequences": "4", "page": "false", "timeout": "2.5", "method": None})
    assert found == FleetOptions(sequences=4, page=False, timeout=2.5)
    assert FleetOptions.from_dict(found.to_dict()) == found
    assert found.settings(Path("nowhere")).timeout == 2.5


@pytest.mark.parametrize("data", [None, {}, {"bundle": ""}, {"bundle": "/b", "sha256": 3}, {"bundle": "/b", "x": 1}])
def test_a_choice_names_a_bundle(data: Any) -> None:
    with pytest.raises(FleetError, match="user_config: found"):
        BundleChoice.from_dict(data)
