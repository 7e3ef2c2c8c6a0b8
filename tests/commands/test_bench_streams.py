"""The command bench --streams: its tables, its report and its errors."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from fastblt.cli import app
from fastblt.commands.bench_streams import describe_streams, streams_tables
from fastblt.runtime.backends.cpu import backend as cpu_backend
from fastblt.runtime.machine import device_info
from fastblt.runtime.measure.bench.run import BenchRequest
from fastblt.runtime.measure.bench.streams.rows import Figures, StreamsRow
from fastblt.runtime.measure.bench.streams.run import StreamsReport


def invoke(bundle: Path, *options: str) -> Any:
    return CliRunner().invoke(app, ["bench", str(bundle), "--provider", "cpu", "--threads", "1", *options])


def test_command_prints_tables_and_writes_json(tiny_bundle: Path, tmp_path: Path) -> None:
    path = tmp_path / "bench.json"
    options = ("--streams", "1,3", "--methods", "ar,s:4", "--against", "eager", "--max-new-bytes", "16")
    result = invoke(tiny_bundle, *options, "--json", str(path))
    assert result.exit_code == 0, result.stderr
    report = json.loads(path.read_text(encoding="utf-8"))
    assert (report["streams"], report["replay"]) == ([1, 3], None)
    assert [(row["backend"], row["method"], row["streams"], row["calls_shared"]) for row in report["rows"]] == [
        ("onnxruntime", "ar", 1, False),
        ("onnxruntime", "ar", 3, True),
        ("onnxruntime", "s:4", 1, False),
        ("onnxruntime", "s:4", 3, True),
        ("eager", "ar", 1, False),
        ("eager", "ar", 3, False),
    ]
    lines = [line.split() for line in result.stdout.splitlines() if line.startswith(("onnxruntime ", "eager "))]
    assert [line[:3] for line in lines[:6]] == [line[:3] for line in lines[6:]]
    assert lines[1][3] == f"{report['rows'][1]['together']['bytes_per_s']:.1f}"
    assert "Texts that share calls are those in turn, byte for byte." in result.stdout
    assert "eager: texts share no calls (eager runs one text at a time)" in " ".join(result.stdout.split())
    assert "held-out prompts of 64 bytes, 16 new bytes for each text" in result.stdout


def test_command_replays_streams(tiny_bundle: Path) -> None:
    options = ("--streams", "2", "--methods", "s:4", "--max-new-bytes", "12", "--replay", "acceptance=0.8")
    result = invoke(tiny_bundle, *options)
    assert result.exit_code == 0, result.stderr
    assert result.stdout.startswith("REPLAY (acceptance=0.8): ")
    assert "byte for byte" not in result.stdout


@pytest.mark.parametrize("streams", ["4,2", "2,2", "0,1", "1,65", "", "1,x", "1.5"])
def test_command_refuses_numbers_that_do_not_ascend(tiny_bundle: Path, streams: str) -> None:
    result = invoke(tiny_bundle, "--streams", streams)
    assert (result.exit_code, result.stderr.count("\n")) == (2, 1)
    assert result.stderr.startswith("error: --streams: found ")
    assert "expected ascending whole numbers" in result.stderr


def test_command_names_the_texts_that_fit_memory(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu_backend, "host_memory", lambda: 30_000_000)
    result = invoke(tiny_bundle, "--streams", "1,64", "--methods", "ar")
    assert (result.exit_code, result.stderr.count("\n")) == (1, 1)
    assert "sequences: found 64 for max_bytes=4096" in result.stderr
    assert "expected at most" in result.stderr


def test_longest_names_and_largest_figures_fit_and_texts_that_differ_are_named() -> None:
    figures = Figures(9, 123456.7, 1.0, 1234.56, 1234.56, 1.0, 12.345, {}, 1.2345e9)
    row = StreamsRow(
        "tensorrt-rtx", "dv:16@eb1.5+partial", "cuda", 64, True, None, figures, figures, 12.34, 1.2345e9, 1.23, False,
        12.34, True, 0.5, None,
    )  # fmt: skip
    assert len(list(streams_tables([row]))) == 2  # the tables are measured at the end of the test
    report = StreamsReport(BenchRequest(), (64,), "tiny", "fp32", device_info(1), [row])
    (line,) = [line for line in describe_streams(report, [b"ab"]) if line.startswith("TEXTS DIFFER ")]
    assert "dv:16@eb1.5+partial (64)" in line


def test_streams_are_of_bundles() -> None:
    result = CliRunner().invoke(app, ["bench", "--url", "http://127.0.0.1:1", "--streams", "1"])
    assert result.exit_code == 2
    assert "--streams: found it without a bundle" in result.stderr
