"""Keys, bodies, queues, origins, the log, and clients that go away."""

from __future__ import annotations

import asyncio
import gc
import io
import json
import logging
import socket
import stat
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import pytest
from fakes.served import error_of, serve, wait_until

from fastblt.models.limits import KEYS_BYTES
from fastblt.runtime.blt_runtime import BltRuntime
from fastblt.runtime.serving.api_keys import ApiKeysError, environment_keys, exposure, make_keys, read_keys
from fastblt.runtime.serving.json_log import JsonFormatter
from fastblt.runtime.serving.settings import ServingSettings

KEY = "sk-0123456789abcdef"


@pytest.fixture(scope="module")
def small(tiny_bundle: Path) -> BltRuntime:
    return BltRuntime.from_pretrained(tiny_bundle, max_bytes=4096, sequences=1, threads=1)


@pytest.fixture(scope="module")
def guarded(small: BltRuntime) -> Iterator[Any]:
    """One place, one that waits, small bodies, keys, an origin."""
    settings = ServingSettings(
        queue=1,
        max_body=1000,
        stall=1.0,
        timeout=20.0,
        keys=make_keys([KEY, "another-key-0123456789"], "test"),
        cors_origins=("https://good.example",),
    )
    with serve(small, settings) as found:
        yield found


def authorized(guarded: Any) -> httpx.Client:
    return httpx.Client(base_url=guarded.url, headers={"Authorization": f"Bearer {KEY}"}, timeout=30)


LONG = {"prompt": "x", "max_tokens": 4000, "method": "ar", "temperature": 0, "logit_bias": {"120": 100}}


def test_keys(guarded: Any) -> None:
    for headers in ({}, {"Authorization": "Bearer sk-0123456789abcdeF"}, {"Authorization": f"Basic {KEY}"}):
        for path in ("/v1/models", "/v1/nothing", "/v1"):
            response = guarded.http.get(path, headers=headers)
            assert error_of(response, 401)["code"] == "invalid_api_key"
            assert response.headers["www-authenticate"] == "Bearer"
    assert guarded.http.get("/v1/models", headers={"Authorization": f"bearer {KEY}"}).status_code == 200
    for path in ("/health", "/ready", "/metrics", "/"):
        assert guarded.http.get(path).status_code == 200


def test_keys_below_another_path(guarded: Any) -> None:
    """A host that has the application at /model asks for /model/v1/models, and names /model as the root."""

    async def ask(path: str) -> int:
        transport = httpx.ASGITransport(guarded.app, root_path="/model")
        async with httpx.AsyncClient(transport=transport, base_url="http://server") as client:
            return (await client.get(path)).status_code

    assert asyncio.run(ask("/model/v1/models")) == 401
    assert asyncio.run(ask("/model/health")) == 200


def test_headers_have_a_limit(guarded: Any) -> None:
    large = b"X-Large: " + b"x" * 2**20 + b"\r\n"
    with suppress(ConnectionError), raw(guarded, large) as client:
        assert b"Invalid HTTP request" in client.recv(10_000)  # nobody looked at the request itself


def test_files_of_keys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "keys"
    file.write_text(f"# of the team\n{KEY}\n\n")
    file.chmod(0o600)
    keys = read_keys(file)
    assert keys.accept(f"Bearer {KEY}")
    assert not keys.accept("Bearer ")
    assert not keys.accept(None)
    assert not keys.accept("Bearer # of the team")
    assert KEY not in repr(keys)
    assert exposure(file) is None
    file.chmod(0o644)
    assert "chmod 600" in (exposure(file) or "")
    assert stat.S_IMODE(file.stat().st_mode) == 0o644
    for content, expected in (("", "found no key"), ("sk-1", "too short"), ("sk-0123456789 abcdef", "spaces")):
        file.write_text(content)
        with pytest.raises(ApiKeysError, match=expected) as found:
            read_keys(file)
        assert str(file) in str(found.value)
        assert not content or content not in str(found.value)
    file.write_text("x" * (KEYS_BYTES + 1))
    with pytest.raises(ApiKeysError, match=f"^{file}: found {KEYS_BYTES + 1} bytes, expected at most {KEYS_BYTES}$"):
        read_keys(file)
    monkeypatch.setenv("FASTBLT_API_KEYS", f"{KEY},another-key-0123456789")
    assert len(environment_keys().digests) == 2
    monkeypatch.delenv("FASTBLT_API_KEYS")
    assert not environment_keys()


def test_bodies_have_a_limit(guarded: Any) -> None:
    def pieces(count: int) -> Iterator[bytes]:
        yield b'{"prompt": "'
        for _ in range(count):
            yield b"x" * 100
        yield b'", "max_tokens": 1}'

    with authorized(guarded) as client:
        headers = {"Content-Type": "application/json"}
        large = client.post("/v1/completions", json={"prompt": "x" * 1000})
        assert error_of(large, 413)["code"] == "body_too_large"
        chunked = client.post("/v1/completions", content=pieces(10), headers=headers)
        assert error_of(chunked, 413)["code"] == "body_too_large"
        assert client.post("/v1/completions", content=pieces(9), headers=headers).status_code == 200


def test_slow_bodies_are_given_up(guarded: Any) -> None:
    with raw(guarded, b"Content-Length: 10\r\n") as client:
        client.sendall(b"{")
        answer = client.recv(10_000)
    assert b" 408 " in answer.splitlines()[0]
    assert b'"slow_body"' in answer


