"""NVIDIA's own Python bindings of TensorRT have every class, member and argument that fastblt uses, in each version.

The bindings are real, from PyPI, and are imported over a library without TensorRT in it (nvinfer_stub/).
"""

from __future__ import annotations

import ast
import enum
import importlib.metadata
import inspect
import json
import os
import shutil
import subprocess
import sys
import zipfile
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from fakes.cuda import FakeCuda
from fakes.tensorrt import FakeTensorRt
from fakes.tensorrt_values import Severity
from shared_files import SharedFiles

ROOT = Path(__file__).resolve().parents[2]
STUB = Path(__file__).with_name("nvinfer_stub")
#: By version: name, version and sha256 of the wheels.
BINDINGS = {line.split()[0].partition("==")[2]: line for line in (STUB / "bindings.txt").read_text().splitlines()}
#: Of the stand-ins' own; the names of members of the real classes are compared in `test_signatures` as well.
OWN = {"INetworkDefinition.model", "INetworkDefinition.layers", "ICudaEngine.is_input", "LayerType.OTHER"}
OWN |= {"IAttentionInputLayer.type", "IAttentionInputLayer.Attention"}
#: What only TensorRT-RTX has, and fastblt uses with nothing else.
RTX_ONLY = ("BuilderFlag.REQUIRE_USER_ALLOCATION", "ComputeCapability", "IBuilderConfig.set_compute_capability")
RTX_ONLY += ("DynamicShapesKernelSpecializationStrategy", "IRuntimeCache", "IRuntimeConfig.create_runtime_cache")
RTX_ONLY += ("IRuntimeConfig.set_runtime_cache", "IExecutionContext.is_stream_capturable")
#: Versions before the first one with attention and updates of caches; their graphs are lowered.
LOWERED = ("10.3.0", "10.13.3.9")
LAYERS = ("IAttentionInputLayer", "ICudaEngine.get_aliased_input_tensor", "LayerType.ATTENTION_INPUT")
LAYERS += ("LayerType.KV_CACHE_UPDATE", "INetworkDefinition.add_attention", "INetworkDefinition.add_kv_cache_update")
#: What came after the oldest version; only TensorRT-RTX is asked for it.
SINCE_10_3 = ("ICudaEngine.create_runtime_config", "IRuntimeConfig", "IStreamReaderV2", "SeekPosition")
#: Its argument is a strategy, or the configuration that newer versions take as well.
EITHER_ARGUMENT = "ICudaEngine.create_execution_context"
#: Downloads one wheel for each file of requirements, in one process.
DOWNLOAD = """\
import sys
from pip._internal.cli.main import main
options = ["--quiet", "--no-deps", "--only-binary", ":all:", "--require-hashes", "--retries", "1"]
for name in sys.argv[1:]:
    if status := main(["download", *options, "--dest", name, "--requirement", name + ".txt"]):
        sys.exit(status)
"""


@cache
def used_names() -> dict[str, list[str] | None]:
    """What fastblt uses, by dotted name: the arguments that it passes to a function; None for everything else.

    These are the members of the stand-ins, which run all code that talks to TensorRT, and the names in that code.
    """
    found: dict[str, list[str] | None] = {f"ILogger.Severity.{member.name}": None for member in Severity}
    stand_in = FakeTensorRt(FakeCuda())
    for name, kind in vars(stand_in).items():
        if not inspect.isclass(kind):
            continue
        found[name] = None
        for member in (each for each in vars(kind) if not each.startswith("_")):
            function = inspect.getattr_static(kind, member)
            is_method = inspect.isfunction(function) and not issubclass(kind, enum.Enum)
            found[f"{name}.{member}"] = list(inspect.signature(function).parameters)[1:] if is_method else None
    return {name: arguments for name, arguments in {**names_in_code(), **found}.items() if name not in OWN}


