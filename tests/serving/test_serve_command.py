"""``fastblt serve``: what it prints, how it ends, and what it refuses before it loads anything."""

from __future__ import annotations

import asyncio
import json
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

import httpx
import pytest
from fakes.served import error_of, serve, wait_until
from typer.testing import CliRunner

from fastblt.cli import app
from fastblt.commands.errors import describe
from fastblt.runtime.blt_runtime import BltRuntime
from fastblt.runtime.serving import model_host
from fastblt.runtime.serving.listen import bind, exposed
from fastblt.runtime.serving.settings import ServingSettings

#: A text that takes seconds, whatever the model is: every byte is x.
LONG = {"prompt": "x", "max_tokens": 1500, "method": "ar", "temperature": 0, "logit_bias": {"120": 100}}


def test_texts_come_to_their_end_after_sigterm(tiny_bundle: Path) -> None:
    command = [sys.executable, "-m", "fastblt", "serve", str(tiny_bundle), "--port", "0", "--sequences", "2"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        try:
            url = process.stdout.readline().removeprefix("listening on ").strip()
            with httpx.Client(base_url=url, timeout=60) as client:
                wait_until(lambda: client.get("/ready").status_code == 200)
                with client.stream("POST", "/v1/completions", json={**LONG, "stream": True}) as growing:
                    lines = growing.iter_lines()
                    assert next(lines).startswith("data: ")
                    process.send_signal(signal.SIGTERM)
                    wait_until(lambda: client.get("/ready").status_code == 503)
                    refused = client.post("/v1/completions", json={"prompt": "a"})
                    assert error_of(refused, 503)["code"] == "draining"
                    assert refused.headers["retry-after"]
                    assert client.get("/health").status_code == 200
                    events = [line.removeprefix("data: ") for line in lines if line.startswith("data: ")]
                assert events[-1] == "[DONE]"
                assert json.loads(events[-2])["choices"][0]["finish_reason"] == "length"
            assert process.wait(30) == 0
        finally:
            process.kill()
        entries = [json.loads(line) for line in process.stderr.read().splitlines()]
        assert [entry["new_bytes"] for entry in entries if entry.get("new_bytes")] == [1500]
        assert {"ready", "request"} <= {entry.get("event") for entry in entries}


def test_texts_that_take_too_long_are_cut_off(tiny_bundle: Path) -> None:
    runtime = BltRuntime.from_pretrained(tiny_bundle, max_bytes=4096, sequences=1, threads=1)
    with serve(runtime, ServingSettings(drain=0.05)) as served:
        with served.http.stream("POST", "/v1/completions", json={**LONG, "stream": True}) as growing:
            lines = growing.iter_lines()
            assert next(lines).startswith("data: ")
            served.server.drain()
            events = [line.removeprefix("data: ") for line in lines if line.startswith("data: ")]
        assert json.loads(events[-1])["error"]["code"] == "draining"
        wait_until(lambda: not served.server.started or served.server.should_exit)
    assert runtime.sequences_in_use == 0


def test_who_asks_twice_does_not_wait(tiny_bundle: Path) -> None:
    runtime = BltRuntime.from_pretrained(tiny_bundle, max_bytes=4096, sequences=1, threads=1)
    with serve(runtime) as served:
        with served.http.stream("POST", "/v1/completions", json={**LONG, "stream": True}) as growing:
            lines = growing.iter_lines()
            assert next(lines).startswith("data: ")
            for _ in range(2):
                served.server.on_signal(signal.SIGINT, None)
            events = [line.removeprefix("data: ") for line in lines if line.startswith("data: ")]
        assert json.loads(events[-1])["error"]["code"] == "draining"


def test_a_model_that_cannot_be_loaded_ends_the_server(tiny_bundle: Path, tmp_path: Path) -> None:
    def load() -> BltRuntime:
        raise ValueError("no such model")

    with pytest.raises(ValueError, match="no such model"), serve(load):
        pass


def test_a_model_that_writes_something_else_is_not_ready(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runtime = BltRuntime.from_pretrained(tiny_bundle, max_bytes=64, sequences=1, threads=1)
    assert len(model_host.known_text(runtime, "auto")) == 16
    generate = BltRuntime.generate
    count = 0

    def wrong(self: BltRuntime, *arguments: object, **options: object) -> object:
        nonlocal count
        count += 1
        found = generate(self, *arguments, **options)  # type: ignore[arg-type]
        return found if count < 4 else type(found)(b"x", found.finish, found.stats, (), ())

    monkeypatch.setattr(BltRuntime, "generate", wrong)
    with pytest.raises(model_host.NotReproducedError, match="auto: found b'x' after b'In the beginning', expected"):
        model_host.known_text(runtime, "auto")


def test_a_server_that_listens_has_imported_what_streams_need() -> None:
    program = """
import asyncio, sys, threading
from fastblt.runtime.serving.app import create_app

async def main():
    asked = threading.Event()
    def load():
        asked.wait()
        raise ValueError("none")
    app = create_app(load)
    async with app.router.lifespan_context(app):
        print("anyio._backends._asyncio" in sys.modules, flush=True)
        asked.set()

asyncio.run(main())
"""
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
    assert found.stdout == "True\n", found.stderr


def test_the_known_text_can_be_asked_for_again(runtime: BltRuntime) -> None:
    with serve(runtime) as served:
        asyncio.run(served.host.reproduce())
        served.host.known = b"something else"
        with pytest.raises(model_host.NotReproducedError, match="expected b'something else' as before"):
            asyncio.run(served.host.reproduce())
        assert served.host.idle


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--method", "x"], "method 'x': unknown"),
        (["--port", "70000"], "'--port'"),
        (["--host", "no.such.host.invalid"], "no.such.host.invalid:8000: cannot listen there"),
        (["--api-keys", "nowhere"], "nowhere: No such file"),
        (["--chat-template", "nowhere"], "nowhere: No such file"),
        (["--cors-origin", "example.org"], "--cors-origin: found 'example.org'"),
        (["--drain", "nan"], "'--drain'"),
    ],
)
def test_what_is_refused(tiny_bundle: Path, options: list[str], expected: str) -> None:
    result = CliRunner().invoke(app, ["serve", str(tiny_bundle), *options])
    assert result.exit_code != 0
    assert expected in f"{result.output} {result.exception}"