def raw(guarded: Any, headers: bytes) -> socket.socket:
    """Return a connection on which a request has begun."""
    client = socket.create_connection(("127.0.0.1", int(guarded.url.rpartition(":")[2])), timeout=20)
    client.sendall(
        b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        b"Authorization: Bearer " + KEY.encode() + b"\r\n" + headers + b"\r\n"
    )
    return client


def test_the_queue_is_limited(guarded: Any) -> None:
    with authorized(guarded) as client, ThreadPoolExecutor(2) as pool:
        with client.stream("POST", "/v1/completions", json={**LONG, "stream": True}) as growing:
            lines = growing.iter_lines()  # its end would close the connection
            assert next(lines).startswith("data: ")
            waiting = pool.submit(client.post, "/v1/completions", json={"prompt": "y", "max_tokens": 3})
            wait_until(lambda: guarded.host.scheduler.waiting == 1)
            refused = client.post("/v1/completions", json={"prompt": "z"})
            assert error_of(refused, 429)["code"] == "queue_full"
            assert refused.headers["retry-after"] == "1"
            assert error_of(refused, 429)["type"] == "rate_limit_error"
        assert waiting.result().status_code == 200  # the first client went away in the middle of its text
    guarded.wait_idle()


def test_clients_that_go_away_leave_nothing(guarded: Any, small: BltRuntime, caplog: pytest.LogCaptureFixture) -> None:
    for stream in (True, False):
        for _ in range(6):
            body = json.dumps({**LONG, "stream": stream}).encode()
            client = raw(guarded, b"Content-Length: %d\r\n" % len(body))
            client.sendall(body)
            wait_until(lambda: guarded.host.scheduler.active == 1)
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
            client.close()  # abruptly
            began = time.monotonic()
            guarded.wait_idle()
            assert time.monotonic() - began < 1.0
    gc.collect()
    assert [record for record in caplog.records if record.name == "asyncio"] == []  # tasks whose errors nobody read
    assert small.sequences_in_use == 0


def test_a_request_has_an_end(small: BltRuntime) -> None:
    with serve(small, ServingSettings(timeout=0.3)) as served:
        response = served.http.post("/v1/completions", json=LONG)
        assert error_of(response, 504)["code"] == "timeout"
        lines = served.http.post("/v1/completions", json={**LONG, "stream": True}).text.splitlines()
        last = json.loads([line for line in lines if line.startswith("data: ")][-1].removeprefix("data: "))
        assert last["error"]["code"] == "timeout"
        served.wait_idle()
        assert small.sequences_in_use == 0


def test_origins(guarded: Any, served: Any) -> None:
    ask = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization,content-type"}
    for origin, allowed in (("https://good.example", True), ("https://bad.example", False)):
        preflight = guarded.http.options("/v1/completions", headers={"Origin": origin, **ask})
        assert (preflight.headers.get("access-control-allow-origin") == origin) == allowed
        assert preflight.is_success == allowed
        refused = guarded.http.get("/v1/models", headers={"Origin": origin})
        assert ("access-control-allow-origin" in refused.headers) == allowed
    preflight = served.http.options("/v1/completions", headers={"Origin": "https://good.example", **ask})
    assert "access-control-allow-origin" not in preflight.headers


@pytest.mark.parametrize("log_prompts", [False, True])
def test_the_log_has_no_prompts(small: BltRuntime, log_prompts: bool) -> None:
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(JsonFormatter())
    logger = logging.getLogger("fastblt.serving")
    logger.addHandler(handler)
    level = logger.level
    logger.setLevel(logging.DEBUG)
    secret = "The secret of the prompt"
    try:
        with serve(small, ServingSettings(log_prompts=log_prompts)) as served:
            message = {"role": "user", "content": secret}
            for more in ({}, {"stream": True}, {"stop": secret}, {secret: 1}, {"max_tokens": secret}):
                served.http.post("/v1/completions", json={"prompt": secret, "max_tokens": 4, **more})
                served.http.post("/v1/chat/completions", json={"messages": [message], "max_tokens": 4, **more})
            served.wait_idle()
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
    entries = [json.loads(line) for line in stream.getvalue().splitlines()]
    found = [entry for entry in entries if entry.get("event") == "request"]
    assert len(found) == 10
    assert (secret in stream.getvalue()) == log_prompts
    assert found[0]["prompt_bytes"] == len(secret)
    assert found[0]["new_bytes"] <= 4
    assert {"time", "level", "request_id", "status", "seconds", "decoding"} <= found[0].keys()


def test_a_defect_stays_inside(
    small: BltRuntime, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("inside /secret/path")

    with serve(small) as served:
        monkeypatch.setattr(small, "stream", broken)
        response = served.http.post("/v1/completions", json={"prompt": "a"})
        assert error_of(response, 500)["code"] == "internal"
        assert "secret" not in response.text
        stream = served.http.post("/v1/completions", json={"prompt": "a", "stream": True})
        assert '"code":"internal"' in stream.text
        assert "secret" not in stream.text
        monkeypatch.setattr(served.host.scheduler, "submit", broken)
        response = served.http.post("/v1/completions", json={"prompt": "a"})
        assert error_of(response, 500)["code"] == "internal"
        assert "secret" not in response.text
    defects = [record for record in caplog.records if getattr(record, "facts", {}).get("event") == "defect"]
    assert len({record.facts["request_id"] for record in defects}) == 3  # type: ignore[attr-defined]
    assert all("inside" in str(record.exc_info) for record in defects)