def names_in_code() -> dict[str, None]:
    """Dotted names of what the code finds in the module of TensorRT: ``trt.A.B``, ``self._trt.A``."""
    found = {}
    for folder in ("export", "runtime"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                names = dotted(node) if isinstance(node, ast.Attribute) else []
                roots = [index for index, name in enumerate(names) if name in ("trt", "_trt")]
                if roots and names[roots[0] + 1 :] and "__version__" not in names:
                    found[".".join(name for name in names[roots[0] + 1 :])] = None
    return found


def dotted(node: ast.expr) -> list[str]:
    """``a.b.c`` as a list; empty where it is something else."""
    if isinstance(node, ast.Name):
        return [node.id]
    return [*before, node.attr] if isinstance(node, ast.Attribute) and (before := dotted(node.value)) else []


@pytest.fixture(scope="session")
def stub_libraries(shared_files: SharedFiles) -> Path:
    """A folder with the libraries that the bindings ask for, of TensorRT 10 and 11."""
    compiler = shutil.which(os.environ.get("CC", "cc"))
    if compiler is None:
        pytest.skip("no C compiler here (cc)")

    def write(folder: Path) -> None:
        folder.mkdir()
        library = folder / "libnvinfer.so.10"
        subprocess.run([compiler, "-shared", "-fPIC", "-o", library, STUB / "nvinfer_stub.c"], check=True)
        for name in ("nvinfer", "nvinfer_plugin", "nvonnxparser"):
            for major in (10, 11):
                if not (other := folder / f"lib{name}.so.{major}").exists():
                    shutil.copyfile(library, other)

    return shared_files.make("nvinfer-stub", write)


@pytest.fixture(scope="session")
def bindings(shared_files: SharedFiles) -> Path:
    """A folder for each version of the bindings, from PyPI."""
    # Looking for the module itself would make setuptools unusable in this process, and with it torch.compile.
    if not any(importlib.metadata.distributions(name="pip")):
        pytest.skip("no pip here, which downloads the bindings")

    def write(folder: Path) -> None:
        folder.mkdir()
        for version, line in BINDINGS.items():
            (folder / f"{version}.txt").write_text(line)
        found = subprocess.run([sys.executable, "-c", DOWNLOAD, *BINDINGS], cwd=folder, capture_output=True, text=True)
        assert "DO NOT MATCH THE HASHES" not in found.stderr, found.stderr
        if found.returncode != 0:
            reason = (found.stderr.strip().splitlines() or ["no reason"])[-1]
            pytest.skip(f"pip cannot download the bindings of TensorRT for this Python and machine ({reason})")
        for wheel in folder.glob("*/*.whl"):
            with zipfile.ZipFile(wheel) as archive:
                archive.extractall(wheel.parent)

    return shared_files.make("tensorrt-bindings", write)


def probe(bindings: Path, libraries: Path) -> dict[str, Any]:
    # The folder of the bindings is shared: no compiled modules are written there.
    environment = {**os.environ, "LD_LIBRARY_PATH": str(libraries), "PYTHONDONTWRITEBYTECODE": "1"}
    found = subprocess.run(
        [sys.executable, STUB / "probe.py", bindings],
        input="\n".join(used_names()), capture_output=True, text=True, env=environment,
    )  # fmt: skip
    assert found.returncode == 0, found.stderr
    report: dict[str, Any] = json.loads(found.stdout)
    return report


@pytest.mark.skipif(sys.platform != "linux", reason="the bindings are those for Linux")
@pytest.mark.parametrize("version", BINDINGS)
def test_bindings_have_everything_that_is_used_of_them(version: str, bindings: Path, stub_libraries: Path) -> None:
    report = probe(bindings / version, stub_libraries)
    assert report["version"] == version
    absent = RTX_ONLY + LAYERS * (version in LOWERED) + SINCE_10_3 * (version == "10.3.0")
    expected = [name for name in used_names() if any(name == each or name.startswith(f"{each}.") for each in absent)]
    assert report["missing"] == sorted(expected)
    for name, wanted in used_names().items():
        overloads = report["arguments"].get(name)
        if wanted is not None and overloads:
            count = len(wanted)
            same = wanted in [overload[:count] for overload in overloads]
            assert same or name == EITHER_ARGUMENT, (name, wanted, overloads)


def test_code_that_talks_to_tensorrt_is_found() -> None:
    names = used_names()
    assert {"Builder", "OnnxParser", "LayerType.KV_CACHE_UPDATE", "TensorIOMode", "IStreamReaderV2"} <= names.keys()
    assert names["IOptimizationProfile.set_shape"] == ["input", "min", "opt", "max"]
