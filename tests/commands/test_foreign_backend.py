"""A backend of another package is used by every command that takes one, without an edit in this package."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
from typer.testing import CliRunner

from fastblt.cli import app
from fastblt.runtime.backends import registry
from fastblt.runtime.backends.entry import BackendEntry, BackendError
from fastblt.runtime.plugins import Plugins

SOURCE = """
from collections import Counter
from fastblt.runtime.backends.cpu.backend import OnnxRuntimeBackend
from fastblt.runtime.backends.entry import BackendEntry

CALLS = Counter()


class Counting(OnnxRuntimeBackend):
    name = "counting"

    def run_decoder(self, *arguments, **options):
        CALLS["run_decoder"] += 1
        return super().run_decoder(*arguments, **options)


def load(request):
    CALLS["load"] += 1
    return Counting.load(request.folder, request.max_bytes, request.threads)


ENTRY = BackendEntry("counting", "ONNX Runtime with calls that are counted", load)
"""


@pytest.fixture
def counting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """The module of an installed package with an entry point of the group of backends."""
    folder = tmp_path / "packages"
    info = folder / "counting_backend-1.0.dist-info"
    info.mkdir(parents=True)
    (folder / "counting_backend.py").write_text(SOURCE)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: counting_backend\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[fastblt.backends]\ncounting = counting_backend:ENTRY\n")
    monkeypatch.syspath_prepend(folder)
    fresh = Plugins("backend", registry.ENTRY_POINT_GROUP, BackendEntry, BackendError, registry.BUILT_IN)
    monkeypatch.setattr(registry, "_plugins", fresh)
    import counting_backend  # type: ignore[import-not-found]

    yield counting_backend
    del sys.modules["counting_backend"]


def invoke(*arguments: object) -> str:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == 0, result.stderr or result.exception
    return result.stdout


def test_help_and_errors_name_it(counting: ModuleType) -> None:
    for command in ("generate", "bench", "audit"):
        text = " ".join(invoke(command, "--help").split())
        assert "counting (ONNX Runtime with calls that are counted)" in text
    failed = CliRunner().invoke(app, ["generate", "nowhere", "x", "--backend", "abacus"])
    assert failed.exit_code == 1
    assert "expected one of onnxruntime, eager, tensorrt, tensorrt-rtx, counting" in failed.stderr
    assert counting.CALLS["load"] == 0


def test_generate_runs_it(counting: ModuleType, tiny_bundle: Path) -> None:
    options = ("generate", tiny_bundle, "hello", "--max-new-bytes", 8, "--method", "s:4")
    assert invoke(*options, "--backend", "counting") == invoke(*options)
    assert counting.CALLS["load"] == 1
    assert counting.CALLS["run_decoder"] > 0


def test_bench_measures_it(counting: ModuleType, tiny_bundle: Path, tmp_path: Path) -> None:
    sizes = ("--prompts", 1, "--prompt-bytes", 8, "--max-new-bytes", 4, "--json", tmp_path / "bench.json")
    invoke("bench", tiny_bundle, "--backend", "counting", "--against", "onnxruntime", "--methods", "s:4", *sizes)
    rows = json.loads((tmp_path / "bench.json").read_text())["rows"]
    assert {row["backend"] for row in rows} == {"counting", "onnxruntime"}
    assert counting.CALLS["load"] == 1
    assert counting.CALLS["run_decoder"] > 0


def test_audit_checks_it(counting: ModuleType, tiny_bundle: Path, tmp_path: Path) -> None:
    sizes = ("--prompts", 1, "--max-new-bytes", 8, "--json", tmp_path / "audit.json")
    backends = ("--backend", "counting", "--reference", "onnxruntime")
    text = invoke("audit", tiny_bundle, *backends, "--methods", "ar,s:4", *sizes)
    assert "ar" in text
    report = json.loads((tmp_path / "audit.json").read_text())
    assert {row["backend"] for row in report["rows"]} == {"counting"}
    assert counting.CALLS["load"] == 1
    assert counting.CALLS["run_decoder"] > 0
