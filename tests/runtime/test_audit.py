from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from fastblt.cli import app
from fastblt.runtime.audit import audit, explain
from fastblt.runtime.blt_runtime import BltRuntime

PROMPTS = [("one", b"The quick brown fox"), ("two", "gr\u00fc\u00df".encode()), ("three", b"")]


@pytest.fixture(scope="module")
def runtimes(tiny_bundle: Path) -> tuple[BltRuntime, BltRuntime]:
    """Eager and ONNX Runtime over the same weights."""
    return (
        BltRuntime.from_pretrained(tiny_bundle, backend="eager", provider="cpu", max_bytes=100),
        BltRuntime.from_pretrained(tiny_bundle, provider="cpu", max_bytes=100),
    )


def test_audit_finds_no_fault_when_methods_are_exact(runtimes: tuple[BltRuntime, BltRuntime]) -> None:
    eager, onnx = runtimes
    done: list[int] = []
    rows = audit(eager, [(onnx, "ar"), (onnx, "s:3"), (eager, "s:8")], PROMPTS, 40, 1e-4, done.append)
    assert [(row.backend, row.method) for row in rows] == [
        ("onnxruntime", "ar"),
        ("onnxruntime", "s:3"),
        ("eager", "s:8"),
    ]
    assert all(row.prompts == 3 and not row.faults for row in rows)
    assert all(row.identical + len(row.ties) == 3 for row in rows)
    assert done == [1, 2, 3]


def test_audit_reports_a_fault_when_the_models_differ(runtimes: tuple[BltRuntime, BltRuntime]) -> None:
    """A candidate whose first byte is always replaced is no float tie."""
    eager, onnx = runtimes

    class Wrong:
        backend = onnx.backend

        @staticmethod
        def generate(prompt: bytes, count: int, *, method: str) -> object:
            found = onnx.generate(prompt, count, method=method)
            worst = bytes([(found.data[0] + 128) % 256])
            return type(found)(worst + found.data[1:], found.finish, found.stats)

    (row,) = audit(eager, [(Wrong(), "ar")], PROMPTS[:1], 10, 1e-4)  # type: ignore[list-item]
    assert row.identical == 0
    assert not row.ties
    (fault,) = row.faults
    assert (fault.prompt, fault.offset) == ("one", 0)
    assert fault.logit_gap > 1e-4


def test_explain_measures_the_gap_of_the_two_bytes(runtimes: tuple[BltRuntime, BltRuntime]) -> None:
    eager, _ = runtimes
    expected = eager.generate(b"abc", 12).data
    found = expected[:5] + bytes([expected[5] ^ 1]) + expected[6:]
    difference = explain(eager, "abc", b"abc", expected, found)
    assert difference.offset == 5
    assert difference.logit_gap > 0
    assert difference.boundary_gap >= 0


def test_explain_reads_the_end_of_text_when_an_output_stops_early(runtimes: tuple[BltRuntime, BltRuntime]) -> None:
    eager, _ = runtimes
    expected = eager.generate(b"abc", 12).data
    assert explain(eager, "abc", b"abc", expected, expected[:7]).offset == 7


def test_command_prints_a_table_and_writes_json(tiny_bundle: Path, tmp_path: Path) -> None:
    path = tmp_path / "audit.json"
    options = [
        "--prompts",
        "2",
        "--max-new-bytes",
        "16",
        "--methods",
        "ar,s:4",
        "--provider",
        "cpu",
        "--json",
        str(path),
    ]
    result = CliRunner().invoke(app, ["audit", str(tiny_bundle), *options])
    assert result.exit_code == 0, result.stderr
    report = json.loads(path.read_text(encoding="utf-8"))
    assert [row["method"] for row in report["rows"]] == ["ar", "s:4"]
    assert report["reference"] == "eager ar"
