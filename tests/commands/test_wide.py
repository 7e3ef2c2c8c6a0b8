"""``--wide``: tables with all columns need not fit 80 characters."""

from pathlib import Path

import pytest
from fakes.openai_server import openai_server
from typer.testing import CliRunner

from fastblt.cli import app


@pytest.fixture(autouse=True)
def tables_are_readable() -> None:
    """Replace the check of `tests/commands/conftest.py`."""


def test_bench_has_every_figure(tiny_bundle: Path) -> None:
    options = ["--provider", "cpu", "--threads", "1", "--methods", "s:4", "--prompts", "1", "--max-new-bytes", "8"]
    result = CliRunner().invoke(app, ["bench", str(tiny_bundle), *options, "--wide"])
    assert result.exit_code == 0, result.stderr or result.exception
    for heading in ("median", "first byte", "as ar", "per 512 bytes", "read", "µs per"):
        assert heading in result.stdout
    (memory,) = [line for line in result.stdout.splitlines() if line.startswith("µs to read memory: ")]
    assert memory.count("GB/s") == 2


def test_bench_of_a_server_has_every_figure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "*")
    with openai_server() as server:
        options = ["--clients", "1", "--requests", "2", "--wide"]
        result = CliRunner().invoke(app, ["bench", "--url", f"{server.url}/ok/v1", *options])
    assert result.exit_code == 0, result.stderr or result.exception
    for heading in ("between", "tokens/s", "cached", "answer", "kept"):
        assert heading in result.stdout
