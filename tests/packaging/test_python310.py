"""The runtime works on Python 3.10, which JetPack 6 has, and without ONNX Runtime until something needs it."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from fastblt.runtime.blt_runtime import BltRuntime

ROOT = Path(__file__).resolve().parents[2]
#: What runs on a box; training and export need Python 3.11.
ROOMS = ("runtime", "models", "src/fastblt/commands", "src/fastblt/cli.py", "src/fastblt/__main__.py")
#: Of the lock, what the test does not run.
NOT_RUN = {"coloredlogs", "cuda-bindings", "humanfriendly", "mpmath", "onnx", "onnx-ir", "sympy"}
#: Needs PyTorch, packages of training, compiling and serving, or ONNX Runtime itself.
ELSEWHERE = re.compile(
    r"fastblt\.(runtime\.(backends\.(cpu|eager)\.|huggingface|causal_lm|serving|fleet\.(?!capacity)|bundle\.graph_model|"
    r"measure\.(peers|harness))|commands\.eval_plots)"
)

IMPORT_ALL = """
import importlib, sys
sys.modules["onnxruntime"] = sys.modules["torch"] = None
for name in sys.argv[1:]:
    importlib.import_module(name)
print(len(sys.argv) - 1)
"""
GENERATE = """
import sys
from fastblt.runtime.blt_runtime import BltRuntime
runtime = BltRuntime.from_pretrained(sys.argv[1], max_bytes=64)
for method in sys.argv[2:]:
    print(runtime.generate(b"hello", 24, method=method).data.hex())
"""


def modules() -> list[str]:
    """Every module that must load on a box."""
    paths = [*(ROOT / "runtime").rglob("*.py"), *(ROOT / "src/fastblt/commands").glob("*.py")]
    names = []
    for path in paths:
        parts = path.relative_to(ROOT / "src" if "src" in path.parts else ROOT).with_suffix("").parts
        name = ".".join(parts if parts[0] == "fastblt" else ("fastblt", *parts)).removesuffix(".__init__")
        names += [] if ELSEWHERE.match(name) else [name]
    return sorted(names)


def python310() -> Path | None:
    """A Python 3.10 of this machine."""
    pyenv = sorted(Path(os.environ.get("PYENV_ROOT", "~/.pyenv")).expanduser().glob("versions/3.10.*/bin/python3.10"))
    for found in (shutil.which("python3.10"), *pyenv):
        if found and subprocess.run([found, "-c", ""], capture_output=True).returncode == 0:
            return Path(found)
    return None


def run(python: Path | str, program: str, *arguments: object, path: str) -> str:
    done = subprocess.run(
        [python, "-c", program, *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": path, "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_nothing_newer_than_python_310_is_used() -> None:
    training = [ROOT / "models" / "training"]
    files = [
        path
        for room in ROOMS
        for path in ([ROOT / room] if room.endswith(".py") else sorted((ROOT / room).rglob("*.py")))
        if not any(folder in path.parents for folder in training)
    ]
    assert len(files) > 150
    # These two are imported for the type checker only.
    options = ["--no-tips", "--violations", "-t=3.10-", "--exclude", "typing.Self", "--exclude", "typing.Unpack"]
    command = [sys.executable, "-c", "import sys, vermin; sys.exit(vermin.main())", *options, *files]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_runtime_loads_without_onnxruntime() -> None:
    names = modules()
    assert len(names) > 100
    assert run(sys.executable, IMPORT_ALL, *names, path=str(ROOT / "src")).strip() == str(len(names))


@pytest.mark.slow
def test_runtime_works_on_python_310(tiny_checkpoint: Path, exported: Callable[..., Path], tmp_path: Path) -> None:
    """With the packages of locks/jetpack6.txt; lowered graphs run in the ONNX Runtime that is there."""
    python = python310()
    if python is None:
        pytest.skip("there is no Python 3.10 on this machine")
    lock = (ROOT / "locks/jetpack6.txt").read_text(encoding="utf-8")
    entries = [entry for entry in re.split(r"\n(?=\S)", lock) if entry.partition("==")[0] not in NOT_RUN]
    (tmp_path / "lock.txt").write_text("\n".join(entries), encoding="utf-8")
    install = ["-m", "pip", "install", "--quiet", "--no-compile", "--no-deps", "--require-hashes"]
    done = subprocess.run(
        [python, *install, "--target", tmp_path / "site", "-r", tmp_path / "lock.txt"], capture_output=True, text=True
    )
    if "No matching distribution" in done.stderr or "Connection" in done.stderr:
        pytest.skip(f"packages for Python 3.10 are not at hand: {done.stderr.splitlines()[-1]}")
    assert done.returncode == 0, done.stderr
    path = f"{ROOT / 'src'}{os.pathsep}{tmp_path / 'site'}"
    names = modules()
    assert run(python, IMPORT_ALL, *names, path=path).strip() == str(len(names))
    bundle = exported(tiny_checkpoint, lowered=True, verify=True)
    methods = ("ar", "s:4", "dv:4@one", "d:4@0.7")
    expected = BltRuntime.from_pretrained(bundle, max_bytes=64)
    wanted = [expected.generate(b"hello", 24, method=method).data.hex() for method in methods]
    assert run(python, GENERATE, bundle, *methods, path=path).split() == wanted