def test_a_damaged_bundle_is_refused_before_the_server_listens(tiny_bundle: Path, tmp_path: Path) -> None:
    bundle = shutil.copytree(tiny_bundle, tmp_path / "bundle")
    graph = bundle / "decoder.onnx"
    with graph.open("r+b") as file:
        file.truncate(graph.stat().st_size - 1)
    result = CliRunner().invoke(app, ["serve", str(bundle), "--port", "0"])
    assert result.exit_code == 1
    assert result.stdout == ""
    [line] = result.stderr.splitlines()
    assert line.startswith(f"error: {graph}: found ")


def test_streams_do_not_wait_for_acknowledgments() -> None:
    """asyncio sets this option for sockets of its own only, uvloop for all."""
    with bind("127.0.0.1", 0) as listening, socket.create_connection(listening.getsockname()):
        accepted, _ = listening.accept()
        with accepted:
            assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


def test_an_address_that_is_taken(tiny_bundle: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        result = CliRunner().invoke(app, ["serve", str(tiny_bundle), "--port", str(port)])
        assert f"127.0.0.1:{port}: cannot listen there" in f"{result.output} {result.exception}"


def test_packages_that_are_missing_are_named(tiny_bundle: Path) -> None:
    program = (
        f"import sys; sys.modules['fastapi'] = None; sys.argv[1:] = ['serve', {str(tiny_bundle)!r}]\n"
        "from fastblt.__main__ import main\nmain()"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
    assert done.returncode == 1
    [line] = done.stderr.splitlines()
    assert line == "error: this command needs the package fastapi, install it with: pip install 'fastblt[serve]'"
    for package in ("uvicorn", "sse_starlette", "prometheus_client", "jinja2", "starlette", "pydantic"):
        missing = ModuleNotFoundError(f"No module named {package!r}", name=package)
        assert describe(missing).endswith("pip install 'fastblt[serve]'")


def test_who_is_reached_is_warned() -> None:
    assert exposed("127.0.0.1", ServingSettings()) is None
    assert exposed("::1", ServingSettings()) is None
    assert exposed("localhost", ServingSettings()) is None
    assert "no keys" in (exposed("0.0.0.0", ServingSettings()) or "")
