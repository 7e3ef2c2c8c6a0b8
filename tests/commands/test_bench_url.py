"""The command bench with --url: its table, its report, and what it refuses."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from fakes.openai_server import KEY, TEXT, OpenAiServer, openai_server
from typer.testing import CliRunner, Result

from fastblt.cli import app
from fastblt.commands.prompts import read_prompts
from fastblt.runtime.measure.server_bench import run


@pytest.fixture(scope="module")
def server() -> Iterator[OpenAiServer]:
    with openai_server() as found:
        yield found


@pytest.fixture(autouse=True)
def plain_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing stands between client and server, there is no key, and the memory's bandwidth is not measured."""
    monkeypatch.setenv("NO_PROXY", "*")
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.setattr(run, "device_info", lambda: {"cpu": "some processor", "usable_cores": 2})


def bench(*arguments: str, env: dict[str, str] | None = None) -> Result:
    return CliRunner().invoke(app, ["bench", *arguments], env=env)


def test_table_and_json(server: OpenAiServer, tmp_path: Path) -> None:
    path = tmp_path / "server.json"
    server.bodies.clear()
    result = bench("--url", f"{server.url}/ok/v1", "--clients", "1,3", "--requests", "6", "--json", str(path))
    assert result.exit_code == 0, result.stderr
    report = json.loads(path.read_text(encoding="utf-8"))
    assert report["servers"] == [{"endpoint": f"{server.url}/ok/v1/completions", "model": "tiny"}]
    assert [(row["clients"], row["requests"], row["errors"]) for row in report["rows"]] == [(1, 6, {}), (3, 6, {})]
    assert {row["bytes"] for row in report["rows"]} == {6 * len(TEXT.encode())}
    rows = [line.split() for line in result.stdout.splitlines() if line.strip()[:1].isdigit()]
    assert [row[:3] for row in rows] == [["1", "6", "0"], ["3", "6", "0"]]
    assert [row[-2:] for row in rows] == [["75.0", "%"]] * 2
    assert f"tiny at {server.url}/ok/v1/completions, asked from some processor, 2 cores: 6 requests" in result.stdout
    assert "96 prompts of about 64 bytes" in result.stdout
    assert len({body["prompt"] for body in server.bodies}) == 6
    assert all("method" not in body for body in server.bodies)


def test_one_table_for_each_method_and_errors_by_kind(server: OpenAiServer) -> None:
    server.bodies.clear()
    options = ("--method", "ar,s:8", "--clients", "2", "--requests", "6")
    result = bench("--url", f"{server.url}/busy/v1", *options)
    assert result.exit_code == 0, result.stderr
    assert [line for line in result.stdout.splitlines() if line.startswith("server")] == [
        "server, method ar",
        "server, method s:8",
    ]
    assert "errors of 2 clients with ar: 2 times HTTP 429." in result.stdout
    assert {body["method"] for body in server.bodies} == {"ar", "s:8"}


def test_one_table_for_each_server(server: OpenAiServer) -> None:
    options = ("--against", f"{server.url}/old/v1", "--clients", "1", "--requests", "1")
    result = bench("--url", f"{server.url}/ok/v1", *options)
    assert result.exit_code == 0, result.stderr
    titles = [f"server {server.url}/{kind}/v1/completions" for kind in ("ok", "old")]
    assert [line for line in result.stdout.splitlines() if line.startswith("server")] == titles


def test_prompts_of_a_file(server: OpenAiServer, tmp_path: Path) -> None:
    lines, listed = tmp_path / "prompts.txt", tmp_path / "prompts.json"
    lines.write_text("one\n\n  two é\n", encoding="utf-8")
    listed.write_text(json.dumps(["a\nb", "c"]), encoding="utf-8")
    assert read_prompts(lines) == ["one", "  two é"]
    assert read_prompts(listed) == ["a\nb", "c"]
    server.bodies.clear()
    options = ("--clients", "1", "--requests", "1", "--no-stream", "--chat", "--prompt-file", str(listed))
    result = bench("--url", f"{server.url}/ok/v1", *options)
    assert result.exit_code == 0, result.stderr
    assert server.bodies[0]["messages"] == [{"role": "user", "content": "a\nb"}]
    assert "2 prompts of about 2 bytes" in result.stdout
    assert "not streamed" in result.stdout


@pytest.mark.parametrize("content", ["", "[]", '["a", 5]', '[""]', '["\\ud800"]', "{", b"\xff"])
def test_file_without_prompts_is_one_error(content: str | bytes, tmp_path: Path) -> None:
    path = tmp_path / "prompts.json"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ValueError, match=rf"^{path}: .*expected"):
        read_prompts(path)


def test_key_comes_from_option_or_environment_and_is_never_printed(server: OpenAiServer, tmp_path: Path) -> None:
    path = tmp_path / "server.json"
    options = ("--url", f"{server.url}/locked/v1", "--clients", "1", "--requests", "1", "--json", str(path))
    for result in (bench(*options, "--api-key", KEY), bench(*options, env={"OPENAI_API_KEY": KEY})):
        assert result.exit_code == 0, result.stderr
        assert KEY not in result.output + path.read_text(encoding="utf-8")
    refused = bench(*options, "--api-key", "wrong-secret")
    assert refused.exit_code == 1
    assert refused.stderr == (
        f"error: {server.url}/locked/v1/models: found HTTP 401 (wrong key), expected a key that the server takes: "
        "--api-key or OPENAI_API_KEY\n"
    )


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ((), "found neither a bundle nor --url, expected one of them"),
        (("bundle", "--url", "http://h"), "found a bundle and --url, expected one of them"),
        (("bundle", "--clients", "2"), "--clients: found it without --url, which it is for"),
        (("bundle", "--api-key", "secret"), "--api-key: found it without --url, which it is for"),
        (("--url", "http://h", "--threads", "1"), "--threads: found it without a bundle, which it is for"),
        (("--url", "http://h", "--clients", "2,x"), "--clients: found 'x', expected whole numbers greater than 0"),
        (("--url", "http://h", "--duration", "1", "--requests", "1"), "found a duration and a number of requests"),
        (("--url", "h:8000",), "url: found 'h:8000', expected http://HOST:PORT"),
    ],
)  # fmt: skip
def test_arguments_that_mean_nothing_are_one_error(arguments: tuple[str, ...], error: str) -> None:
    result = bench(*arguments)
    assert result.exit_code == 2
    assert result.stderr.startswith(f"error: {error}")
    assert len(result.stderr.splitlines()) == 1


def test_key_of_the_environment_does_not_disturb_a_bundle(tmp_path: Path) -> None:
    result = bench(str(tmp_path), env={"OPENAI_API_KEY": KEY})
    assert result.exit_code == 1
    assert "manifest.json" in result.stderr


def test_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "httpx", None)
    result = bench("--url", "http://127.0.0.1:9")
    assert result.exit_code == 1
    expected = "error: this command needs the package httpx, install it with: pip install 'fastblt[serve]'\n"
    assert result.stderr == expected
