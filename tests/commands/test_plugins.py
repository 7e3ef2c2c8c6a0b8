"""A method and a backend of another package work in every command with no other edit than their entry points."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from fakes.installed_package import install_package

PLUGIN = """
import dataclasses

from fastblt.runtime.backends.entry import BackendEntry
from fastblt.runtime.backends.registry import load_backend
from fastblt.runtime.methods.ar import Autoregressive
from fastblt.runtime.methods.entry import MethodEntry


class Patient(Autoregressive):
    name = "patient"


def load(request):
    backend = load_backend("onnxruntime", dataclasses.replace(request, provider="cpu"))
    backend.name = "abacus"
    return backend


METHOD = MethodEntry(
    "patient", "patient", ("patient",), "waits for every byte", lambda argument: Patient(),
    audited=("patient",), benchmarked=("patient",),
)
BACKEND = BackendEntry("abacus", "counts on beads", load, providers=("auto", "beads"))
"""
ENTRY_POINTS = {
    "fastblt.methods": {"patient": "toy_plugin:METHOD"},
    "fastblt.backends": {"abacus": "toy_plugin:BACKEND"},
}


@pytest.fixture(scope="module")
def plugin(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Install a package into a folder of its own, as pip would."""
    folder = tmp_path_factory.mktemp("site")
    install_package(folder, "toy_plugin", PLUGIN, ENTRY_POINTS)
    return folder


def fastblt(plugin: Path, *arguments: object) -> bytes:
    path = os.pathsep.join([str(plugin), *filter(None, [os.environ.get("PYTHONPATH")])])
    command = [sys.executable, "-m", "fastblt", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, check=False, env={**os.environ, "PYTHONPATH": path})
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout


def test_help_describes_them(plugin: Path) -> None:
    text = " ".join(fastblt(plugin, "generate", "--help").decode().split())
    assert "patient (waits for every byte)" in text
    assert "abacus (counts on beads)" in text


def test_generate_uses_them(plugin: Path, tiny_bundle: Path) -> None:
    common = ("generate", tiny_bundle, "hello", "--max-new-bytes", "20")
    found = fastblt(plugin, *common, "--method", "patient", "--backend", "abacus", "--provider", "beads")
    assert found == fastblt(plugin, *common, "--method", "ar") != b""


def test_bench_measures_them(plugin: Path, tiny_bundle: Path, tmp_path: Path) -> None:
    few = ("--prompts", "1", "--max-new-bytes", "8", "--json", tmp_path / "bench.json")
    fastblt(plugin, "bench", tiny_bundle, "--against", "abacus/patient", *few)
    rows = json.loads((tmp_path / "bench.json").read_text())["rows"]
    assert {"onnxruntime/patient", "abacus/patient"} <= {f"{row['backend']}/{row['method']}" for row in rows}
    assert all(row["identical_to_ar"] for row in rows)


def test_audit_runs_them_by_default(plugin: Path, tiny_bundle: Path) -> None:
    few = ("--prompts", "1", "--max-new-bytes", "8", "--reference", "onnxruntime")
    text = fastblt(plugin, "audit", tiny_bundle, "--backend", "abacus", *few).decode()
    assert any(line.split()[:2] == ["patient", "1"] for line in text.splitlines())
